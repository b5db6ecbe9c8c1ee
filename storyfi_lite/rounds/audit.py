"""Draws the answers of a round that are replayed, and replays them. It knows hotkeys, and no scores.

A replay costs about a third of a generation, so there is a budget: an answer's chance to be drawn grows with what a lie would
gain and with how little is known of the miner. Nobody can foresee who is drawn. A replay needs the claimed file: one of the
registry's that was pulled, or one that the operator names.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from storyfi_lite.errors import BadInput, LiteError
from storyfi_lite.models.digest import file_sha256
from storyfi_lite.models.registry import GGUFFile, ModelSpec, Registry
from storyfi_lite.models.store import Store
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator import Evidence, Prover, RewardPolicy, Verdict
from storyfi_lite.validator.proof import claiming
from storyfi_lite.validator.verdict import NO_PROOF

log = logging.getLogger(__name__)

WRITERS_NAMED = 2  # of a miner's refutations in its window


@dataclass(frozen=True)
class KnownFile:
    """Describes a file to replay with. `sha256`: of a split file, the first part's, as a miner's header has it."""

    sha256: str
    path: Path
    spec: ModelSpec
    file: GGUFFile


@dataclass(frozen=True)
class Candidate:
    """Holds an answer that can be replayed here: it is provable, and its file is here."""

    hotkey: str
    request: StoryRequest
    response: StoryResponse
    seed: int
    gain: float  # what the claim is worth above an unproven one
    evidence: Evidence


def known_files(registry: Registry, store: Store, paths: Iterable[Path] = ()) -> dict[str, KnownFile]:
    """Return the files to replay with, by sha256. Raises BadInput if a file of `paths` is not, byte for byte, the registry's."""
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
    hotkey: str, request: StoryRequest, response: StoryResponse, seed: int, evidence: Evidence,
    policy: RewardPolicy, registry: Registry, files: Container[str],
) -> Candidate | None:  # fmt: skip
    """Return the answer as a Candidate; None if it claims no model of the registry, or a file that is not in `files` (sha256).
    A miner that names a file we lack must neither use up a draw nor be paid for its old standing."""
    model = claimed_model(registry, response)
    if response.proof is None or model is None or response.proof.model_sha256 not in files:
        return None
    worth = policy.models.get(model.key, model.multiplier)
    return Candidate(hotkey, request, response, seed, max(0.0, worth - policy.proof.unproven_multiplier), evidence)


def claimed_model(registry: Registry, response: StoryResponse) -> ModelSpec | None:
    """Return the local model of the registry that the response claims; None if it claims another or an API."""
    model = registry.get(response.model_name) if response.miner_mode == "LocalModelLoader" else None
    return model if isinstance(model, ModelSpec) else None


def choose(candidates: Sequence[Candidate], budget: int, policy: RewardPolicy, dice: random.Random) -> list[Candidate]:
    """Draw at most `budget` candidates without replacement, with chances in proportion to `weight`."""
    # Efraimidis and Spirakis (2006): the largest u^(1/w) are such a draw.
    keyed = [(dice.random() ** (1 / weight(one, policy)), at, one) for at, one in enumerate(candidates)]
    return [one for _, _, one in sorted(keyed, reverse=True)[:budget]]


def weight(one: Candidate, policy: RewardPolicy) -> float:
    """Weigh a candidate for the draw: higher for a miner that lacks proofs or was refuted before. Never 0, because a claim that
    gains nothing today may gain something tomorrow."""
    missing = max(0, policy.proof.proven_needed - one.evidence.statuses.count("proven"))
    return (0.1 + one.gain) * (1 + missing + 2 * one.evidence.statuses.count("refuted"))


class Auditor:
    """Replays answers, a file's together, with one file in memory at a time. Call `prove` from one thread; `close` may be called
    from another.

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

    def prove(self, chosen: Sequence[Candidate]) -> dict[str, Verdict]:
        """Return the verdicts by hotkey. An answer that could not be replayed for our own reasons is left out and logged."""
        by_file: dict[str, list[Candidate]] = {}
        found: dict[str, Verdict] = {}
        for one in chosen:
            file = self._file(one)
            claimed = claimed_model(self._registry, one.response)
            assert claimed is not None
            if file.spec.key == claimed.key:
                by_file.setdefault(file.sha256, []).append(one)
            else:
                reason = f"{claimed.key} is claimed, the header names a file of {file.spec.key}"
                found[one.hotkey] = Verdict("refuted", reason, model=claimed.key)
        with self._in_use:
            for sha256, candidates in by_file.items():
                found |= self._prove(self.files[sha256], candidates)
            by_replay = {hotkey for hotkey, one in found.items() if one.status == "refuted" and one.positions > 0}
            # only a miner's first ones: to load other files costs more than a replay
            refuted = [one for one in chosen if one.hotkey in by_replay
                       and one.evidence.statuses.count("refuted") < WRITERS_NAMED]  # fmt: skip
            return found | self._writers(refuted, found)

    def _writers(self, refuted: list[Candidate], found: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """Score what was refuted against the other files that are here with the same vocabulary; return the verdicts that now name
        the file that wrote the answer, of several the one that explains it best."""
        best: dict[str, Verdict] = {}
        named: dict[str, Verdict] = {}
        for file in self.files.values() if refuted else ():
            size = file.spec.architecture.vocab_size
            others = [replace(one, response=claiming(one.response, file.sha256)) for one in refuted
                      if (own := self._file(one)) is not file and own.spec.architecture.vocab_size == size]  # fmt: skip
            for hotkey, verdict in self._prove(file, others).items() if others else ():
                if verdict.status == "proven" and verdict.evidence > best.get(hotkey, NO_PROOF).evidence:
                    best[hotkey] = verdict
                    model = "the same model" if file.spec.key == found[hotkey].model else file.spec.key
                    named[hotkey] = found[hotkey].written(f"{file.file.quant} of {model}", file.spec.key)
        return named

    def _file(self, one: Candidate) -> KnownFile:
        assert one.response.proof is not None  # or it were no Candidate
        return self.files[one.response.proof.model_sha256]

    def _prove(self, file: KnownFile, candidates: Sequence[Candidate]) -> dict[str, Verdict]:
        """Replay all answers in one pass over the file; where one of them fails, the others one by one."""
        found: dict[str, Verdict] = {}
        if self._stopped:
            return found
        try:
            if self._open is None or self._open[0] != file.sha256:
                self._close_file()
                self._open = (file.sha256, self._open_prover(file))
            asked = [(one.request, one.response, one.seed) for one in candidates]
            for at, verdict in self._open[1].prove_all(asked):
                found[candidates[at].hotkey] = replace(verdict, model=file.spec.key)
                if self._stopped:
                    break
        except LiteError as error:
            if len(candidates) == 1 or self._open is None:
                log.warning("cannot replay the answer of %s: %s", ", ".join(one.hotkey for one in candidates), error)
                return found
            for one in candidates:
                if one.hotkey not in found:
                    found |= self._prove(file, [one])
        return found

    def close(self) -> None:
        """Wait for the replay in hand, start no other, and free the file's memory."""
        self._stopped = True
        with self._in_use:
            self._close_file()

    def _close_file(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None
