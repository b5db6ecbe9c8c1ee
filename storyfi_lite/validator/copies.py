"""Finds near-copies of another answer in the same round and of old answers, by an index rather than pair by pair.

Two rules, both exact, both on folded text (text.py), so that order of fields, case, look-alike letters and spacing change nothing:

    bigrams    the network's rule: character-bigram Jaccard above 0.95 with an answer of the round, above 0.90 with an old
               one. Repeats count: as bare sets, long honest texts of one language are nearly alike.
    passages   this project's: at least half of the answer's passages (12 symbols) stand in one other answer. It sees what
               padding, cutting and shuffling hide from the first rule. Passages of the request are left out; those that a
               hundred old answers and more share are nobody's.

In one round, an answer that was proven under its own challenge seed is no copy. Among the rest the first received, by the
validator's clock, is the original: who can delay another's answer on the wire could turn that round, and proofs are the cure.
An old answer counts whoever gave it, its own miner too: that is a replay.

How the first rule is made fast: with totals A and B (repeats counted) and L the sum of differences, J = (A+B-L)/(A+B+L). So
J > t needs sizes within a factor of t and L < (A+B)(1-t)/(1+t). Adding bigrams up in a few bins can only shrink L, so what is
too far apart in bins is too far apart; the few that remain are compared in full. Nothing is missed (bar 32-bit hash ties).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator.text import SEPARATOR, bigrams, fold, passages, strings

ROUND_JACCARD = 0.95
HISTORY_JACCARD = 0.90
PASSAGE_SHARE = 0.5
MIN_PASSAGES = 16  # sampled; fewer say nothing
COMPARED_CHARS = 60_000  # twelve chapters with their choices; what is beyond is not looked at

_SAMPLE = 8  # one passage in so many is kept, the same ones in every answer
_BINS = 32
_COMMON = 100  # old answers that share a passage before it is a common phrase

Uint32s = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Holds what the index keeps of an answer, about 4 kB for a blueprint. `keys`: bigrams, ascending; `counts`: their repeats."""

    task: str
    hotkey: str
    keys: Uint32s
    counts: npt.NDArray[np.uint16]
    passages: Uint32s

    @cached_property
    def total(self) -> int:
        return int(self.counts.sum(dtype=np.int64))

    @cached_property
    def bins(self) -> npt.NDArray[np.int32]:
        return np.bincount(self.keys % _BINS, weights=self.counts, minlength=_BINS).astype(np.int32)

    def to_bytes(self) -> bytes:
        """Pack the fingerprint for the validator's database; `from_bytes` reads it back."""
        sizes = np.array([len(self.keys), len(self.passages)], np.uint32)
        return b"".join(part.tobytes() for part in (sizes, self.keys, self.passages, self.counts))

    @classmethod
    def from_bytes(cls, task: str, hotkey: str, data: bytes) -> Fingerprint:
        keys, kept = (int(size) for size in np.frombuffer(data, np.uint32, 2))
        words = np.frombuffer(data, np.uint32, 2 + keys + kept)
        counts = np.frombuffer(data, np.uint16, keys, offset=words.nbytes)
        return cls(task, hotkey, words[2 : 2 + keys], counts, words[2 + keys :])


@dataclass(frozen=True)
class Entry:
    """Holds one answer of a round. `received_s`: when its last byte came, by the validator's clock. `proven`: a replay showed
    that the answer was written under its own challenge seed."""

    fingerprint: Fingerprint
    received_s: float
    proven: bool = False


@dataclass(frozen=True)
class Likeness:
    """Says what an answer is like. `copy_of`: the hotkey whose answer it copies, None if it is no copy. `shared`: the
    largest share of its passages that stands in one other answer, 0 to 1."""

    copy_of: str | None
    shared: float
    saw: str


UNCOMPARED = Likeness(None, 0.0, "compared with no other answer")


def fingerprint(request: StoryRequest, data: dict[str, Any], hotkey: str) -> Fingerprint:
    """Fingerprint an answer's strings, whatever its shape. Passages of the request are not counted as the answer's own."""
    folded = fold(SEPARATOR.join(strings(data, COMPARED_CHARS)))
    keys, counts = np.unique(bigrams(folded), return_counts=True)
    given = [request.user_input, *strings([request.blueprint, request.characters, request.story_arc], COMPARED_CHARS)]
    own = np.setdiff1d(_sampled(folded), _sampled(fold(SEPARATOR.join(given))))
    return Fingerprint(request.task_type, hotkey, keys, np.minimum(counts, 2**16 - 1).astype(np.uint16), own)


def _sampled(folded: str) -> Uint32s:
    hashes = passages(folded)
    return np.unique((hashes[hashes % np.uint64(_SAMPLE) == 0] >> np.uint64(32)).astype(np.uint32))


def jaccard(one: Fingerprint, other: Fingerprint) -> float:
    """Compute the Jaccard index of two answers' bigrams, repeats counted, 0 to 1."""
    at = np.minimum(np.searchsorted(other.keys, one.keys), max(0, len(other.keys) - 1))
    if not len(one.keys) or not len(other.keys):
        return 0.0
    same = other.keys[at] == one.keys
    both = int(np.minimum(one.counts[same], other.counts[at[same]]).sum(dtype=np.int64))
    return both / (one.total + other.total - both)


