"""Chooses which loader answers: the local model, else the chosen API, else the other API if its key is there, else an error.

The choice is made at start. When a loader dies, the next one takes over, and the dead one is not tried again before a restart.
What an API may be paid for twice, or has no quota for, the next one writes, that story alone.
Only loaders that the operator allowed are in the list. Each change is logged as a WARNING, and each answer's claim is that of
the loader that wrote it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from storyfi_lite.errors import ConfigError, LiteError, Unavailable
from storyfi_lite.futures import follow, settle
from storyfi_lite.loaders.base import Answer, Job, Loader, LoaderHealth, ModelClaim, NotAgain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Names a loader that can be opened. `open` makes it, or raises a LiteError that says why it can't."""

    name: str
    open: Callable[[], Loader]


class FallbackLoader:
    """Implements `Loader` over the first of `choices` that opens. The later ones stand ready: a loader that reports itself
    dead gives way to the next one that lives."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        """Open all choices. Raises ConfigError with every choice's reason if none opens, or a single choice's own error."""
        self._lock = threading.Lock()
        self._loaders: list[tuple[str, Loader]] = []
        refusals: list[tuple[str, LiteError]] = []
        for choice in choices:
            try:
                self._loaders.append((choice.name, choice.open()))
            except LiteError as error:
                refusals.append((choice.name, error))
        if not self._loaders:
            if len(refusals) == 1:
                raise refusals[0][1]
            reasons = "\n".join(f"{name}: {refusal}" for name, refusal in refusals)
            raise ConfigError(f"nothing here can write stories:\n{reasons}")
        for name, refusal in refusals:
            logger.warning("%s can't be used: %s", name, refusal)
        self._active = 0
        self._announce("answers come from")

    @property
    def claim(self) -> ModelClaim:
        return self._current()[1].claim

    def submit(self, job: Job) -> Future[Answer]:
        """Submit to the active loader. If that loader dies, or must not be asked again, the job moves to the next one, within its
        deadline."""
        outer: Future[Answer] = Future()
        self._hand_over(job, outer, *self._current())
        return outer

    def health(self) -> LoaderHealth:
        name, loader = self._current()
        health = loader.health()
        return replace(health, detail=f"{name}: {health.detail}")

    def close(self) -> None:
        for _, loader in self._loaders:
            loader.close()

    def _current(self) -> tuple[str, Loader]:
        """Return the active loader, after moving on from dead ones; the last one stays, dead or not."""
        with self._lock:
            while self._active + 1 < len(self._loaders):
                name, loader = self._loaders[self._active]
                health = loader.health()
                if health.alive:
                    break
                self._active += 1
                logger.warning("%s is dead: %s", name, health.detail)
                self._announce("from now on answers come from")
            return self._loaders[self._active]

    def _announce(self, words: str) -> None:
        name, loader = self._loaders[self._active]
        claim = loader.claim
        level = logging.INFO if claim.miner_mode == "LocalModelLoader" else logging.WARNING
        facts = (claim.writer, claim.model_name, claim.multiplier)
        logger.log(level, "%s %s: %s, %s, reward multiplier %g", words, name, *facts)

    def _hand_over(
        self, job: Job, outer: Future[Answer], name: str, loader: Loader, first: NotAgain | None = None
    ) -> None:
        """Submit the job to a loader. `first`: why another one did not write it, which says more than why this one could not."""
        health = loader.health()
        if not health.alive:
            raise Unavailable(f"{name} is dead and nothing stands in for it: {health.detail}")
        follow(outer, loader.submit(job), lambda done: self._pass_on(job, loader, done, outer, first))

    def _pass_on(
        self, job: Job, loader: Loader, inner: Future[Answer], outer: Future[Answer], first: NotAgain | None
    ) -> None:
        """Pass the inner outcome on to the outer Future, unless the loader is not to be asked again and another can still answer
        in time."""
        error = inner.exception()
        if isinstance(error, NotAgain):
            first = first or error
        waiting = error is not None and not outer.done() and job.deadline_s > time.monotonic()
        over = isinstance(error, NotAgain) or not loader.health().alive
        heir = None
        if waiting and over:
            self._current()  # says who is dead
            later = self._loaders[[one for _, one in self._loaders].index(loader) + 1 :]
            heir = next((entry for entry in later if entry[1].health().alive), None)
        if heir:
            logger.warning("%s; %s writes this story", str(error).partition("\n")[0], heir[0])
            try:
                self._hand_over(job, outer, *heir, first)
                return
            except LiteError as refused:
                error = refused
        settle(outer, inner.result() if error is None else first or error)
