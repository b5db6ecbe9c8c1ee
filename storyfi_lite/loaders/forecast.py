"""Promises how long an answer takes here, by task and language: told before validators ask, and used to shorten or refuse in time.

The same arithmetic that chose this layout (placement/queue.py, placement/lengths.py), with this machine's measured pace in place of the
predicted one: from a few words and steps after the load, and from the answers since. How long a model likes its answers is learnt from
them. Runs no model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from storyfi_lite import tasks
from storyfi_lite.errors import Busy
from storyfi_lite.loaders.base import Job
from storyfi_lite.placement import lengths, queue
from storyfi_lite.placement.lengths import Work
from storyfi_lite.placement.queue import Plan
from storyfi_lite.placement.traffic import Kind
from storyfi_lite.protocol.limits import DEADLINE_S, FULL_MARKS_S
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.tasks.base import Language, language_of

_PACE_MEMORY = 0.7
_OTHER_SCRIPT = 1.6
# Requests like the network's: an input, and stubs for the earlier stages.
_STUBS = {"blueprint": {"title": "-"}, "characters": {"characters": []}, "story_arc": {"chapters": [{"id": 1}]}}
EXAMPLES = {
    "English": "A lighthouse keeper hears the sea speak and is asked to let the lamp go dark.",
    "Chinese": "一个关于灯塔守护人的故事，他在退潮的夜里听见大海说话。",
}


@dataclass(frozen=True)
class Pace:
    """Holds what was measured: the queue's seconds; tokens a character of the model's own words, in each language of the prompts; and
    of each kind of answer how long this model's are, as a share of the table's (placement/lengths.py)."""

    queue: queue.Pace
    tokens_a_char: Mapping[Language, float]
    shares: Mapping[str, float] = field(default_factory=dict)

    def tokens_a_char_of(self, user_input: str, tokens: int) -> float:
        """Return the tokens a character of an answer to this input, which takes so many tokens itself. An input that takes
        _OTHER_SCRIPT times the usual is in a language that the vocabulary hardly knows (Thai is not English), and its answer will be;
        less is chance: a line of text is often a quarter above the usual."""
        usual, asked = self.tokens_a_char[language_of(user_input)], tokens / len(user_input)
        return asked if asked > _OTHER_SCRIPT * usual else usual

    def share_of(self, kind: Kind) -> float:
        return self.shares.get(f"{kind.task} {kind.language}", 1.0)

    def after(
        self,
        tokens: int,
        seconds: float,
        kind: Kind,
        chars: int | None,
        at_once: float = 1.0,
        cells: float = 0.0,
    ) -> Pace:
        """Add one more answer, of so many tokens and characters (None for one that was made shorter), written in so many seconds beside
        others; `cells`: that each token looked back on."""
        slower = _mean(1.0, seconds / tokens / self.queue.step_of(at_once, at_once * cells))
        steps = replace(self.queue.times(slower), prompt_token_s=self.queue.prompt_token_s)
        if chars is None:
            return replace(self, queue=steps)
        a_char = _mean(self.tokens_a_char[kind.language], tokens / chars / lengths.factor(kind))
        share = _mean(self.share_of(kind), chars / lengths.usual_chars(kind))
        return Pace(
            steps,
            {**self.tokens_a_char, kind.language: a_char},
            {**self.shares, f"{kind.task} {kind.language}": round(share, 3)},
        )


@dataclass
class Promises:
    """Decides on requests by what is in hand. `pace` is None before the warm-up: then nothing is shortened or refused."""

    n_slots: int
    clock: Callable[[], float] = time.monotonic
    pace: Pace | None = None
    _ends_s: dict[int, float] = field(default_factory=dict)  # of what is in hand, on the clock
    _slots_s: tuple[float, float] = (0.0, 0.0)  # until when, and for how long all slots together were in use until then
    _lock: Any = field(default_factory=threading.Lock)

    def plan(self, job: Job, work: Work | None) -> Plan | None:
        """Decide how long the answer may be; None if nothing limits it. Raises Busy if not even the shortest is in time."""
        if self.pace is None or work is None or job.request.max_tokens is not None:
            return None
        now_s = self.clock()
        with self._lock:
            in_hand_s = [ends_s - now_s for ends_s in self._ends_s.values()]
        left_s = job.deadline_s - now_s
        aim_s = left_s if job.aim_s is None else job.aim_s
        decided = queue.plan(in_hand_s, work, self.pace.queue, self.n_slots, left_s, aim_s)
        if decided is None:
            least = queue.plan(in_hand_s, work, self.pace.queue, self.n_slots, float("inf"), 0.0)
            least_s = least.ends_in_s if least else left_s
            raise Busy(f"{job.request.task_type} takes {least_s:.0f} s on this machine, {left_s:.0f} s are left")
        return decided

    def keep(self, future: Future[Any], decided: Plan | None) -> Callable[[], float]:
        """Count what was promised as in hand until it is done. Returns what tells how many were written at once since, on average."""
        with self._lock:
            begun_s, before_s = self._in_use()
            if decided is not None:
                self._ends_s[id(future)] = begun_s + decided.ends_in_s
                future.add_done_callback(lambda done: self._forget(id(done)))

        def at_once() -> float:
            with self._lock:
                now_s, slots_s = self._in_use()
            return max(1.0, (slots_s - before_s) / max(now_s - begun_s, 1e-9))

        return at_once

    def _forget(self, key: int) -> None:
        with self._lock:
            self._in_use()
            self._ends_s.pop(key, None)

    def _in_use(self) -> tuple[float, float]:
        """Return the time, and how many seconds the slots have been in use, all together."""
        now_s, (until_s, slots_s) = self.clock(), self._slots_s
        self._slots_s = now_s, slots_s + (now_s - until_s) * min(self.n_slots, len(self._ends_s))
        return self._slots_s


def kind_of(request: StoryRequest) -> Kind:
    chapters = len(request.chapter_ids or [1]) if request.task_type == "chapters" else 1
    return Kind(request.task_type, language_of(request.user_input), chapters)


def examples() -> Iterator[tuple[str, str, StoryRequest]]:
    """Yield a request of each task in each language that the network asks in, with their names."""
    for name, task in tasks.TASKS.items():
        stages = {stage: _STUBS.get(stage, [1]) for stage in task.needs}
        for language, text in EXAMPLES.items():
            yield name, language, StoryRequest.model_validate({"task_type": name, "user_input": text, **stages})


def _mean(past: float, now: float) -> float:
    return _PACE_MEMORY * past + (1 - _PACE_MEMORY) * now


def in_words(forecasts: dict[str, dict[str, tuple[float, float]]]) -> tuple[list[str], list[str]]:
    """Write lines for the operator: how long each task takes, and what of it is late. `forecasts`: task -> language -> seconds of
    a usual answer and of the shortest."""
    lines, late = [], []
    for task, by_language in forecasts.items():
        said = (f"{usual_s:.0f} s in {language}" for language, (usual_s, _) in by_language.items())
        lines.append(f"{task}: about {', '.join(said)}")
        for language, (usual_s, least_s) in by_language.items():
            if least_s > DEADLINE_S:
                late.append(
                    f"{task} in {language} takes {least_s:.0f} s at its shortest and is refused ({DEADLINE_S:.0f} s)"
                )
            elif least_s > FULL_MARKS_S:
                late.append(
                    f"{task} in {language} takes {least_s:.0f} s at its shortest: fewer points from {FULL_MARKS_S:.0f} s"
                )
            elif usual_s > FULL_MARKS_S:
                late.append(f"{task} in {language} is written at its shortest to be in time")
    return lines, late
