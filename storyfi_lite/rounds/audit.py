"""Which answers of a round are replayed, and what the replays show. Knows no miner but by its hotkey, and no score.

A replay costs about as much as a third of a generation, so there is a budget: answers are drawn by what a lie would gain and by
how little is known of the miner. Nobody can tell beforehand who is drawn. Replays need the file that is claimed: those
of the registry that are here, and any that the operator names.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from storyfi_lite.errors import BadInput, LiteError
from storyfi_lite.models.registry import GGUFFile, ModelSpec, Registry
from storyfi_lite.models.store import Store
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator import Evidence, Prover, RewardPolicy, Verdict

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownFile:
    """A file that replays can be made with. `sha256`: of a split file, the first part's, as a miner's header has it."""

    sha256: str
    path: Path
    spec: ModelSpec
    file: GGUFFile


@dataclass(frozen=True)
class Candidate:
    """An answer that can be replayed here: provable, and of a file that we have."""

    hotkey: str
    request: StoryRequest
    response: StoryResponse
    seed: int
    gain: float  # what the claim is worth above an unproven one
    evidence: Evidence


def known_files(registry: Registry, store: Store, paths: Iterable[Path] = ()) -> dict[str, KnownFile]:
    """By sha256. A file of `paths` must be one of the registry's, byte for byte; raises BadInput if it is none."""
    from storyfi_lite.models.digest import file_sha256

    found = {}
    for spec, file, path in store.complete_files(registry):
        sha256 = file_sha256(path)
        found[sha256] = KnownFile(sha256, path, spec, file)
    pinned = {part.sha256: (spec, file) for spec in registry.local for file in spec.files for part in file.parts}
    for path in paths:
        sha256 = file_sha256(path)
        if sha256 not in pinned:
            raise BadInput(f"{path} is no file of models.yaml: its sha256 is {sha256}")
        found[sha256] = KnownFile(sha256, path, *pinned[sha256])
    return found


def candidate(
    hotkey: str,
    request: StoryRequest,
    response: StoryResponse,
    seed: int,
    evidence: Evidence,
    policy: RewardPolicy,
    registry: Registry,
    files: Container[str],
) -> Candidate | None:
    """None if it cannot be replayed here: no model of the registry is claimed, or the file is none of `files` (by sha256).
    Whoever names a file that is not here must not be drawn in place of others, nor live on an old standing."""
    model = claimed_model(registry, response)
    if response.proof is None or model is None or response.proof.model_sha256 not in files:
        return None
    worth = policy.models.get(model.key, model.multiplier)
    return Candidate(hotkey, request, response, seed, max(0.0, worth - policy.proof.unproven_multiplier), evidence)


def claimed_model(registry: Registry, response: StoryResponse) -> ModelSpec | None:
    if response.miner_mode != "LocalModelLoader":
        return None
    try:
        model = registry.find(response.model_name[:200])
    except BadInput:
        return None
    return model if isinstance(model, ModelSpec) else None


def choose(candidates: Sequence[Candidate], budget: int, policy: RewardPolicy, dice: random.Random) -> list[Candidate]:
    """At most `budget` of them, drawn without putting back; the chance is in proportion to `weight`."""
    # Efraimidis and Spirakis (2006): the largest u^(1/w) are such a draw.
    keyed = [(dice.random() ** (1 / weight(one, policy)), at, one) for at, one in enumerate(candidates)]
    return [one for _, _, one in sorted(keyed, reverse=True)[:budget]]


def weight(one: Candidate, policy: RewardPolicy) -> float:
    """Above 0: a claim that gains nothing today is checked too, now and then, for it may gain tomorrow. A miner that lacks
    proofs, or was refuted before, is looked at more often."""
    missing = max(0, policy.proof.proven_needed - one.evidence.statuses.count("proven"))
    return (0.1 + one.gain) * (1 + missing + 2 * one.evidence.statuses.count("refuted"))


class Auditor:
    """Replays answers, one file in memory at a time. `prove` in one thread; `close` may come from another meanwhile.

    `open_prover` loads a file with the whole layout that this machine has for it (opening/local.py)."""

    def __init__(
        self, files: Mapping[str, KnownFile], registry: Registry, open_prover: Callable[[KnownFile], Prover]
    ) -> None:
        self.files = files
        self._registry = registry
        self._open_prover = open_prover
        self._open: tuple[str, Prover] | None = None
        self._stopped = False
        self._in_use = threading.Lock()  # the file's memory, which close() frees

    def prove(self, chosen: Iterable[Candidate]) -> dict[str, Verdict]:
        """By hotkey. An answer that could not be replayed for our own reasons is left out, and the log says why."""
        with self._in_use:
            return self._prove_all(chosen)

    def _prove_all(self, chosen: Iterable[Candidate]) -> dict[str, Verdict]:
        found = {}
        for one in sorted(chosen, key=lambda one: one.response.proof.model_sha256 if one.response.proof else ""):
            if self._stopped:
                break
            try:
                found[one.hotkey] = self._prove(one)
            except LiteError as error:
                log.warning("cannot replay the answer of %s: %s", one.hotkey, error)
        return found

    def _prove(self, one: Candidate) -> Verdict:
        claimed = claimed_model(self._registry, one.response)
        assert one.response.proof is not None and claimed is not None  # or it were no Candidate
        file = self.files[one.response.proof.model_sha256]
        if file.spec.key != claimed.key:
            verdict = Verdict("refuted", f"{claimed.key} is claimed, the header names a file of {file.spec.key}")
        else:
            verdict = self._prover(file).prove(one.request, one.response, one.seed)
        return replace(verdict, model=claimed.key)

    def _prover(self, file: KnownFile) -> Prover:
        if self._open is None or self._open[0] != file.sha256:
            self._close_file()
            self._open = (file.sha256, self._open_prover(file))
        return self._open[1]

    def close(self) -> None:
        """The replay in hand is the last, and is waited for."""
        self._stopped = True
        with self._in_use:
            self._close_file()

    def _close_file(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None
