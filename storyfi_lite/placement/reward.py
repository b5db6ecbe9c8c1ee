"""Computes what a layout earns: the model's multiplier times the mean share of points over what validators really ask.

For each kind of request and each number of validators that ask at once, the queue (queue.py) tells how long every answer takes; the
network's rule for time tells what that leaves of the points. Three speeds around the predicted one and three distances to the
group before stand for all. The quality of the text is taken to be the same for all models: the multiplier is what the network pays for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from storyfi_lite.placement.lengths import TokensAChar, Work, work
from storyfi_lite.placement.queue import Job, Pace, plan, run
from storyfi_lite.placement.traffic import Kind, Traffic
from storyfi_lite.validator.score import time_points

TIME_SHARE = 0.1  # of all points, those for time (validator/score.py); an answer in time has the others
# How much slower than predicted a machine may be: predictions are good to a quarter.
SCALES = (0.8, 1.0, 1.25)
# The distances to the group before, as shares of the mean: quantiles 1/6, 1/2 and 5/6 of a random arrival's.
GAPS = (0.18, 0.69, 1.79)


@dataclass(frozen=True)
class Earnings:
    """Holds what a layout is expected to earn. `score`: the mean share of all points, 0 to 1. `late`: the share of requests
    that get no answer in time. `p95_s`: of all requests, infinite if more than 5 % are late. `task_s`: a usual answer alone, by
    kind."""

    multiplier: float
    score: float
    late: float
    p95_s: float
    task_s: Mapping[Kind, float]

    @property
    def reward(self) -> float:
        return self.multiplier * self.score

    def seconds_of(self, task: str) -> float:
        """Return a usual answer's seconds, alone, in the language that is asked most."""
        return next((seconds for kind, seconds in self.task_s.items() if kind.task == task), 0.0)

    @property
    def seconds_in_words(self) -> str:
        return ", ".join(
            f"{task} {self.seconds_of(task):.0f} s" for task in dict.fromkeys(one.task for one in self.task_s)
        )


def share_of_points(seconds: float | None) -> float:
    """Return what an answer after so many seconds has of all points; nothing if there was none."""
    return 0.0 if seconds is None else 1.0 - TIME_SHARE + TIME_SHARE * time_points(seconds) / 10


def expected(
    pace: Pace, n_slots: int, n_ctx: int, multiplier: float, traffic: Traffic, a_char: TokensAChar
) -> Earnings:
    """Compute the expected earnings of a layout."""
    works = {kind: work(kind, a_char).within(n_ctx) for kind in traffic.kinds}
    usual = _mean(traffic, a_char)
    before = max(1, round(sum(count * share for count, share in traffic.together.items())))
    busy_s = max(seconds or 0.0 for seconds in _seconds(usual, before, pace, n_slots))
    gaps_s = [gap * traffic.gap_s for gap in GAPS]
    alone = [gap_s for gap_s in gaps_s if gap_s >= busy_s]
    weighed: list[tuple[float, float | None]] = []
    for (kind, kind_share), (count, count_share) in product(traffic.kinds.items(), traffic.together.items()):
        one, weight = works[kind], kind_share * count_share / len(SCALES) / len(GAPS)
        for scaled in (pace.times(scale) for scale in SCALES):
            if one is None or plan((), one, scaled, n_slots) is None:
                weighed.append((weight * count * len(GAPS), None))
                continue
            if alone:
                weighed += [(weight * len(alone), each) for each in _seconds(one, count, scaled, n_slots)]
            for gap_s in gaps_s[: len(gaps_s) - len(alone)]:
                weighed += [(weight, each) for each in _seconds(one, count, scaled, n_slots, usual, before, gap_s)]
    alone_s = {kind: pace.alone(one, one.whole) for kind, one in works.items() if one}
    return earnings(multiplier, weighed, alone_s)


def earnings(
    multiplier: float, weighed: Iterable[tuple[float, float | None]], task_s: Mapping[Kind, float]
) -> Earnings:
    """Sum up requests, each with its weight and its seconds, None where there was no answer."""
    rows = sorted(weighed, key=lambda row: float("inf") if row[1] is None else row[1])
    total = sum(weight for weight, _ in rows) or 1.0
    score = sum(weight * share_of_points(seconds) for weight, seconds in rows) / total
    late = sum(weight for weight, seconds in rows if seconds is None) / total
    passed, p95_s = 0.0, 0.0
    for weight, seconds in rows:
        passed += weight
        p95_s = float("inf") if seconds is None else seconds
        if passed >= 0.95 * total:
            break
    return Earnings(multiplier, score, late, p95_s, task_s)


@lru_cache(maxsize=1 << 16)  # a machine is planned for several times until a model is loaded
def _seconds(
    one: Work, count: int, pace: Pace, n_slots: int, other: Work | None = None, before: int = 0, at_s: float = 0.0
) -> tuple[float | None, ...]:
    """Return the seconds of each of `count` requests of one group, with `before` requests of an `other` kind still at work."""
    jobs = [Job(0.0, other or one, 0) for _ in range(before)]
    jobs += [Job(at_s, one, 1, scale) for scale in one.lengths(count)]
    run(jobs, pace, n_slots)
    return tuple(job.seconds for job in jobs[before:])


def _mean(traffic: Traffic, a_char: TokensAChar) -> Work:
    rows = [(share, work(kind, a_char)) for kind, share in traffic.kinds.items()]
    names = ("opening", "bridges", "whole", "brief", "least")
    return Work(*(round(sum(share * getattr(one, name) for share, one in rows)) for name in names))
