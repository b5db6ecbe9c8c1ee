"""Gives a Future its outcome when its client may have left, and makes one Future follow another. For all loaders."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def settle(future: Future[T], outcome: T | BaseException) -> bool:
    """Give the Future its result or its error. Returns False, and changes nothing, if it was cancelled or has its outcome."""
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        return False
    return True


def follow(outer: Future[T], inner: Future[S], then: Callable[[Future[S]], None]) -> None:
    """Cancel `inner` when `outer` is cancelled, and the other way round; else call `then` with the finished `inner`."""

    def finished(done: Future[S]) -> None:
        if done.cancelled():
            outer.cancel()
        else:
            then(done)

    outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
    inner.add_done_callback(finished)
