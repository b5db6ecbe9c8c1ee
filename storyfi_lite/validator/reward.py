"""Turns scores into rewards: what a claim is worth, pooled evidence, moving averages, weights. The policy is a file.

    mission   0.5 for an API; else the registry's figure, 1.0 for a model that it does not know; times 1.1 with 80 GB of
              GPU memory or more. Believes every claim.
    proof     the default. Refuted: 0. Not proven: 0.5. Proven: the registry's figure for the model that the replay proved.
              The 1.1 is not paid, because no replay shows how much memory a card has.

Knows neither llama.cpp nor the chain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storyfi_lite.errors import BadInput
from storyfi_lite.models.registry import ApiModel, ModelSpec, Registry, load_registry
from storyfi_lite.models.yaml_lines import read_yaml
from storyfi_lite.validator.score import Score
from storyfi_lite.validator.verdict import Status, Verdict

DEFAULT_POLICY = Path(__file__).with_name("reward_policy.yaml")


class ClaimedModel(Protocol):
    """Lists what a response claims of its model; a StoryResponse has these fields."""

    @property
    def miner_mode(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def gpu_memory_gb(self) -> float: ...


@dataclass(frozen=True)
class Reward:
    """Holds what one answer earned: `final` = `base` × `multiplier`. `reason` says what the multiplier rests on."""

    base: float
    multiplier: float
    final: float
    reason: str

    def log_line(self, hotkey: str) -> str:
        """Write the one log line that the network asks for.

        >>> Reward(81.2, 1.32, 81.2 * 1.32, "").log_line("5F3sa2TJAWMqDhXG6jhV4N8ko9SxwGy8TpaNS1repo5EYjQX")
        'Miner 5F3sa2TJ: Base=81.2, Multiplier=1.32x, Final=107.2'
        """
        return f"Miner {hotkey[:8]}: Base={self.base:.1f}, Multiplier={self.multiplier:.2f}x, Final={self.final:.1f}"


# --- the policy --------------------------------------------------------------------------------------------------


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LargeGpu(_Section):
    min_gb: float = Field(gt=0)
    factor: float = Field(ge=0)


class ProofPolicy(_Section):
    refuted_multiplier: float = Field(ge=0)
    unproven_multiplier: float = Field(ge=0)
    pay_large_gpu: bool
    pay_other_quantization: bool
    window: int = Field(ge=1)
    proven_needed: int = Field(ge=1)
    refuted_needed: int = Field(ge=1)


class RewardPolicy(_Section):
    """Holds reward_policy.yaml; comments in that file say what each key means."""

    rule: Literal["proof", "mission"]
    api_multiplier: float = Field(ge=0)
    unknown_model_multiplier: float = Field(ge=0)
    large_gpu: LargeGpu
    proof: ProofPolicy
    average_alpha: float = Field(gt=0, le=1)
    models: dict[str, float]


def load_policy(path: Path = DEFAULT_POLICY, registry: Registry | None = None) -> RewardPolicy:
    """Read a policy. Raises BadInput with the file, the key and what is wrong, also for a key or model that does not exist."""
    try:
        policy = RewardPolicy.model_validate(read_yaml(path)[1])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        extra = first["type"] == "extra_forbidden"
        raise BadInput(f"{path}: {key}{' is not a key of a reward policy' if extra else ': ' + first['msg']}") from None
    registry = registry or _default_registry()
    for name, multiplier in policy.models.items():
        if name not in registry.keys or multiplier < 0:
            raise BadInput(f"{path}: models.{name}: not a key of models.yaml, or below 0")
    return policy


@lru_cache(maxsize=1)
def _default_registry() -> Registry:
    return load_registry()


@lru_cache(maxsize=1)
def _default_policy() -> RewardPolicy:
    return load_policy()


# --- the reward --------------------------------------------------------------------------------------------------


def reward(
    score: Score,
    claim: ClaimedModel,
    proof: Verdict | None = None,
    policy: RewardPolicy | None = None,
    registry: Registry | None = None,
) -> Reward:
    """Compute what one answer earns. `proof`: of this answer, or the miner's `standing`; None if nothing was replayed. The
    policy and registry default to the packaged ones.

    >>> from types import SimpleNamespace
    >>> claim = SimpleNamespace(miner_mode="LocalModelLoader", model_name="yi-34b", gpu_memory_gb=80.0)
    >>> reward(Score(80.0, ()), claim)
    Reward(base=80.0, multiplier=0.5, final=40.0, reason='yi-34b is not proven')
    >>> reward(Score(80.0, ()), claim, Verdict("proven", model="yi-34b"))
    Reward(base=80.0, multiplier=1.2, final=96.0, reason='yi-34b is proven; its multiplier is 1.2')
    """
    policy, registry = policy or _default_policy(), registry or _default_registry()
    if claim.miner_mode != "LocalModelLoader":
        multiplier, reason = policy.api_multiplier, "API mode"
    elif policy.rule == "mission":
        multiplier, reason = _by_mission(claim, policy, registry)
    else:
        multiplier, reason = _by_proof(claim, proof, policy, registry)
    return Reward(score.total, multiplier, score.total * multiplier, reason)


def _by_mission(claim: ClaimedModel, policy: RewardPolicy, registry: Registry) -> tuple[float, str]:
    model = registry.get(claim.model_name)
    figure = policy.unknown_model_multiplier if model is None else policy.models.get(model.key, model.multiplier)
    name = f"{claim.model_name:.60} claimed{'' if model else ', not in the registry'}"
    if isinstance(model, ApiModel) or not _is_large(claim, policy):
        return figure, name
    return figure * policy.large_gpu.factor, f"{name}, with {claim.gpu_memory_gb:g} GB"


def _by_proof(
    claim: ClaimedModel, proof: Verdict | None, policy: RewardPolicy, registry: Registry
) -> tuple[float, str]:
    model, name = registry.get(claim.model_name), f"{claim.model_name:.60}"
    if proof is not None and proof.status == "refuted":
        return policy.proof.refuted_multiplier, f"{name} is refuted"
    if proof is None or proof.status == "inconclusive" or not isinstance(model, ModelSpec):
        return policy.proof.unproven_multiplier, f"{name} is not proven"
    if registry.get(proof.model) is not model:
        return policy.proof.refuted_multiplier, f"{name} is claimed, the replay proves {proof.model:.60}"
    figure = policy.models.get(model.key, model.multiplier)
    if policy.proof.pay_large_gpu and _is_large(claim, policy):
        return figure * policy.large_gpu.factor, f"{name} is proven; {claim.gpu_memory_gb:g} GB are believed"
    return figure, f"{name} is proven; its multiplier is {figure:g}"


def _is_large(claim: ClaimedModel, policy: RewardPolicy) -> bool:
    return math.isfinite(claim.gpu_memory_gb) and claim.gpu_memory_gb >= policy.large_gpu.min_gb


# --- over time ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """Holds one miner's newest verdicts, oldest first and without inconclusive ones, and the model that they are about."""

    model: str = ""
    statuses: tuple[Status, ...] = ()


