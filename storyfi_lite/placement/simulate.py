"""Plays traffic against a layout, request by request, in no time: who is answered, who is late, what it earns.

Groups of requests meet by chance and answers differ in length. Placement compares all layouts by the same sample of requests, which
takes some hundredths of a second each; `simulate` plays whole hours, made up or a log's, at the log's times.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from storyfi_lite.placement.lengths import TokensAChar, work
from storyfi_lite.placement.queue import Job, Pace, run
from storyfi_lite.placement.reward import Earnings, earnings
from storyfi_lite.placement.traffic import TOGETHER_S, Arrival, Traffic
from storyfi_lite.tasks.base import Language

LEAST_LENGTH = 0.5  # of the usual: chance has its limits
SCALES = (0.8, 1.0, 1.25)  # predictions of speed are good to a quarter


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


def expected(
    pace: Pace, n_slots: int, n_ctx: int, multiplier: float, traffic: Traffic, a_char: TokensAChar
) -> Earnings:
    """Return what a layout is expected to earn: of the traffic's sample, by three speeds around the predicted one."""
    works = {kind: work(kind, a_char).within(n_ctx) for kind in traffic.kinds}
    alone_s = {kind: pace.alone(one, one.whole) for kind, one in works.items() if one}
    return earnings(multiplier, _of_sample(traffic.sample, pace, n_slots, n_ctx, tuple(a_char.items())), alone_s)


@lru_cache(maxsize=1 << 10)  # what else would earn more is asked for, and most layouts come again
def _of_sample(
    arrivals: tuple[Arrival, ...], pace: Pace, n_slots: int, n_ctx: int, a_char: tuple[tuple[Language, float], ...]
) -> tuple[float | None, ...]:
    played = (_play(arrivals, pace.times(scale), n_slots, n_ctx, dict(a_char), 0) for scale in SCALES)
    return tuple(seconds for jobs, refused in played for seconds in _seconds(jobs, refused))


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
    jobs, refused = _play(arrivals, pace, n_slots, n_ctx, a_char, seed)
    answered = [job for job in jobs if job.seconds is not None]
    return Outcome(
        answered=len(answered),
        shortened=sum(job.brief for job in answered),
        late=sum(job.seconds is None and not job.refused for job in jobs),
        refused=refused + sum(job.refused for job in jobs),
        earnings=earnings(multiplier, _seconds(jobs, refused), {}),
    )


def _play(
    arrivals: Sequence[Arrival], pace: Pace, n_slots: int, n_ctx: int, a_char: TokensAChar, seed: int
) -> tuple[list[Job], int]:
    """Return the requests, answered or not, and how many have no room in the context."""
    dice, jobs, refused, group = random.Random(seed), [], 0, 0
    works = {kind: work(kind, a_char).within(n_ctx) for kind in {arrival.kind for arrival in arrivals}}
    for number, arrival in enumerate(arrivals):
        before = arrivals[number - 1] if number else arrival
        group += before.kind != arrival.kind or arrival.at_s - before.at_s > TOGETHER_S
        one, chance = works[arrival.kind], dice.gauss(0.0, 1.0)
        if one is None:
            refused += 1
        else:
            jobs.append(Job(arrival.at_s, one, group, max(LEAST_LENGTH, 1.0 + chance * one.spread)))
    run(jobs, pace, n_slots)
    return jobs, refused


def _seconds(jobs: Sequence[Job], refused: int) -> list[float | None]:
    return [*(job.seconds for job in jobs), *[None] * refused]
