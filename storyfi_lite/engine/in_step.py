"""Takes several batches through a model's layers in step, for weights that are read from the disk as they are needed.

llama.cpp computes a batch to its end before the next one begins. Here each has a thread and a context of its own, one computes at a
time, and none begins a layer before all others have done the one before: so a layer is read once for all of them. Only the one
whose turn it is holds logits, which are most of what a batch takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import TypeVar

T = TypeVar("T")


def in_step(works: Sequence[Callable[[Callable[[], None]], T]]) -> list[T]:
    """Run works, each of which calls what it is given after each layer, and has freed its context when it returns. Returns what
    they return; raises what the first of them raises, once all have ended."""
    turns = deque(range(len(works)))
    changed = Condition()

    def run(number: int) -> T:
        def wait() -> None:
            changed.wait_for(lambda: turns[0] == number)

        def pass_on() -> None:
            with changed:
                turns.rotate(-1)
                changed.notify_all()
                wait()

        with changed:
            wait()
        try:
            return works[number](pass_on)
        finally:
            with changed:
                turns.popleft()
                changed.notify_all()

    with ThreadPoolExecutor(max(1, len(works)), "in-step") as pool:
        return list(pool.map(run, range(len(works))))
