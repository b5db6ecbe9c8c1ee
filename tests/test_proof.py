"""A validator that has the file tells its answers from all others; what is claimed wrongly is refuted before a replay."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import make_gguf
from storyfi_lite import tasks
from storyfi_lite.engine.replay import Replay
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import BadInput
from storyfi_lite.loaders.base import Job
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.miner.service import to_response
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator.calibration import calibrate, calibration_of, rate_bound, save_calibration
from storyfi_lite.validator.proof import Prover
from storyfi_lite.validator.verdict import COARSER, DECIDED_NATS, behind, evidence, judge, noise_of

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
        verdict = prover.prove(request, response, SEED)
    assert verdict.status == "proven", verdict


@pytest.fixture(scope="module")
def margins_alone(prover: Prover, honest: StoryResponse) -> list[float]:
    """Of the honest answer, and as if it were one under another seed."""
    return [prover.replay(REQUEST, one).mean_margin for one in (honest, changed(honest, {"seed": SEED + 1}))]


@pytest.mark.parametrize(("width", "n_contexts"), [(1024, 1), (512, 2), (256, 5)])
def test_answers_replayed_together_from_the_file_are_judged_as_if_alone(
    margins_alone: list[float], honest: StoryResponse, small_model_path: Path, width: int, n_contexts: int
) -> None:
    """An honest answer, one under another seed, one cut off, the weights mapped: in one batch over one prompt, in two batches that
    go through the layers in step, and in five where each has too little room."""
    assert honest.tokens is not None
    other, cut = changed(honest, {"seed": SEED + 1}), changed(honest, tokens=honest.tokens[:-3])
    layout = EngineSettings(n_ctx=width, n_batch=width, n_ubatch=width, n_threads=1, mapped=True, n_contexts=n_contexts)
    with Prover(small_model_path, layout) as mapped:
        found = dict(mapped.replay_all([(REQUEST, one) for one in (honest, other, cut, honest)]))
    for one in (found[0], found[3]):
        assert one.refuted is None and one.mean_margin == pytest.approx(margins_alone[0], abs=0.01)
    assert found[1].mean_margin == pytest.approx(margins_alone[1], abs=0.1)
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
    assert verdict.evidence > DECIDED_NATS and verdict.match_rate > 0.9 and verdict.positions > 100


def test_only_an_answer_that_is_proven_says_how_the_file_s_scores_stray(
    honest: StoryResponse, small_model_path: Path
) -> None:
    """Or the first stranger's gibberish, which shows twice the noise, would let his next answers pass."""
    foreign = changed(honest, {"seed": SEED + 1})
    with Prover(small_model_path, EngineSettings(n_threads=1)) as prover:
        assert prover.prove(REQUEST, foreign, SEED + 1).status == "refuted" and not prover.noise
        assert prover.prove(REQUEST, honest, SEED).status == "proven" and prover.noise


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
    turns = tasks.get("blueprint").script(REQUEST).texts(json.loads(text))
    tokens = [token for turn in turns for token in (*words.tokenize(turn, special=False), words.end)]
    edited = changed(honest, {"max_tokens": 2_000}, tokens=tokens, output_text=text)
    assert prover.prove(REQUEST, edited, SEED).status == "refuted"


def test_without_a_header_nothing_is_proven(prover: Prover, honest: StoryResponse) -> None:
    verdict = prover.prove(REQUEST, honest.model_copy(update={"proof": None}), SEED)
    assert verdict.status == "inconclusive" and "carries no proof" in verdict.reason


def test_parameters_that_leave_no_choice_prove_nothing(prover: Prover, honest: StoryResponse) -> None:
    assert prover.prove(REQUEST, changed(honest, {"temperature": 0.0}), SEED).status == "inconclusive"


# --- judging -------------------------------------------------------------------------------------------------------


NOISE = 0.2


