"""A validator that has the file tells its answers from all others; what is claimed wrongly is refuted before a replay."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import make_gguf
from storyfi_lite import tasks
from storyfi_lite.engine.replay import Replay
from storyfi_lite.engine.rule import tokens_of
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import BadInput
from storyfi_lite.loaders.base import Job
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.miner.service import to_response
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator.proof import (
    MIN_POSITIONS,
    UNCALIBRATED,
    Calibration,
    Prover,
    calibrate,
    calibration_of,
    judge,
    rate_bound,
    save_calibration,
)

REQUEST = StoryRequest(task_type="blueprint", user_input="a lighthouse keeper who hears the sea speak")
SEED = 77


@pytest.fixture(scope="module")
def honest(small_model_path: Path) -> StoryResponse:
    """One answer, as a miner with the file gives it."""
    model = LocalModel(small_model_path, "smollm2-135m", "Q4_1", "someone", 0.5)
    loader = LocalModelLoader(model, EngineSettings(n_ctx=2048, n_threads=1))
    try:
        return to_response(loader.submit(Job(REQUEST, SEED, time.monotonic() + 300)).result())
    finally:
        loader.close()


@pytest.fixture(scope="module")
def prover(small_model_path: Path) -> Iterator[Prover]:
    with Prover(small_model_path, EngineSettings(n_threads=1)) as prover:
        yield prover


def test_a_mixture_with_experts_in_ram_is_proven(tmp_path: Path) -> None:
    """Written and replayed with the layout that a small card gets; the file is made up, llama.cpp and the rule are real."""
    path = tmp_path / "mixture.gguf"
    make_gguf.write(path, replace(make_gguf.SMALL["mixtral"], layers=2), False, "Q8_0", None)
    layout = EngineSettings(n_ctx=4096, n_threads=1, experts_in_ram=1)
    request = REQUEST.model_copy(update={"max_tokens": 1400})
    loader = LocalModelLoader(LocalModel(path, "mixture", "Q8_0", "someone", 1.0), layout)
    try:
        response = to_response(loader.submit(Job(request, SEED, time.monotonic() + 300)).result())
    finally:
        loader.close()
    with Prover(path, layout) as prover:
        assert prover.prove(request, response, SEED).status == "proven"


def test_answers_replayed_in_one_batch_from_the_file_are_judged_as_if_alone(
    prover: Prover, honest: StoryResponse, small_model_path: Path
) -> None:
    """Three sequences over one prompt, the weights mapped: an honest answer, one under another seed, one cut off."""
    assert honest.tokens is not None
    other, cut = changed(honest, {"seed": SEED + 1}), changed(honest, tokens=honest.tokens[:-3])
    layout = EngineSettings(n_ctx=1024, n_batch=1024, n_ubatch=1024, n_threads=1, mapped=True)
    with Prover(small_model_path, layout) as mapped:
        found = dict(mapped.replay_all([(REQUEST, one) for one in (honest, other, cut, honest)]))
        assert mapped._held is not None and mapped._held[0].n_ctx <= 1032  # what was planned, if that is enough
    alone = prover.replay(REQUEST, honest)
    for one in (found[0], found[3]):
        assert one.refuted is None and one.mean_margin == pytest.approx(alone.mean_margin, abs=0.01)
    assert found[1].mean_margin == pytest.approx(prover.replay(REQUEST, other).mean_margin, abs=0.1)
    assert found[2].refuted


def changed(response: StoryResponse, proof: dict[str, Any] | None = None, **fields: Any) -> StoryResponse:
    assert response.proof is not None
    header = response.proof.model_copy(update=proof or {})
    if "output_text" in fields:
        fields = {"output_data": json.loads(fields["output_text"]), **fields}
    return response.model_copy(update={"proof": header, **fields})


def test_an_honest_answer_is_proven(prover: Prover, honest: StoryResponse) -> None:
    verdict = prover.prove(REQUEST, honest, SEED)
    assert verdict.status == "proven", verdict
    assert verdict.positions >= MIN_POSITIONS and verdict.match_rate > 0.9


@pytest.mark.parametrize(
    ("proof", "says"),
    [
        ({"seed": SEED + 1}, "the seed"),
        ({"model_sha256": "0" * 64}, "the file's sha256"),
        ({"prompt_sha256": "0" * 64}, "the prompt"),
        ({"prompt_version": "blueprint/1"}, "the script"),
        ({"grammar_sha256": "0" * 64}, "the grammar"),
        ({"sampler": "top-k/1"}, "the sampler"),
        ({"max_tokens": 10}, "budget"),
    ],
)
def test_a_wrong_claim_is_refuted_without_a_replay(
    prover: Prover, honest: StoryResponse, proof: Any, says: str
) -> None:
    verdict = prover.prove(REQUEST, changed(honest, proof), SEED)
    assert verdict.status == "refuted" and says in verdict.reason and verdict.positions == 0


def test_an_answer_to_another_request_is_refuted(prover: Prover, honest: StoryResponse) -> None:
    other = REQUEST.model_copy(update={"user_input": "a lighthouse keeper who hears the sea sing"})
    assert prover.prove(other, honest, SEED).status == "refuted"


def test_text_that_the_tokens_do_not_spell_is_refuted(prover: Prover, honest: StoryResponse) -> None:
    assert honest.output_text is not None
    pasted = changed(honest, output_text=honest.output_text.replace("e", "a", 1))
    assert "do not spell" in prover.prove(REQUEST, pasted, SEED).reason


def test_data_that_the_text_does_not_say_is_refuted(prover: Prover, honest: StoryResponse) -> None:
    """Validators of protocol 3.2 read `output_data`, which no token spells."""
    pasted = changed(honest, output_data={**honest.output_data, "title": "Another"})
    assert "output_data differ" in prover.prove(REQUEST, pasted, SEED).reason


def test_a_prover_holds_one_context_whatever_is_claimed(prover: Prover) -> None:
    for kv_type, tokens in (("q8_0", 100), ("f16", 3_000), ("f16", 100)):
        held = prover._replayer(kv_type, tokens)
        assert prover._held is not None and prover._held[0].kv_type == kv_type and prover._held[2] is held
    assert prover._held is not None and prover._held[0].n_ctx == 4_096 and prover._replayer("f16", 3_000) is held


def test_another_seed_claimed_and_asked_for_is_refuted_by_the_replay(prover: Prover, honest: StoryResponse) -> None:
    """As if a text made under one seed were passed off under the one that was asked for."""
    verdict = prover.prove(REQUEST, changed(honest, {"seed": SEED + 1}), SEED + 1)
    assert verdict.status == "refuted" and verdict.mean_margin > 0.3


def test_an_edited_token_is_refuted(prover: Prover, honest: StoryResponse) -> None:
    """A word put in place of the chosen one, all claims made to fit."""
    assert honest.tokens is not None
    words = prover.model.vocabulary
    assert honest.output_text is not None
    text = honest.output_text.replace(" the ", " thy ")
    tokens = tokens_of(tasks.get("blueprint").script(REQUEST), words, json.loads(text))
    edited = changed(honest, {"max_tokens": 2_000}, tokens=tokens, output_text=text)
    assert prover.prove(REQUEST, edited, SEED).status == "refuted"


def test_without_a_header_nothing_is_proven(prover: Prover, honest: StoryResponse) -> None:
    verdict = prover.prove(REQUEST, honest.model_copy(update={"proof": None}), SEED)
    assert verdict.status == "inconclusive" and "carries no proof" in verdict.reason


def test_parameters_that_leave_no_choice_prove_nothing(prover: Prover, honest: StoryResponse) -> None:
    assert prover.prove(REQUEST, changed(honest, {"temperature": 0.0}), SEED).status == "inconclusive"


# --- judging -------------------------------------------------------------------------------------------------------


def of(margin: float, count: int, refuted: str | None = None) -> Replay:
    return Replay((-margin,) * count, refuted)


def test_the_verdict_follows_the_mean_and_the_number_of_positions() -> None:
    low, high = UNCALIBRATED.proven_to(200), UNCALIBRATED.refuted_above(200)
    assert low == UNCALIBRATED.limit(200, 3.1) and 0.0362 < high < 0.0598  # other CPU, nearest impostor (docs/proof.md)
    assert judge(of(low * 0.99, 200), UNCALIBRATED).status == "proven"
    assert judge(of((low + high) / 2, 200), UNCALIBRATED).status == "inconclusive"
    assert judge(of(high * 1.01, 200), UNCALIBRATED).status == "refuted"
    assert judge(of(0.0, 200, "token 3"), UNCALIBRATED).status == "refuted"
    assert UNCALIBRATED.limit(100, 3.1) > UNCALIBRATED.limit(400, 3.1)


@pytest.mark.parametrize(("margin", "status"), [(0.0, "inconclusive"), (0.08, "inconclusive"), (3.4, "refuted")])
def test_a_short_answer_is_never_proven_and_refuted_only_if_far_off(margin: float, status: str) -> None:
    """0.08 nats in 60 positions is the farthest that an honest text was seen; 3.4 is a text that an API wrote."""
    verdict = judge(of(margin, 60), UNCALIBRATED)
    assert verdict.status == status and str(MIN_POSITIONS) in verdict.reason


def test_no_free_position_tells_nothing() -> None:
    assert judge(Replay(()), UNCALIBRATED).status == "inconclusive"


def test_a_calibration_comes_from_honest_replays_and_is_kept(tmp_path: Path) -> None:
    replays = [of(0.004 + 0.001 * (number % 3), 200 + number) for number in range(9)]
    made = calibrate("ab" * 32, replays, "llama-cpp-python 1")
    assert made.mean == pytest.approx(0.005, abs=1e-4) and made.answers == 9 and made.positions == 1836
    path = save_calibration(made, tmp_path / "calibrations.yaml")
    assert calibration_of("ab" * 32, path) == made
    assert calibration_of("cd" * 32, path).model_sha256 == ""
    path.write_text("ab: {mean: 1}")
    with pytest.raises(BadInput, match="storyfi-lite calibrate"):
        calibration_of("ab", path)


def test_too_few_answers_make_no_calibration() -> None:
    with pytest.raises(BadInput, match="at least 6"):
        calibrate("ab", [of(0.005, 200)] * 5, "x")
    assert isinstance(calibrate("ab", [of(0.005, 200)] * 6, "x"), Calibration)


def test_each_answer_of_a_calibration_is_judged_by_the_others() -> None:
    alike = [of(0.004 + 0.001 * (number % 3), 200) for number in range(20)]
    assert calibrate("ab", alike, "x").refuted == 0
    assert calibrate("ab", [*alike, of(0.5, 200)], "x").refuted == 1


def test_the_bound_on_a_rate_is_clopper_and_pearsons() -> None:
    """0 of n: 1 - 0.05 ** (1/n); the rule of three. 2 of 100: 6.16 % (tables)."""
    assert rate_bound(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert rate_bound(0, 3000) < 0.001
    assert rate_bound(2, 100) == pytest.approx(0.0616, abs=1e-4)
