"""The local loader on the real model: what it answers is checked, proven, and about the file that was loaded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storyfi_lite import tasks
from storyfi_lite.engine.rule import ChoiceRule, answer_of
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import BadInput, Busy, EngineError
from storyfi_lite.loaders.base import Answer, Job, Written
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.protocol.messages import StoryRequest

SETTINGS = EngineSettings(n_ctx=1536, n_threads=1)


@pytest.fixture(scope="module")
def loader(small_model_path: Path) -> Iterator[LocalModelLoader]:
    model = LocalModel(small_model_path, "smollm2-135m", "Q4_1", "HuggingFaceTB/SmolLM2-135M-Instruct", 0.5)
    loader = LocalModelLoader(model, SETTINGS)
    yield loader
    loader.close()


def job(seed: int = 0, within_s: float = 120, **fields: Any) -> Job:
    request = StoryRequest(task_type="blueprint", **{"user_input": "A heist in Rome.", **fields})
    return Job(request, seed, time.monotonic() + within_s)


@pytest.fixture(scope="module")
def told() -> list[Written]:
    """What was told of `answer` while it was written."""
    return []


@pytest.fixture(scope="module")
def answer(loader: LocalModelLoader, told: list[Written]) -> Answer:
    return loader.submit(replace(job(seed=0, max_tokens=900), on_text=told.append)).result()


def test_an_answer_is_valid_and_its_header_says_all_that_a_replay_needs(
    loader: LocalModelLoader, answer: Answer, small_model_path: Path
) -> None:
    task, request = tasks.get("blueprint"), job().request
    assert task.constraint(request).check(answer.text).valid
    assert answer.tokens is not None and answer.completion_tokens == len(answer.tokens) <= 900
    assert answer_of(task.script(request), loader.engine.model.vocabulary, answer.tokens) == answer.text
    proof = answer.proof
    assert proof is not None
    assert (proof.seed, proof.max_tokens, proof.quantization, proof.kv_type) == (0, 900, "Q4_1", "f16")
    assert proof.model_sha256 == hashlib.sha256(small_model_path.read_bytes()).hexdigest()
    assert proof.grammar_sha256 == task.constraint(request).sha256
    assert proof.prompt_sha256 == loader.engine.conversation(task.script(request)).sha256


def test_what_is_told_while_it_is_written_is_the_answer(answer: Answer, told: list[Written]) -> None:
    script = tasks.get("blueprint").script(job().request)
    assert len(told) == answer.completion_tokens
    pieces = [[one for one in told if one.number == number] for number in range(1, len(script.pieces) + 1)]
    assert script.answer(["".join(one.text for one in piece) for piece in pieces]) == answer.text
    assert all(piece[-1].ends and not any(one.ends for one in piece[:-1]) for piece in pieces)
    assert [(piece[0].name, piece[0].count) for piece in pieces] == [(piece.name, 3) for piece in script.pieces]


def test_the_claim_names_the_file_that_was_loaded(answer: Answer) -> None:
    claim = answer.claim
    assert (claim.miner_mode, claim.model_name, claim.multiplier) == ("LocalModelLoader", "smollm2-135m", 0.5)
    assert claim.model_info.mode == "local"
    assert answer.proof is not None and claim.model_info.parameters["sha256"] == answer.proof.model_sha256


def test_what_fails_the_check_never_becomes_an_answer(
    loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChoiceRule, "text", '{"title":"The turns were put together wrongly"}')
    with pytest.raises(EngineError, match="invalid answer"):
        loader.submit(job(max_tokens=700)).result()


def test_a_fault_of_ours_ends_the_request_with_an_error(
    loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_answer", lambda *_: 1 / 0)
    with pytest.raises(EngineError, match="internal error"):
        loader.submit(job(max_tokens=700)).result()


def test_cancelling_an_answer_frees_the_engine(loader: LocalModelLoader) -> None:
    pending = loader.submit(job())
    while not loader.health().running:
        time.sleep(0.005)
    pending.cancel()
    with pytest.raises(CancelledError):
        pending.result()
    limit_s = time.monotonic() + 10
    while loader.health().running and time.monotonic() < limit_s:
        time.sleep(0.005)
    assert not loader.health().running


def test_refusals_pass_through(loader: LocalModelLoader, answer: Answer) -> None:
    with pytest.raises(BadInput, match="needs at least"):
        loader.submit(job(max_tokens=5))
    with pytest.raises(Busy):  # it knows by now how long an answer takes
        loader.submit(job(within_s=0.3))
    assert loader.health().alive


@pytest.mark.parametrize("cut_bytes", [20, 100_000, 50_000_000])
def test_a_truncated_file_is_refused_with_the_reason(small_model_path: Path, tmp_path: Path, cut_bytes: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(small_model_path.read_bytes()[:cut_bytes])
    with pytest.raises(BadInput, match=r"cut\.gguf.*damaged"):
        LocalModelLoader(LocalModel(path, "cut", "unknown", "unlisted", 1.0), SETTINGS)