def written(noise: float, count: int, dice: random.Random) -> Replay:
    """An answer of a file whose scores stray so far from the replay's; the leads are spread as stories' are."""
    leads = []
    for _ in range(count):
        lead = dice.expovariate(0.5)
        leads.append(-lead if dice.random() < behind(lead, noise) else lead)
    return Replay(tuple(leads))


def verdicts(noise: float, count: int, answers: int) -> Counter[str]:
    dice = random.Random(1)
    return Counter(judge(written(noise, count, dice), NOISE).status for _ in range(answers))


def test_the_file_itself_is_proven_and_a_coarser_one_refuted() -> None:
    assert verdicts(NOISE, 150, 300)["proven"] > 290
    assert verdicts(COARSER * NOISE, 150, 300)["proven"] == 0
    assert verdicts(2 * COARSER * NOISE, 150, 300)["refuted"] == 300


def test_an_honest_answer_is_refuted_once_in_a_thousand_at_most_whatever_its_length() -> None:
    """Wald's bound; on kernels that stray half as far again it still holds."""
    for noise, count in ((NOISE, 5), (NOISE, 40), (1.5 * NOISE, 150)):
        assert verdicts(noise, count, 1000)["refuted"] <= 1


def test_a_few_positions_decide_nothing() -> None:
    assert verdicts(NOISE, 5, 300) == {"inconclusive": 300} == verdicts(COARSER * NOISE, 2, 300)
    assert judge(Replay(()), NOISE).status == "inconclusive"


def test_tokens_that_the_rule_cannot_write_are_refuted() -> None:
    assert judge(Replay((9.0,) * 200, "token 3"), NOISE).status == "refuted"


def test_positions_without_a_choice_are_no_evidence() -> None:
    assert judge(Replay((math.inf,) * 500), NOISE).positions == 0


def test_evidence_of_several_answers_adds_up() -> None:
    assert evidence((0.5, -0.1, 2.0), NOISE) == pytest.approx(evidence((0.5,), NOISE) + evidence((-0.1, 2.0), NOISE))
    assert evidence((2.0,), NOISE) > 0 > evidence((-2.0,), NOISE)


def test_half_of_the_differences_are_larger_than_the_noise() -> None:
    one, other = Replay((1.0, 2.0, math.inf, 4.0)), Replay((1.1, 2.3, 3.0, 3.8))
    assert noise_of([(one, other)]) == pytest.approx(0.2)


def pairs(count: int) -> list[tuple[Replay, Replay]]:
    dice = random.Random(2)
    honest = [written(NOISE, 200, dice) for _ in range(count)]
    return [(one, Replay(tuple(lead + dice.choice((0.5, 1.0, 2.0)) * NOISE for lead in one.leads))) for one in honest]


def test_a_calibration_comes_from_honest_replays_and_is_kept(tmp_path: Path) -> None:
    made = calibrate("ab" * 32, pairs(9), "llama-cpp-python 1")
    assert made.noise == pytest.approx(NOISE) and (made.answers, made.positions) == (9, 1800)
    assert (made.proven, made.refuted) == (9, 0)
    path = save_calibration(made, tmp_path / "calibrations.yaml")
    assert calibration_of("ab" * 32, path) == made
    assert calibration_of("cd" * 32, path) is None
    path.write_text("ab: {mean: 1}")
    with pytest.raises(BadInput, match="delete it"):
        calibration_of("ab", path)


def test_too_few_answers_make_no_calibration() -> None:
    with pytest.raises(BadInput, match="at least 6"):
        calibrate("ab", pairs(5), "x")


def test_the_bound_on_a_rate_is_clopper_and_pearsons() -> None:
    """0 of n: 1 - 0.05 ** (1/n); the rule of three. 2 of 100: 6.16 % (tables)."""
    assert rate_bound(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert rate_bound(0, 3000) < 0.001
    assert rate_bound(2, 100) == pytest.approx(0.0616, abs=1e-4)
