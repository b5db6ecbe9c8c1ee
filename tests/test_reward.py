"""Rewards: the mission's rule and the proof rule on worked examples, the policy file, evidence, averages and weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from storyfi_lite.errors import BadInput
from storyfi_lite.models.registry import load_registry
from storyfi_lite.protocol.messages import StoryResponse
from storyfi_lite.validator import (
    Evidence,
    RewardPolicy,
    Score,
    Verdict,
    load_policy,
    moving_average,
    pool,
    reward,
    standing,
    weights,
)
from storyfi_lite.validator.reward import DEFAULT_POLICY
from storyfi_lite.validator.verdict import Status
from tests.answers import ENGLISH, as_bytes

HOTKEY = "5F3sa2TJAWMqDhXG6jhV4N8ko9SxwGy8TpaNS1repo5EYjQX"


@dataclass(frozen=True)
class ClaimedModel:
    model_name: str
    gpu_memory_gb: float = 24.0
    miner_mode: str = "LocalModelLoader"


def changed(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(DEFAULT_POLICY.read_text()), **changes}))
    return path


@pytest.fixture
def mission(tmp_path: Path) -> RewardPolicy:
    return load_policy(changed(tmp_path, rule="mission"))


DEFAULT = load_policy()

MISSION_TABLE = [
    ("llama-3-70b", 1.5),
    ("mixtral-8x7b", 1.3),
    ("qwen-72b", 1.4),
    ("llama-3-8b", 1.0),
    ("mistral-7b", 1.0),
    ("yi-34b", 1.2),
    ("phi-3-medium", 0.8),
    ("gemma-7b", 0.9),
]


@pytest.mark.parametrize(("name", "multiplier"), [*MISSION_TABLE, ("a-model-of-my-own", 1.0), ("smollm2-135m", 0.5)])
@pytest.mark.parametrize(("gpu_memory_gb", "factor"), [(24.0, 1.0), (79.9, 1.0), (80.0, 1.1), (192.0, 1.1)])
def test_the_missions_rule(
    mission: RewardPolicy, name: str, multiplier: float, gpu_memory_gb: float, factor: float
) -> None:
    assert reward(Score(50.0, ()), ClaimedModel(name, gpu_memory_gb), policy=mission).multiplier == pytest.approx(
        multiplier * factor
    )


@pytest.mark.parametrize("name", ["gemini-2.5-flash", "gpt-4-turbo", "llama-3-70b", "anything"])
def test_the_missions_rule_for_an_api(mission: RewardPolicy, name: str) -> None:
    given = reward(Score(81.2, ()), ClaimedModel(name, 96.0, "APIFallbackLoader"), policy=mission)
    assert given.multiplier == 0.5 and given.final == pytest.approx(40.6)


def test_the_missions_log_line(mission: RewardPolicy) -> None:
    given = reward(Score(81.2, ()), ClaimedModel("yi-34b-chat", 80.0), policy=mission)
    assert given.log_line(HOTKEY) == "Miner 5F3sa2TJ: Base=81.2, Multiplier=1.32x, Final=107.2"


def test_an_api_model_run_locally_is_no_local_model(mission: RewardPolicy) -> None:
    assert reward(Score(50.0, ()), ClaimedModel("gpt-4-turbo", 96.0), policy=mission).multiplier == 0.5


@pytest.mark.parametrize("memory", [float("nan"), float("inf"), -1.0])
def test_memory_that_no_card_has_pays_nothing(mission: RewardPolicy, memory: float) -> None:
    assert reward(Score(50.0, ()), ClaimedModel("yi-34b", memory), policy=mission).multiplier == 1.2


@pytest.mark.parametrize(
    ("claim", "proof", "multiplier", "says"),
    [
        (ClaimedModel("llama-3-70b"), None, 0.5, "not proven"),
        (ClaimedModel("llama-3-70b"), Verdict("inconclusive", model="llama-3-70b"), 0.5, "not proven"),
        (ClaimedModel("llama-3-70b"), Verdict("proven", model="llama-3-70b"), 1.5, "is proven"),
        (
            ClaimedModel("meta-llama/Meta-Llama-3-70B-Instruct"),
            Verdict("proven", model="llama-3-70b"),
            1.5,
            "is proven",
        ),
        (
            ClaimedModel("llama-3-70b", 192.0),
            Verdict("proven", model="llama-3-70b"),
            1.5,
            "is proven",
        ),  # memory is a claim, too
        (ClaimedModel("llama-3-70b"), Verdict("refuted", model="llama-3-70b"), 0.0, "refuted"),
        (ClaimedModel("llama-3-70b"), Verdict("proven", model="llama-3-8b"), 0.0, "the replay proves llama-3-8b"),
        (ClaimedModel("gemma-7b"), Verdict("proven", model="gemma-7b"), 0.9, "is proven"),
        (ClaimedModel("a-model-of-my-own", 192.0), None, 0.5, "not proven"),
        (ClaimedModel("a-model-of-my-own"), Verdict("proven", model="a-model-of-my-own"), 0.5, "not proven"),
        (ClaimedModel("gpt-4-turbo"), Verdict("proven", model="gpt-4-turbo"), 0.5, "not proven"),
        (ClaimedModel("llama-3-70b", 96.0, "APIFallbackLoader"), None, 0.5, "API"),
        (ClaimedModel("llama-3-70b", 96.0, "something else"), Verdict("proven", model="llama-3-70b"), 0.5, "API"),
    ],
)
def test_the_proof_rule_is_the_default(
    claim: ClaimedModel, proof: Verdict | None, multiplier: float, says: str
) -> None:
    given = reward(Score(80.0, ()), claim, proof)
    assert (given.base, given.multiplier, given.final) == (80.0, multiplier, 80.0 * multiplier)
    assert says in given.reason


def test_no_lie_pays_more_than_the_truth_of_an_api() -> None:
    """Under the default policy, whatever is claimed without a proof earns what an API earns, at most."""
    names = [*load_registry().keys, "unknown", "x" * 100_000, ""]
    for name in names:
        for mode in ("LocalModelLoader", "APIFallbackLoader"):
            for memory in (0.0, 80.0, 1e300, float("inf")):
                assert reward(Score(100.0, ()), ClaimedModel(name, memory, mode)).final <= 50.0


def test_a_response_is_a_claim() -> None:
    response = StoryResponse.model_validate_json(as_bytes(ENGLISH))
    assert reward(Score(60.0, ()), response, Verdict("proven", model="llama-3-70b")).final == 90.0


# --- the policy file ---------------------------------------------------------------------------------------------


def test_an_owner_changes_the_policy(tmp_path: Path) -> None:
    proof = {**DEFAULT.proof.model_dump(), "unproven_multiplier": 0.25, "pay_large_gpu": True}
    policy = load_policy(changed(tmp_path, proof=proof, models={"llama-3-70b": 2.0}, api_multiplier=0.4))
    claim = ClaimedModel("llama-3-70b", 80.0)
    assert reward(Score(10.0, ()), claim, policy=policy).multiplier == 0.25
    assert reward(Score(10.0, ()), claim, Verdict("proven", model="llama-3-70b"), policy).multiplier == pytest.approx(
        2.2
    )
    assert reward(Score(10.0, ()), ClaimedModel("x", 0.0, "APIFallbackLoader"), policy=policy).multiplier == 0.4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bonus": 2.0}, "bonus is not a key"),
        ({"proof": {**DEFAULT.proof.model_dump(), "trust": True}}, "proof.trust is not a key"),
        ({"rule": "none"}, "rule"),
        ({"api_multiplier": -0.5}, "api_multiplier"),
        ({"api_multiplier": "half"}, "api_multiplier"),
        ({"api_multiplier": float("nan")}, "api_multiplier"),
        ({"average_alpha": 0.0}, "average_alpha"),
        ({"large_gpu": {"min_gb": 80}}, "large_gpu.factor"),
        ({"models": {"llama-4": 2.0}}, "models.llama-4"),
        ({"models": {"llama-3-8b": -1.0}}, "models.llama-3-8b"),
    ],
)
def test_a_wrong_policy_is_refused_with_the_key(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_policy(changed(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "says"),
    [("rule: [", "line"), ("rule: proof\nrule: mission\n", "twice"), ("", "policy"), ("- 1", "policy")],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        load_policy(path)


def test_a_policy_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"rule: \xff\n")
    with pytest.raises(BadInput, match="no text"):
        load_policy(path)


def test_a_key_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("rule: proof\n")
    with pytest.raises(BadInput, match="api_multiplier"):
        load_policy(path)
    with pytest.raises(BadInput, match="cannot read"):
        load_policy(tmp_path / "none.yaml")


# --- over time ---------------------------------------------------------------------------------------------------


def after(*statuses: Status, model: str = "llama-3-8b", start: Evidence | None = None) -> Evidence:
    evidence = start or Evidence()
    for status in statuses:
        evidence = pool(evidence, Verdict(status, model=model), DEFAULT)
    return evidence


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], "inconclusive"),
        (["proven"], "inconclusive"),
        (["proven"] * 2, "inconclusive"),
        (["proven"] * 3, "proven"),
        (["inconclusive"] * 20, "inconclusive"),
        (["refuted"] * 2 + ["inconclusive"] * 40, "refuted"),  # what decides nothing washes nothing away
        (["proven"] * 5 + ["refuted"], "proven"),  # one refutation in a thousand befalls the honest
        (["proven"] * 5 + ["refuted"] + ["proven"] * 5 + ["refuted"], "refuted"),
        (["refuted"] * 2 + ["proven"] * 17, "refuted"),
        (["refuted"] * 2 + ["proven"] * 19, "proven"),  # twenty checks later
        (["refuted"], "inconclusive"),
    ],
)
def test_several_answers_are_pooled_before_a_reward_changes(statuses: list[Status], expected: str) -> None:
    assert standing(after(*statuses), "llama-3-8b", DEFAULT).status == expected


def test_a_proof_of_the_small_model_says_nothing_of_the_large_one() -> None:
    evidence = after("proven", "proven", "proven", "proven")
    evidence = after("proven", model="llama-3-70b", start=evidence)
    assert standing(evidence, "llama-3-70b", DEFAULT) == Verdict("inconclusive", model="llama-3-70b")


def test_a_new_name_does_not_wash_a_miner_clean() -> None:
    evidence = after("refuted", "refuted")
    evidence = after("proven", "proven", "proven", model="gemma-7b", start=evidence)
    assert standing(evidence, "gemma-7b", DEFAULT).status == "refuted"


@pytest.mark.parametrize(("writer", "pays"), [("llama-3-70b", True), ("llama-3-8b", False), ("", False)])
def test_another_quantization_of_the_claimed_model_may_be_paid_as_that_model(writer: str, pays: bool) -> None:
    refuted = Verdict("refuted", model="llama-3-70b", written_by=writer)
    kind = DEFAULT.model_copy(update={"proof": DEFAULT.proof.model_copy(update={"pay_other_quantization": True})})
    assert pool(Evidence(), refuted, DEFAULT).statuses == ("refuted",)
    assert pool(Evidence(), refuted, kind).statuses == ("proven" if pays else "refuted",)


def test_the_standing_of_one_model_neither_pays_nor_punishes_the_claim_of_another() -> None:
    evidence = after("proven", "proven", "proven")
    small, large = (standing(evidence, model, DEFAULT) for model in ("llama-3-8b", "llama-3-70b"))
    assert reward(Score(90.0, ()), ClaimedModel("llama-3-8b"), small).final == 90.0
    assert reward(Score(90.0, ()), ClaimedModel("llama-3-70b"), large).final == 45.0


def test_a_moving_average_starts_at_nothing_and_forgets() -> None:
    average = 0.0
    for _ in range(3):
        average = moving_average(average, 100.0, DEFAULT)
    assert average == pytest.approx(100 * (1 - 0.8**3))
    assert moving_average(average, 0.0, DEFAULT) == pytest.approx(0.8 * average)


def test_weights_are_shares_of_one() -> None:
    given = weights({1: 30.0, 2: 10.0, 3: 0.0, 9: 60.0})
    assert given == {1: 0.3, 2: 0.1, 9: 0.6}


@pytest.mark.parametrize("nothing", [{}, {1: 0.0, 2: 0.0}])
def test_where_nobody_earned_anything_no_weights_are_set(nothing: dict[int, float]) -> None:
    assert weights(nothing) == {}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_number_that_is_none_stops_the_weights(wrong: float) -> None:
    with pytest.raises(BadInput, match="uid 7"):
        weights({3: 1.0, 7: wrong})
