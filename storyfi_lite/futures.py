"""How a Future gets its outcome when its client may have left, and how one Future follows another. Said once for all loaders."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def settle(future: Future[T], outcome: T | BaseException) -> bool:
    """Gives the Future its result or its error. False, and no change, if it was cancelled or has its outcome already."""
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        return False
    return True


def follow(outer: Future[T], inner: Future[S], then: Callable[[Future[S]], None]) -> None:
    """Cancels `inner` when `outer` is cancelled, and the other way round; else calls `then` with the finished `inner`."""

    def finished(done: Future[S]) -> None:
        if done.cancelled():
            outer.cancel()
        else:
            then(done)

    outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
    inner.add_done_callback(finished)
