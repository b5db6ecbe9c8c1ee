"""Takes several batches through a model's layers in step, for weights that are read from the disk as they are needed.

llama.cpp computes a batch to its end before the next one begins. Here each has a thread and a context of its own, one computes at a
time, and none begins a layer before all others have done the one before: so a layer is read once for all of them. Only the one
whose turn it is holds logits, which are most of what a batch takes; on Linux alone can the others give theirs back.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import TypeVar

IS_POSSIBLE = sys.platform == "linux"

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


def give_back(pointer: ctypes._Pointer[ctypes.c_float], size_bytes: int) -> None:
    """Give memory back to the system until it is written: llama.cpp fills its buffer for a batch's logits with zeros before it
    computes."""
    start = ctypes.addressof(pointer.contents)
    first, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)
