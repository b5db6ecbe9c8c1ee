"""Plays traffic against a layout, request by request, in no time: who is answered, who is late, what it earns.

The same queue that the expected reward is computed with, here under whole hours in which groups of requests meet by chance and
answers differ in length. A log's requests are played at the log's times.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from storyfi_lite.placement.lengths import TokensAChar, work
from storyfi_lite.placement.queue import Job, Pace, run
from storyfi_lite.placement.reward import Earnings, earnings
from storyfi_lite.placement.traffic import TOGETHER_S, Arrival

LEAST_LENGTH = 0.5  # of the usual: chance has its limits


@dataclass(frozen=True)
class Outcome:
    """Counts the requests of a simulation. `shortened`: of those answered, the ones that were cut to be in time. `late`: given up at the
    deadline; `refused`: at once, because not even the shortest would have been in time."""

    answered: int
    shortened: int
    late: int
    refused: int
    earnings: Earnings

    def as_dict(self) -> dict[str, Any]:
        earns, counts = self.earnings, asdict(self)
        del counts["earnings"]
        p95_s = None if earns.p95_s == float("inf") else round(earns.p95_s, 1)
        return {**counts, "mean_score": round(earns.score, 4), "reward": round(earns.reward, 4), "p95_s": p95_s}


def simulate(
    arrivals: Sequence[Arrival],
    pace: Pace,
    n_slots: int,
    n_ctx: int,
    multiplier: float,
    a_char: TokensAChar,
    seed: int = 0,
) -> Outcome:
    """Play these requests; the same seed plays the same lengths."""
    dice, jobs, refused, group = random.Random(seed), [], 0, 0
    for number, arrival in enumerate(arrivals):
        before = arrivals[number - 1] if number else arrival
        group += before.kind != arrival.kind or arrival.at_s - before.at_s > TOGETHER_S
        one, chance = work(arrival.kind, a_char).within(n_ctx), dice.gauss(0.0, 1.0)
        if one is None:
            refused += 1
        else:
            jobs.append(Job(arrival.at_s, one, group, max(LEAST_LENGTH, 1.0 + chance * one.spread)))
    run(jobs, pace, n_slots)
    answered = [job for job in jobs if job.seconds is not None]
    weighed = [(1.0, job.seconds) for job in jobs] + [(1.0, None)] * refused
    return Outcome(
        answered=len(answered),
        shortened=sum(job.brief for job in answered),
        late=sum(job.seconds is None and not job.refused for job in jobs),
        refused=refused + sum(job.refused for job in jobs),
        earnings=earnings(multiplier, weighed, {}),
    )