def pool(evidence: Evidence, proof: Verdict, policy: RewardPolicy) -> Evidence:
    """Add one verdict to the evidence. When the model changes, proofs of the old one are dropped; refutations stay, or a miner
    could clear its record by claiming another model. An inconclusive verdict is not kept: it would push out the others. With
    `pay_other_quantization`, what another file of the claimed model wrote counts as a proof of that model."""
    if proof.status == "inconclusive":
        return evidence
    if policy.proof.pay_other_quantization and proof.written_by == proof.model:
        proof = replace(proof, status="proven")
    kept = tuple(one for one in evidence.statuses if proof.model == evidence.model or one == "refuted")
    return Evidence(proof.model, (*kept, proof.status)[-policy.proof.window :])


def standing(evidence: Evidence, model: str, policy: RewardPolicy) -> Verdict:
    """Judge a miner that now claims `model` (a registry key) by its pooled verdicts. Several are needed either way;
    refutations outweigh proofs; proofs of another model count as nothing."""
    if evidence.statuses.count("refuted") >= policy.proof.refuted_needed:
        return Verdict("refuted", model=model)
    proven = evidence.statuses.count("proven") >= policy.proof.proven_needed
    return Verdict("proven" if proven and model == evidence.model else "inconclusive", model=model)


def moving_average(average: float, final: float, policy: RewardPolicy) -> float:
    """Return the average after one more round. A miner that did not answer has `final` 0; a new miner starts from `average` 0,
    so that a fresh hotkey gains nothing."""
    return average + policy.average_alpha * (final - average)


def weights(averages: Mapping[int, float]) -> dict[int, float]:
    """Return each uid's share of 1, without uids that earned nothing; empty if nobody earned anything: then set no weights.
    Raises BadInput for a number that is negative or not finite."""
    for uid, average in averages.items():
        if not math.isfinite(average) or average < 0:
            raise BadInput(f"the average of uid {uid} is {average}")
    total = math.fsum(averages.values())
    return {uid: average / total for uid, average in averages.items() if average > 0}
