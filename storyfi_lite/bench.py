"""Measures how fast a loaded engine writes, for `storyfi-lite bench` and scripts/bench_engine.py.

Every request is a blueprint, the commonest task. Loads no model, prints nothing. Figures are of the moment: other programs
on the machine make them worse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import llama_cpp

from storyfi_lite import tasks
from storyfi_lite.engine.engine import Engine, EngineJob, Generation
from storyfi_lite.engine.model import Feed
from storyfi_lite.engine.settings import SamplingParams
from storyfi_lite.grammar.script import Script
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator.score import time_points

Clock = Callable[[], float]
FAR_S = 3600.0
POLL_S = 0.02  # 0.005 costs 2 % of a core, which --cpu-seconds would count as ours
SPEED_TOKENS = 96  # of each slot, to measure tokens a second; the shortest blueprint has more
WRITING_TOKENS = 8  # a slot that has written so many is past its prompt
TASK = tasks.get("blueprint")
USER_INPUT = "A lighthouse keeper hears the sea answer."


@dataclass(frozen=True)
class Together:
    """Holds what was measured with `slots` blueprints at once. `tokens_per_s`: of all together, while all write. `blueprint_s`:
    the slowest one's time from request to answer. `time_points`: the network's points, of 10, for that time without the network's
    own delay."""

    slots: int
    tokens_per_s: float
    blueprint_s: float
    time_points: float


def slot_counts(n_slots: int) -> list[int]:
    """Return 1, 2, 4, … and the engine's own number of slots."""
    return sorted({2**power for power in range(n_slots.bit_length())} | {n_slots})


def script(user_input: str = USER_INPUT) -> Script:
    return TASK.script(StoryRequest(task_type="blueprint", user_input=user_input))


def job(seed: int, asked: Script | None = None) -> EngineJob:
    return EngineJob(asked or script(), SamplingParams(seed), time.monotonic() + FAR_S)


def free_speed(engine: Engine, n_tokens: int = SPEED_TOKENS) -> float:
    """Measure llama.cpp alone, with one sequence, its own sampler (our temperature and min-p) and no grammar, in tokens a second."""
    params = SamplingParams(seed=1)
    sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    with ExitStack() as opened, engine.borrowed() as context:
        opened.callback(llama_cpp.llama_sampler_free, sampler)
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_min_p(params.min_p, 1))
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_temp(params.temperature))
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_dist(params.seed))
        prompt = list(engine.conversation(script()).opening)
        for at in range(0, len(prompt), context.n_batch):  # a vocabulary of bytes takes hundreds of tokens for it
            some = prompt[at : at + context.n_batch]
            context.decode([Feed(0, at, some, [len(some) - 1])])
        start = time.perf_counter()
        for position in range(len(prompt), len(prompt) + n_tokens):
            token = llama_cpp.llama_sampler_sample(sampler, context.handle, -1)
            context.decode([Feed(0, position, [token], [0])])
        return n_tokens / (time.perf_counter() - start)


@contextmanager
def writing(engine: Engine, n_slots: int, seed: int) -> Iterator[list[Future[Generation]]]:
    """Start `n_slots` blueprints, and yield once all of them write. On leaving, the unfinished ones are cancelled."""
    before = engine.health().tokens_written
    futures = [engine.submit(job(seed + slot)) for slot in range(n_slots)]
    try:
        wait_until(lambda: written(engine, before) >= WRITING_TOKENS * n_slots or _ended(futures))
        yield futures
    finally:
        for future in futures:
            future.cancel()
        wait_until(lambda: not engine.health().running)


def speed(
    engine: Engine, futures: list[Future[Generation]], n_tokens: int = SPEED_TOKENS, clock: Clock = time.perf_counter
) -> float:
    """Measure, over the next `n_tokens` of each answer, how many tokens a second all write together."""
    start, before = clock(), engine.health().tokens_written
    wait_until(lambda: written(engine, before) >= n_tokens * len(futures) or _ended(futures))
    return written(engine, before) / (clock() - start)


def together(engine: Engine, n_slots: int, progress: Callable[[int], None] = lambda tokens: None) -> Together:
    """Time whole blueprints, `n_slots` at once. `progress` is told how many tokens are written."""
    before = engine.health().tokens_written
    with writing(engine, n_slots, seed=0) as futures:
        tokens_per_s = speed(engine, futures)
        while not all(future.done() for future in futures):
            progress(written(engine, before))
            time.sleep(POLL_S)
        slowest_s = max(future.result().total_s for future in futures)
    return Together(n_slots, tokens_per_s, slowest_s, time_points(slowest_s))


def written(engine: Engine, before: int) -> int:
    return engine.health().tokens_written - before


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(POLL_S)


def _ended(futures: list[Future[Generation]]) -> bool:
    return any(future.done() for future in futures)
