#!/usr/bin/env python3
"""How fast constrained generation is, beside what the same llama.cpp does without us. One run, interleaved, medians.

    scripts/bench_engine.py --model FILE.gguf [--slots 1,2,4,8,16] [--tokens 96] [--rounds 3] [--requests 0]

    (a) llama-cpp-python, no grammar       (b) llama-cpp-python with its own `grammar=`
    (c) ours, an engine of one slot        (d) ours, n slots of one engine
    (e) bare llama_decode of n sequences, no choice of tokens at all

All write to the blueprint's prompt with the prompt already cached, so the figures are of decoding. Also: milliseconds of
choosing and masking per token on made-up logits, the time to the first token behind a cached beginning, and, with
--requests, how memory grows. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
import psutil

from storyfi_lite import tasks
from storyfi_lite.engine.engine import Engine, EngineJob
from storyfi_lite.engine.measure import bare_tokens_per_s, engine_tokens_per_s
from storyfi_lite.engine.model import ENGINE_NAME, Context, Feed
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.grammar import Constraint
from storyfi_lite.grammar.schema import Object, Text
from storyfi_lite.wire.messages import StoryRequest

N_CTX = 1024
clock = time.perf_counter
FAR_S = 3600.0
TASK = tasks.get("blueprint")
REQUEST = StoryRequest(task_type="blueprint", user_input="A lighthouse keeper hears the sea answer.")
CONSTRAINT = TASK.constraint(REQUEST)
PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}assistant:\n"
STORY = (
    "An old lighthouse stands on a cliff above a cold northern sea, where ships once passed each night and the keeper "
    "wrote down their names in a book that nobody reads any more. The village below has emptied, its boats are rotting, "
    "and the fog comes earlier every year. At night the light still turns, and something answers it from the water. "
)


def job(seed: int, user_input: str = REQUEST.user_input, constraint: Constraint = CONSTRAINT) -> EngineJob:
    messages = TASK.messages(StoryRequest(task_type="blueprint", user_input=user_input))
    return EngineJob(messages, constraint, SamplingParams(seed), time.monotonic() + FAR_S)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Stock:
    """llama-cpp-python's own user class."""

    def __init__(self, path: Path, prompt: list[int], n_tokens: int) -> None:
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=N_CTX,
            n_threads=threads(),
            n_threads_batch=threads(),
            flash_attn=True,
            verbose=False,
            n_gpu_layers=gpu_layers(),
        )
        self._prompt, self._n_tokens = prompt, n_tokens

    def speed(self, grammar: bool, seed: int) -> float:
        """Tokens a second. The prompt is cached from the call before."""
        limit = llama_cpp.LlamaGrammar.from_string(CONSTRAINT.gbnf, verbose=False) if grammar else None
        start = clock()
        answer = self._llama.create_completion(
            self._prompt, max_tokens=self._n_tokens, temperature=0.7, min_p=0.1, seed=seed, grammar=limit
        )
        return int(answer["usage"]["completion_tokens"]) / (clock() - start)


def choice_ms(engine: Engine, n_tokens: int = 120) -> tuple[float, int]:
    """Milliseconds for choosing and masking one token, and how many tokens the grammar forced instead. Made-up logits:
    noise with 30 likely tokens, the best of which goes on with a story; each 20th time the best one is not allowed."""
    words, rng = engine.model.vocabulary, np.random.default_rng(0)
    noise = rng.normal(0, 1, words.size).astype(np.float32)
    rule = ChoiceRule(words, CONSTRAINT, SamplingParams(1), N_CTX)
    script = words.tokenize(STORY, special=False)
    brace = words.tokenize("}", special=False)[-1]
    taken_s, forced = 0.0, 0
    for step in range(n_tokens):
        logits = noise.copy()
        logits[rng.integers(0, words.size, 30)] = 22 + rng.random(30)
        logits[script[step % len(script)]] = 25
        if step % 20 == 7:
            logits[brace] = 26
        start = clock()
        forced += len(rule.force())
        if rule.done:
            break
        rule.choose(logits)
        taken_s += clock() - start
    return 1000 * taken_s / (len(rule.tokens) - forced), forced


def first_token_ms(engine: Engine, context: Context, seed: int) -> tuple[float, float, int]:
    """(ours, bare, tokens decoded): to the first token of a request whose prompt's beginning is cached."""
    text = f"Story number {seed}: " + "a ship and its captain, and the island that no map shows. " * 4
    prompt = engine.prompt_tokens(job(seed).messages)
    other = engine.prompt_tokens(job(seed, text).messages)
    shared = next(index for index, (one, two) in enumerate(zip(prompt, other, strict=False)) if one != two)
    generation = engine.submit(job(seed, text)).result()
    rest = [*other, *engine.model.vocabulary.tokenize('{"title":"', special=False)]
    context.forget(0)
    context.decode([Feed(0, 0, rest[:shared], [])])
    start = clock()
    context.decode([Feed(0, shared, rest[shared:], [len(rest) - shared - 1])])
    bare_s = clock() - start
    engine.submit(job(seed, constraint=Constraint(Object((("title", Text(2, 12)),))))).result()
    return 1000 * generation.first_token_s, 1000 * bare_s, len(rest) - shared


def memory_growth(engine: Engine, requests: int) -> dict[str, float]:
    """Resident memory after a tenth of the requests and after all of them."""
    small = Constraint(Object((("name", Text(8, 24)),)))
    process, early = psutil.Process(), 0
    for done in range(0, requests, 16):
        futures = [engine.submit(job(done + index, f"Person {done + index}", small)) for index in range(16)]
        for future in futures:
            future.result()
        if not early and done >= requests // 10:
            early = process.memory_info().rss
    late = process.memory_info().rss
    return {"requests": requests, "rss_early_bytes": early, "rss_late_bytes": late, "growth": late / early - 1}


