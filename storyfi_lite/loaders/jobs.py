"""Runs a queue of jobs on a few worker threads: the highest priority first, each ended by its deadline.

A timer ends a job's Future at its deadline, whatever the call does; the call is then cut, so that its worker is free at once.
Threads are daemons: a call that hangs never holds up the end of the process. This module knows nothing of APIs.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from storyfi_lite.errors import Busy, DeadlineExceeded, LiteError, Unavailable
from storyfi_lite.futures import settle
from storyfi_lite.loaders.base import Answer, Job
from storyfi_lite.loaders.connection import Line

CLOSE_GRACE_S = 1.0


@dataclass(order=True)
class _Work:
    rank: tuple[float, int]
    job: Job = field(compare=False)
    future: Future[Answer] = field(compare=False, default_factory=Future)
    line: Line = field(compare=False, default_factory=Line)


class JobQueue:
    """Runs `write(job, line)`, which returns a job's outcome and raises nothing, on `workers` threads."""

    def __init__(
        self, name: str, write: Callable[[Job, Line], Answer | LiteError], workers: int, max_queued: int
    ) -> None:
        self._name, self._write, self._max_queued = name, write, max_queued
        self._ready = threading.Condition()
        self._waiting: list[_Work] = []
        self._running: set[int] = set()
        self._order = itertools.count()
        self.closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> Future[Answer]:
        """Queue a job. Raises Busy if the queue is full or the deadline has passed, Unavailable once closed."""
        remaining_s = job.deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise Busy("the request's deadline has passed already")
        with self._ready:
            if self.closed:
                raise Unavailable(f"the loader of the {self._name} is closed")
            self._drop_ended()
            if len(self._waiting) >= self._max_queued:
                raise Busy(f"{len(self._waiting)} requests already wait for the {self._name}")
            work = _Work((-job.priority, next(self._order)), job)
            late = DeadlineExceeded(f"the {self._name} did not answer in time")
            timer = threading.Timer(remaining_s, settle, [work.future, late])
            timer.daemon = True
            work.future.add_done_callback(lambda future: timer.cancel())
            work.future.add_done_callback(lambda future: work.line.cut())
            timer.start()
            heapq.heappush(self._waiting, work)
            self._ready.notify()
        return work.future

    def counts(self) -> tuple[int, int]:
        """Count the jobs that run and those that wait."""
        with self._ready:
            self._drop_ended()
            return len(self._running), len(self._waiting)

    def close(self, longest_s: float) -> None:
        """Refuse the jobs that wait, and wait for those that run, `longest_s` at most."""
        with self._ready:
            self.closed = True
            waiting, self._waiting = self._waiting, []
            self._ready.notify_all()
        for work in waiting:
            settle(work.future, Unavailable(f"the loader of the {self._name} is closing"))
        for thread in self._threads:
            thread.join(longest_s + CLOSE_GRACE_S)

    def _drop_ended(self) -> None:
        live = [work for work in self._waiting if not work.future.done()]
        if len(live) != len(self._waiting):
            heapq.heapify(live)
            self._waiting = live

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._waiting and not self.closed:
                    self._ready.wait()
                if self.closed:
                    return
                work = heapq.heappop(self._waiting)
                self._running.add(id(work))
            settle(work.future, self._write(work.job, work.line))
            with self._ready:
                self._running.discard(id(work))
