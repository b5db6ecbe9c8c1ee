"""Answers a row of requests on a machine of so many slots, event by event: when each begins, how long, whether it is in time.

A step writes one token of every answer in hand; its length grows with their number and with what each looks back on. A prompt is
read between two steps and holds up the others. `plan` is what `mine` decides by too: whole, brief or refused. Arithmetic on seconds; runs no model, waits for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storyfi_lite.placement.lengths import Work
from storyfi_lite.protocol.limits import AIM_S, DEADLINE_S

DONE_TOKENS = 1e-3  # so little left is nothing: floats do not end at zero


@dataclass(frozen=True)
class Pace:
    """Holds seconds: of a step that writes one token of one answer, what each further answer adds to it, of a prompt's token, and
    what each cell adds that an answer looks back on; 0 where a mean of that is in the others."""

    step_s: float
    more_s: float
    prompt_token_s: float
    cell_s: float = 0.0

    def times(self, factor: float) -> Pace:
        """Return the pace of a machine that takes so many times as long."""
        return Pace(*(each_s * factor for each_s in (self.step_s, self.more_s, self.prompt_token_s, self.cell_s)))

    def step_of(self, answers: float, cells: float = 0.0) -> float:
        """Return the seconds of a step with so many answers, which look back on so many cells together."""
        return self.step_s + (answers - 1) * self.more_s + cells * self.cell_s

    def alone(self, work: Work, tokens: int) -> float:
        """Return the seconds of an answer of so many tokens with nothing beside it."""
        read_s = (work.opening + work.bridges) * self.prompt_token_s
        return read_s + tokens * self.step_of(1, work.cells(tokens))


@dataclass(frozen=True)
class Plan:
    """Says how long an answer will be, and in how many seconds it should be there. `brief`: shorter than usual; `most`: the tokens that
    are in time."""

    tokens: int
    most: int
    brief: bool
    ends_in_s: float


def plan(
    in_hand_s: Sequence[float],
    work: Work,
    pace: Pace,
    n_slots: int,
    left_s: float = DEADLINE_S,
    aim_s: float = AIM_S,
) -> Plan | None:
    """Decide on a request: whole if that is there within `aim_s`, else as long as is there by then, but never shorter than can be; None
    if even that is later than `left_s`.

    `in_hand_s`: in how many seconds each request that was taken before should be done; one that should be done already holds up
    those that wait by as much."""
    at_once = min(n_slots, len(in_hand_s) + 1)
    starts_s = 0.0
    if len(in_hand_s) >= n_slots:
        starts_s = max(0.0, sorted(in_hand_s)[-n_slots]) + max(0.0, -min(in_hand_s))
    starts_s += (work.opening + at_once * work.bridges) * pace.prompt_token_s

    def step_s(tokens: int) -> float:
        return pace.step_of(at_once, at_once * work.cells(tokens))

    in_time = max(0, int(min((min(aim_s, left_s) - starts_s) / step_s(work.whole), 1e9)))
    brief = in_time < work.whole
    tokens = max(work.least, min(work.brief, in_time)) if brief else work.whole
    ends_in_s = starts_s + tokens * step_s(tokens)
    return Plan(tokens, in_time, brief, ends_in_s) if ends_in_s <= left_s else None


@dataclass
class Job:
    """Describes one request to `run`. `scale`: how long this answer is against the usual. `seconds`: from request to answer, None if
    it was refused or given up."""

    at_s: float
    work: Work
    group: int  # those of one group read the same opening, once
    scale: float = 1.0
    seconds: float | None = None
    refused: bool = False
    brief: bool = False
    promised_s: float = 0.0  # when it should be done
    reading: float = 0.0  # tokens still to be read, and written
    writing: float = 0.0
    cells: float = 0.0  # that each of its tokens looks back on, on average


def run(jobs: Sequence[Job], pace: Pace, n_slots: int, deadline_s: float = DEADLINE_S, aim_s: float = AIM_S) -> None:
    """Fill in what becomes of each job; they come in the order of their times. Infinite limits: all are written whole."""
    now_s, coming = 0.0, list(reversed(jobs))
    waiting: list[Job] = []
    running: list[Job] = []
    read: int | None = None  # whose opening the slots hold
    while coming or waiting or running:
        while waiting and len(running) < n_slots:
            job = waiting.pop(0)
            job.reading = job.work.bridges + (0 if job.group == read else job.work.opening)
            read = job.group
            running.append(job)
        step_s, event_s, reader = _next_event(running, now_s, pace, deadline_s)
        if coming and coming[-1].at_s <= event_s:
            event_s = max(coming[-1].at_s, now_s)
        spent_s, now_s = event_s - now_s, event_s
        if reader:
            reader.reading = max(0.0, reader.reading - spent_s / pace.prompt_token_s)
        else:
            for job in running:
                job.writing -= spent_s / step_s
        for job in [job for job in running if job.reading <= DONE_TOKENS and job.writing <= DONE_TOKENS]:
            job.seconds = now_s - job.at_s
            running.remove(job)
        for some in (running, waiting):
            some[:] = [job for job in some if now_s - job.at_s < deadline_s - 1e-9]  # the others are given up
        while coming and coming[-1].at_s <= now_s:
            _take(coming.pop(), waiting, running, now_s, pace, n_slots, deadline_s, aim_s)


def _next_event(running: list[Job], now_s: float, pace: Pace, deadline_s: float) -> tuple[float, float, Job | None]:
    """Return the length of a step, when the next thing happens, and who is reading, if anybody is."""
    if not running:
        return 0.0, float("inf"), None
    given_up_s = min(job.at_s for job in running) + deadline_s
    reader = next((job for job in running if job.reading > DONE_TOKENS), None)
    if reader:
        return 0.0, min(given_up_s, now_s + reader.reading * pace.prompt_token_s), reader
    step_s = pace.step_of(len(running), sum(job.cells for job in running))
    return step_s, min(given_up_s, now_s + min(job.writing for job in running) * step_s), None


def _take(
    job: Job,
    waiting: list[Job],
    running: list[Job],
    now_s: float,
    pace: Pace,
    n_slots: int,
    deadline_s: float,
    aim_s: float,
) -> None:
    in_hand_s = [other.promised_s - now_s for other in (*running, *waiting)]
    decided = plan(in_hand_s, job.work, pace, n_slots, deadline_s, aim_s)
    if decided is None:
        job.refused = True
        return
    job.brief, job.promised_s = decided.brief, now_s + decided.ends_in_s
    job.writing = decided.tokens if job.brief else decided.tokens * job.scale  # what is cut does not differ in length
    job.cells = job.work.cells(job.writing)
    waiting.append(job)