class CopyIndex:
    """Compares a round with the newest `max_answers` old answers. `compare` a round first, then `add` it."""

    def __init__(self, old: Iterable[Fingerprint] = (), max_answers: int = 100_000) -> None:
        self._max_answers = max_answers
        self._settled: list[Fingerprint] = []
        self._recent: list[Fingerprint] = list(old)
        self._old: tuple[dict[str, _TaskIndex], ...] = ()
        self._settle()

    def __len__(self) -> int:
        return len(self._settled) + len(self._recent)

    def add(self, answers: Iterable[Fingerprint]) -> None:
        """Make a round's answers old ones. What is over `max_answers` is forgotten, oldest first."""
        self._recent += answers
        if len(self._recent) * 8 > self._max_answers:
            self._settle()
        else:
            self._old = (self._old[0], _by_task(self._recent))

    def _settle(self) -> None:
        """Sort all old answers anew: about 4 s for 100,000 answers, once in many rounds."""
        self._settled = (self._settled + self._recent)[-self._max_answers :]
        self._recent = []
        self._old = (_by_task(self._settled),)

    def compare(self, entries: Sequence[Entry]) -> tuple[Likeness, ...]:
        """Say what each answer of one round is like, in the order given."""
        order = sorted(
            range(len(entries)),
            key=lambda at: (not entries[at].proven, entries[at].received_s, entries[at].fingerprint.hotkey),
        )
        in_order = [entries[at].fingerprint for at in order]
        this_round = _by_task(in_order)
        found: list[Likeness] = [UNCOMPARED] * len(entries)
        for rank, at in enumerate(order):
            one = in_order[rank]
            likenesses = [this_round[one.task].nearest(one, ROUND_JACCARD, "of this round", before=rank)]
            old = (by_task[one.task] for by_task in self._old if one.task in by_task)
            likenesses += [index.nearest(one, HISTORY_JACCARD, "given before") for index in old]
            found[at] = max(likenesses, key=lambda like: (like.copy_of is not None, like.shared))
        return tuple(found)


def _by_task(answers: Sequence[Fingerprint]) -> dict[str, _TaskIndex]:
    tasks = dict.fromkeys(one.task for one in answers)
    return {task: _TaskIndex([(rank, one) for rank, one in enumerate(answers) if one.task == task]) for task in tasks}


class _TaskIndex:
    """Indexes the answers to one task, each with its rank: by size for bigrams, inverted for passages."""

    def __init__(self, ranked: Sequence[tuple[int, Fingerprint]]) -> None:
        ranked = sorted(ranked, key=lambda pair: pair[1].total)
        self._answers = [one for _, one in ranked]
        self._ranks = np.array([rank for rank, _ in ranked])
        self._totals = np.array([one.total for one in self._answers])
        self._bins = np.array([one.bins for one in self._answers])
        self._coarse = _coarse(self._bins)
        hashes = np.concatenate([one.passages for one in self._answers])
        owners = np.repeat(np.arange(len(ranked), dtype=np.uint32), [len(one.passages) for one in self._answers])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]

    def nearest(self, one: Fingerprint, threshold: float, where: str, before: int | None = None) -> Likeness:
        """Find the answer most like `one` among those ranked below `before`; None: among all, which are old answers."""
        owner, shared = self._most_shared(one, before)
        if owner is not None and shared >= PASSAGE_SHARE:
            name = self._answers[owner].hotkey
            return Likeness(name, shared, f"{shared:.0%} of its passages stand in an answer {where} by {name}")
        for at in self._alike(one, threshold, before):
            found = jaccard(one, self._answers[at])
            if found > threshold:
                name = self._answers[at].hotkey
                return Likeness(name, shared, f"bigram Jaccard {found:.3f} with an answer {where} by {name}")
        return Likeness(None, shared, f"at most {shared:.0%} of its passages stand in one answer {where}")

    def _most_shared(self, one: Fingerprint, before: int | None) -> tuple[int | None, float]:
        if len(one.passages) < MIN_PASSAGES:
            return None, 0.0
        first = np.searchsorted(self._hashes, one.passages)
        counts = np.searchsorted(self._hashes, one.passages, "right") - first
        if before is None:
            counts[counts > _COMMON] = 0
        starts = np.repeat(first - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
        owners = self._owners[starts + np.arange(len(starts))]
        if before is not None:
            owners = owners[self._ranks[owners] < before]
        if not len(owners):
            return None, 0.0
        names, shares = np.unique(owners, return_counts=True)
        best = int(np.argmax(shares))
        return int(names[best]), float(shares[best]) / len(one.passages)

    def _alike(self, one: Fingerprint, threshold: float, before: int | None) -> list[int]:
        """Return the answers that may be over the threshold, nearest first."""
        low = int(np.searchsorted(self._totals, one.total * threshold))
        high = int(np.searchsorted(self._totals, one.total / threshold, "right"))
        furthest = (1 - threshold) / (1 + threshold)  # of the two totals together
        apart, step = np.zeros((2, high - low), np.int32)
        for row, own in zip(self._coarse, _coarse(one.bins), strict=True):
            np.subtract(row[low:high], own, out=step)
            apart += np.abs(step, out=step)
        near = low + np.flatnonzero(apart <= furthest * one.total * (1 + 1 / threshold))
        if before is not None:
            near = near[self._ranks[near] < before]
        apart = np.abs(self._bins[near] - one.bins).sum(axis=1)
        kept = apart <= furthest * (self._totals[near] + one.total)
        return [int(at) for at in near[kept][np.argsort(apart[kept], kind="stable")]]


def _coarse(bins: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Add up pairs of bins; fewer bins already rule most answers out."""
    return np.ascontiguousarray((bins[..., ::2] + bins[..., 1::2]).T)
