"""Turns a replay into a verdict: which of two files explains the tokens better, the claimed one or a coarser one. Pure functions.

Two computations of one file's scores differ a little: other kernels, another order of sums. Half of the differences are larger
than the file's `noise`. A token that the writer chose is behind in the replay only where the noise reached over its lead, so
each position says how well it fits the claimed file's noise, and how well a noise COARSER times as large, as of a coarser
quantization. The sum of the logarithms is the evidence (a likelihood ratio test; docs/proof.md has the law and its fit).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from storyfi_lite.engine.replay import Replay

Status = Literal["proven", "refuted", "inconclusive"]

COARSER = 4.0
# and at least so much: a file with little noise of its own need not be told from one with a little more
COARSER_NATS = 0.2
FAR = 15.0
# the noise between two kinds of machine, over that between two kernels of one: 1.04 and 1.22 were measured (docs/proof.md)
ELSEWHERE = 1.3
# Wald's bounds: whatever the length, an answer of the file itself reaches -log(1,000) once in 1,000 answers at most, and a
# coarser file's reaches +log(1,000) as rarely. More where the noise is not as the law says: docs/proof.md has what was found.
DECIDED_NATS = math.log(1000)


@dataclass(frozen=True)
class Verdict:
    """Says what came of the replay of an answer, or several replays of a miner (reward.standing). `reason` is for people. `evidence` in
    nats, for the claimed file where positive; `noise` and `mean_margin` in nats. `model`: the registry's key of the file that
    was replayed, which whoever replayed it knows; never the claimed name. `written_by`: the key of the model whose other file wrote
    a refuted answer, if that was found."""

    status: Status
    reason: str = ""
    evidence: float = 0.0
    mean_margin: float = 0.0
    match_rate: float = 0.0
    positions: int = 0
    noise: float = 0.0
    model: str = ""
    written_by: str = ""

    def written(self, name: str, key: str = "") -> Verdict:
        """Return this refutation with the name of the file that was found to have written the answer, and its model's key."""
        return replace(self, reason=f"written by {name}; {self.reason}", written_by=key)


NO_PROOF = Verdict("inconclusive", "the answer carries no proof: tokens, text and header are needed")


def judge(replay: Replay, noise: float) -> Verdict:
    """Judge one replay with a file whose scores stray by `noise` nats."""
    if replay.refuted:
        return Verdict("refuted", f"the claimed rule cannot write these tokens: {replay.refuted}")
    leads = [lead for lead in replay.leads if lead < math.inf]
    if not noise or not leads:
        return Verdict("inconclusive", "too few free positions")
    found = evidence(leads, ELSEWHERE * noise)
    status: Status = "inconclusive"
    if abs(found) >= DECIDED_NATS:
        status = "proven" if found > 0 else "refuted"
    reason = (
        f"evidence {found:+.1f} nats for the file; proven from {DECIDED_NATS:+.1f}, refuted from {-DECIDED_NATS:+.1f}"
    )
    return Verdict(status, reason, found, replay.mean_margin, replay.match_rate, len(leads), noise)


def evidence(leads: Iterable[float], noise: float) -> float:
    """Return how much better these leads fit `noise` than a coarser file's: the sum of their log likelihood ratios, nats."""
    total, coarse = 0.0, max(COARSER * noise, COARSER_NATS)
    for lead in leads:
        own, coarser = behind(lead, noise), behind(lead, coarse)
        total += math.log(own / coarser) if lead < 0 else math.log1p(-own) - math.log1p(-coarser)
    return total


def behind(lead: float, noise: float) -> float:
    """Return the chance that a chosen token looks behind by so much, if it looks that far behind or ahead. The law of the noise: 1 in
    1 + x² is larger than x times `noise`, and beyond FAR times ever fewer are."""
    x = lead / noise
    return 0.5 / ((1 + x**2) * (1 + (x / FAR) ** 2))


def noise_of(pairs: Iterable[tuple[Replay, Replay]]) -> float:
    """Measure the noise on answers whose scores were computed in two ways."""
    leads = (both for one, other in pairs for both in zip(one.leads, other.leads, strict=False))
    return statistics.median(abs(here - there) for here, there in leads if here < math.inf and there < math.inf)
