"""Tokens a second, of an engine's slots and of bare llama_decode: what `storyfi-lite bench` and scripts/bench_engine.py share.

Measures by the clock it is given; knows no table and no target.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from storyfi_lite.engine.engine import Engine, EngineJob
from storyfi_lite.engine.model import Context, Feed

WARM_UP_TOKENS = 8  # of each slot: by then all write
Clock = Callable[[], float]


def engine_tokens_per_s(
    engine: Engine, make_job: Callable[[int], EngineJob], n_slots: int, n_tokens: int, clock: Clock = time.perf_counter
) -> float:
    """Of `n_slots` answers together, from the time that all write until `n_tokens` more each. Ends their jobs then."""
    before = engine.health().tokens_written
    futures = [engine.submit(make_job(slot)) for slot in range(n_slots)]
    try:
        _wait_until(lambda: engine.health().tokens_written >= before + WARM_UP_TOKENS * n_slots)
        start, first = clock(), engine.health().tokens_written
        _wait_until(lambda: engine.health().tokens_written >= first + n_tokens * n_slots)
        return (engine.health().tokens_written - first) / (clock() - start)
    finally:
        for future in futures:
            future.cancel()
        _wait_until(lambda: not engine.health().running)


def bare_tokens_per_s(
    context: Context, prompt: list[int], n_slots: int, n_tokens: int, clock: Clock = time.perf_counter
) -> float:
    """Of llama_decode alone: fixed tokens behind a cached prompt, logits asked for and not looked at."""
    for sequence in range(n_slots):
        context.forget(sequence)
        for start in range(0, len(prompt), context.n_batch):
            context.decode([Feed(sequence, start, prompt[start : start + context.n_batch], [])])
    start_s = clock()
    for step in range(n_tokens):
        token = prompt[step % len(prompt)]
        context.decode([Feed(sequence, len(prompt) + step, [token], [0]) for sequence in range(n_slots)])
    return n_tokens * n_slots / (clock() - start_s)


def _wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)
