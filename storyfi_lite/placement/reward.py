"""Says what requests earn by when they are answered: the model's multiplier times the mean share of points.

The network's rule for time tells what a delay leaves of the points. The quality of the text is taken to be the same for all models: the
multiplier is what the network pays for it. Which answer is ready when: simulate.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storyfi_lite.placement.traffic import Kind
from storyfi_lite.validator.score import time_points

TIME_SHARE = 0.1  # of all points, those for time (validator/score.py); an answer in time has the others


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


def earnings(multiplier: float, answers_s: Sequence[float | None], task_s: Mapping[Kind, float]) -> Earnings:
    """Sum up requests by their seconds, None where there was no answer. `task_s`: a usual answer's, alone, by kind."""
    count = len(answers_s) or 1
    score = sum(map(share_of_points, answers_s)) / count
    in_order = sorted(math.inf if seconds is None else seconds for seconds in answers_s) or [0.0]
    p95_s = in_order[math.ceil(0.95 * len(in_order)) - 1]
    return Earnings(multiplier, score, answers_s.count(None) / count, p95_s, task_s)