def threads() -> int:
    return 1 if clock is time.process_time else psutil.cpu_count(logical=False) or 1


def gpu_layers() -> int:
    return 999 if llama_cpp.llama_supports_gpu_offload() else 0


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    counts = [int(count) for count in arguments.slots.split(",")]
    settings = EngineSettings(n_ctx=N_CTX, n_threads=threads(), n_gpu_layers=gpu_layers())
    many = EngineSettings(n_ctx=N_CTX, n_slots=max(counts), n_threads=threads(), n_gpu_layers=gpu_layers())
    template = None if has_template(arguments.model) else PLAIN_TEMPLATE
    with Engine(arguments.model, settings, template) as one, Engine(arguments.model, many, template) as engine:
        bare = Context(engine.model, many)
        prompt = engine.prompt_tokens(job(0).messages)
        stock = Stock(arguments.model, prompt, arguments.tokens)

        def ours(engine: Engine, n_slots: int, seed: int) -> float:
            return engine_tokens_per_s(engine, lambda slot: job(seed + slot), n_slots, arguments.tokens, clock)

        rows: dict[str, Callable[[int], float]] = {
            "a": lambda seed: stock.speed(False, seed),
            "b": lambda seed: stock.speed(True, seed),
            "c": lambda seed: ours(one, 1, seed),
        }
        for count in counts:
            rows[f"d{count}"] = lambda seed, count=count: ours(engine, count, seed)  # type: ignore[misc]
            rows[f"e{count}"] = lambda seed, count=count: bare_tokens_per_s(
                bare, prompt, count, arguments.tokens, clock
            )  # type: ignore[misc]
        found: dict[str, list[float]] = {name: [] for name in rows}
        first: list[tuple[float, float, int]] = []
        for round_number in range(arguments.rounds + 1):
            for name, run in rows.items():
                speed = run(100 * round_number)
                if round_number:  # the first round warms up
                    found[name].append(speed)
                note(f"round {round_number}: ({name}) {speed:.1f} tokens/s")
            if clock is time.perf_counter:
                first.append(first_token_ms(one, bare, round_number))
        chosen_ms, forced = min(choice_ms(engine) for _ in range(5))  # the best: a neighbour's load is no cost of ours
        growth = memory_growth(engine, arguments.requests) if arguments.requests else None
        vocabulary = engine.model.vocabulary.size
        bare.close()
    middle = {name: statistics.median(speeds) for name, speeds in found.items()}
    return {
        "model": arguments.model.name,
        "engine": ENGINE_NAME,
        "vocabulary_tokens": vocabulary,
        "threads": threads(),
        "clock": clock.__name__,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "tokens_per_s": middle,
        "choice_ms": chosen_ms,
        "forced_tokens": forced,
        "first_token": first_token(first[1:]),
        "memory": growth,
    }


def first_token(found: list[tuple[float, float, int]]) -> dict[str, float] | None:
    if not found:
        return None
    ours, bare, tokens = (statistics.median(column) for column in zip(*found, strict=True))
    return {"ours_ms": ours, "bare_ms": bare, "uncached_tokens": tokens}


def has_template(path: Path) -> bool:
    from gguf import GGUFReader

    return "tokenizer.chat_template" in GGUFReader(path).fields


def show(result: dict[str, object]) -> None:
    speeds: dict[str, float] = result["tokens_per_s"]  # type: ignore[assignment]
    print(
        f"{result['model']}, {result['vocabulary_tokens']} tokens of vocabulary, {result['engine']}, {result['threads']} threads"
    )
    print(f"(a) stock, no grammar      {speeds['a']:8.1f} tokens/s")
    print(f"(b) stock, its grammar     {speeds['b']:8.1f} tokens/s   {speeds['b'] / speeds['a']:5.2f} × (a)")
    print(
        f"(c) ours, one slot         {speeds['c']:8.1f} tokens/s   {speeds['c'] / speeds['a']:5.2f} × (a)   {speeds['c'] / speeds['b']:5.2f} × (b)"
    )
    for name in speeds:
        if name.startswith("d"):
            ours, bare = speeds[name], speeds["e" + name[1:]]
            print(
                f"(d) ours, {name[1:]:>2} slots         {ours:8.1f} tokens/s   {ours / bare:5.2f} × (e), bare: {bare:.1f}"
            )
    print(f"choosing and masking       {result['choice_ms']:8.3f} ms a token and slot")
    if first := result["first_token"]:
        ours, bare, tokens = (first[name] for name in ("ours_ms", "bare_ms", "uncached_tokens"))  # type: ignore[index]
        print(
            f"first token, cached prefix {ours:8.1f} ms   {ours / bare:5.2f} × bare decode of the {tokens} tokens left"
        )
    if result["memory"]:
        print(f"memory over {result['memory']['requests']} requests   {100 * result['memory']['growth']:8.2f} % growth")  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--slots", default="1,2,4,8,16")
    parser.add_argument("--tokens", type=int, default=96, help="a slot and measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=0, help="short requests for the memory figure")
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="one thread, CPU seconds: for a machine that is not idle"
    )
    arguments = parser.parse_args()
    if arguments.cpu_seconds:
        global clock
        clock = time.process_time
    result = measure(arguments)
    show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
