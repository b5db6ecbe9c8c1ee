"""What `prove --report` makes another validator can check: who signed it, that it was not changed, and that it is so."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from bittensor import Wallet
from bittensor.sp_core import Keypair
from click.testing import CliRunner

from storyfi_lite.cli import cli
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import BadInput
from storyfi_lite.loaders.base import Job
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.miner.service import to_response
from storyfi_lite.protocol.messages import StoryRequest, parse_response
from storyfi_lite.story.saved import response_data
from storyfi_lite.validator.proof import Prover
from storyfi_lite.validator.report import agreement, make_report, read_report, reported, spell
from storyfi_lite.validator.verdict import Verdict
from tests.answers import ENGLISH, as_bytes, blueprint_request, header
from tests.tiny_gguf import tiny_gguf

KEY = Keypair.create_from_uri("//Validator")
PROVEN = Verdict("proven", "near enough", 60.0, 0.01, 0.97, 200, 0.02)


def a_report() -> bytes:
    request = blueprint_request()
    response = parse_response(as_bytes(ENGLISH, tokens=[1], proof=header(request)))
    rows = [reported("blueprint", request, response, 7, PROVEN), reported("again", request, response, 8, PROVEN)]
    return spell(make_report(rows, "a" * 64, "llama-cpp-python 0", "a CPU"), KEY.ss58_address, KEY.sign)


def test_a_report_says_what_was_found_and_who_signed_it() -> None:
    report = read_report(a_report())
    assert report.hotkey == KEY.ss58_address and [one.verdict for one in report.answers] == [PROVEN, PROVEN]
    assert (report.summary.proven, report.summary.positions) == (2, 400)
    assert report.summary.mean_margin == pytest.approx(0.01)
    assert report.answers[1].seed == 8 and report.answers[0].response.tokens == [1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"status":"proven"', '"status":"refuted"'),
        ('"mean_margin":0.01,', '"mean_margin":0.02,'),
        ('"tokens":[1]', '"tokens":[2]'),
        ('"seed":8', '"seed":9'),
        ('"engine":"llama-cpp-python 0"', '"engine":"llama-cpp-python 1"'),
        (f'"hotkey":"{KEY.ss58_address}"', f'"hotkey":"{Keypair.create_from_uri("//Other").ss58_address}"'),
        (f'"hotkey":"{KEY.ss58_address}"', '"hotkey":"nobody"'),
        (f'"hotkey":"{KEY.ss58_address}",', ""),
        ('"signature":"', '"signature":"00'),
        ('"signature":"', '"signature":"no number'),
        ('"proven":2', '"proven":3'),
        ('"format"', '"more":1,"format"'),
    ],
)
def test_a_changed_report_is_refused(old: str, new: str) -> None:
    text = a_report().decode()
    assert old in text
    with pytest.raises(BadInput, match=r"changed|not a report"):
        read_report(text.replace(old, new, 1).encode())


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"format": "storyfi-lite-report/2"}', b"x" * (5 << 20)])
def test_what_is_no_report_is_refused(raw: bytes) -> None:
    with pytest.raises(BadInput):
        read_report(raw)


def test_only_proven_and_refuted_contradict_each_other() -> None:
    refuted, unsure = Verdict("refuted"), Verdict("inconclusive")
    assert agreement(PROVEN, PROVEN) == agreement(unsure, unsure) == "agrees"
    assert agreement(PROVEN, refuted) == agreement(refuted, PROVEN) == "contradicts"
    assert agreement(PROVEN, unsure) == agreement(unsure, refuted) == "open"


def test_a_stranger_proves_and_another_checks_it_on_another_layout(tmp_path: Path) -> None:
    """From the command line, with what `generate --json` prints; the second validator has too little memory for the file."""
    request = StoryRequest(task_type="blueprint", user_input="a heist on the moon")
    path = tiny_gguf(tmp_path / "tiny.gguf")
    model = LocalModel(path, "tiny", "F32", "someone", 0.5)
    loader = LocalModelLoader(model, EngineSettings(n_ctx=2048, n_threads=1))
    try:
        response = to_response(loader.submit(Job(request, 77, time.monotonic() + 300)).result())
    finally:
        loader.close()
    saved, kept = tmp_path / "response.json", tmp_path / "report.json"
    saved.write_text(json.dumps(response_data(request, response)), encoding="utf-8")
    file = ["--model.path", str(path), "--threads", "1"]
    wallet = Wallet("validator", path=str(tmp_path))
    wallet.create_new_coldkey(use_password=False, suppress=True).create_new_hotkey(use_password=False, suppress=True)
    signing = ["--wallet", "validator", "--wallet-path", str(tmp_path)]
    proven = CliRunner().invoke(cli, ["prove", str(saved), "--report", str(kept), *signing, *file])
    assert proven.exit_code == 0, proven.output
    report = read_report(kept.read_bytes())
    assert report.hotkey == wallet.hotkey.ss58_address and str(report.hotkey) in proven.stderr
    layout = EngineSettings(n_ctx=1024, n_batch=1024, n_ubatch=1024, n_threads=1, mapped=True)
    with Prover(path, layout) as other:
        assert other.sha256 == report.model_sha256
        asked = [(one.request, one.response, one.seed) for one in report.answers]
        assert [agreement(report.answers[at].verdict, ours) for at, ours in other.prove_all(asked)] == ["agrees"]

    unsigned = spell(report.model_copy(update={"hotkey": None, "signature": None}))  # only the replay tells
    lie = unsigned.replace(b'"status":"proven"', b'"status":"refuted"')
    checked = CliRunner().invoke(cli, ["verify-report", "-", *file], input=lie)
    assert checked.exit_code == 1 and "CONTRADICTS" in checked.output
