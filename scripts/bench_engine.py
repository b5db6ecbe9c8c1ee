#!/usr/bin/env python3
"""How fast constrained generation is, beside what the same llama.cpp does without us. One run, interleaved.

    scripts/bench_engine.py --model FILE.gguf [--slots 1,2,4,8,16] [--tokens 24] [--rounds 7] [--requests 0] [--drift 0]

    (a) llama-cpp-python, no grammar       (b) llama-cpp-python with its own `grammar=`
    (c) ours, an engine of one slot        (d) ours, n slots of one engine
    (e) bare llama_decode of n sequences, no choice of tokens at all

All write to the blueprint's prompt with the prompt already cached, so the figures are of decoding. Many short rounds: a
ratio is the median over the rounds of two measurements that follow each other, which a neighbour's load disturbs least.

Also: milliseconds of choosing and masking per token on made-up logits; the time to the first token behind a cached
beginning; with --requests how memory grows; with --drift how far so many answers of one seed differ by the number of slots
they were written in. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil

from storyfi_lite import bench
from storyfi_lite.bench import TASK, USER_INPUT, job, script
from storyfi_lite.engine.engine import Engine, Generation
from storyfi_lite.engine.model import ENGINE_NAME, Context, Feed, Model
from storyfi_lite.engine.replay import Replayer
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.grammar.prose import Prose, Words
from storyfi_lite.grammar.script import Script, one_turn
from storyfi_lite.machine import devices
from storyfi_lite.protocol.messages import StoryRequest

N_CTX = 1024
GBNF = TASK.constraint(StoryRequest(task_type="blueprint", user_input=USER_INPUT)).gbnf
clock = time.perf_counter
PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}assistant:\n"
STORY = (
    "An old lighthouse stands on a cliff above a cold northern sea, where ships once passed each night and the keeper "
    "wrote down their names in a book that nobody reads any more. The village below has emptied, its boats are rotting, "
    "and the fog comes earlier every year. At night the light still turns, and something answers it from the water. "
)


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
        limit = llama_cpp.LlamaGrammar.from_string(GBNF, verbose=False) if grammar else None
        start = clock()
        answer: Any = self._llama.create_completion(
            self._prompt, max_tokens=self._n_tokens, temperature=0.7, min_p=0.1, seed=seed, grammar=limit
        )
        return int(answer["usage"]["completion_tokens"]) / (clock() - start)


class Bare:
    """llama_decode alone, on a context of its own with the prompt in every sequence: fixed tokens, logits asked for and
    not looked at."""

    def __init__(self, model: Model, settings: EngineSettings, prompt: list[int]) -> None:
        self.context = Context(model, settings)
        self._prompt = prompt
        for sequence in range(settings.n_slots):
            self.context.decode([Feed(sequence, 0, prompt, [])])

    def speed(self, n_slots: int, n_tokens: int) -> float:
        start_at = len(self._prompt)
        for sequence in range(n_slots):
            self.context.forget(sequence, start_at)
        start = clock()
        for step in range(n_tokens):
            token = self._prompt[step % start_at]
            self.context.decode([Feed(sequence, start_at + step, [token], [0]) for sequence in range(n_slots)])
        return n_tokens * n_slots / (clock() - start)


def our_speed(engine: Engine, n_slots: int, n_tokens: int, seed: int) -> float:
    """Tokens a second of `n_slots` answers together, from the time that all write until `n_tokens` more each."""
    with bench.writing(engine, n_slots, seed) as futures:
        return bench.speed(engine, futures, n_tokens, clock)


def choice_ms(engine: Engine, n_tokens: int = 120) -> tuple[float, int]:
    """Milliseconds for choosing one token, and how many tokens the script forced instead. Made-up logits:
    noise with 30 likely tokens, the best of which goes on with a story; each 20th time the best one is not allowed."""
    words, rng = engine.model.vocabulary, np.random.default_rng(0)
    noise = rng.normal(0, 1, words.size).astype(np.float32)
    asked = script()
    rule = ChoiceRule(words, engine.conversation(asked), asked, SamplingParams(1), N_CTX)
    story = words.tokenize(STORY, special=False)
    brace = words.tokenize("}", special=False)[-1]
    taken_s = 0.0
    for step in range(n_tokens):
        logits = noise.copy()
        logits[rng.integers(0, words.size, 30)] = 22 + rng.random(30)
        logits[story[step % len(story)]] = 25
        if step % 20 == 7:
            logits[brace] = 26
        start = clock()
        rule.force()
        if rule.done:
            break
        rule.choose(logits)
        taken_s += clock() - start
    chosen = len(rule.sampled_positions)
    return 1000 * taken_s / chosen, len(rule.tokens) - chosen


def first_token_ms(engine: Engine, seed: int) -> tuple[float, float, int]:
    """(ours, bare, tokens decoded): from submit to the first chosen token of a request whose prompt's beginning is cached.
    By the wall clock always: an answer goes on after its first token."""

    def letter(user_input: str) -> Script:
        asked = script(user_input)
        return one_turn(asked.pieces[0].ask, {"a": Words(1, 1)}, asked.system, asked.material)

    engine.submit(job(seed, letter(USER_INPUT))).result()
    text = f"Story number {seed}: " + "a ship and its captain, and the island that no map shows. " * 4
    start = time.monotonic()
    generation = engine.submit(job(seed, letter(text))).result()
    rest_s = generation.total_s - generation.queued_s - generation.first_token_s
    ours_s = time.monotonic() - start - rest_s
    cached = engine.conversation(letter(USER_INPUT)).opening
    fed = list(generation.conversation.opening)
    shared = next(index for index, (one, two) in enumerate(zip(cached, fed, strict=False)) if one != two)
    with engine.borrowed() as context:
        context.decode([Feed(0, 0, fed[:shared], [])])
        start = time.monotonic()
        context.decode([Feed(0, shared, fed[shared:], [len(fed) - shared - 1])])
        bare_s = time.monotonic() - start
    return 1000 * ours_s, 1000 * bare_s, len(fed) - shared


def memory_growth(engine: Engine, requests: int) -> dict[str, float]:
    """Resident memory after a tenth of the requests and after all of them."""
    process, early = psutil.Process(), 0
    for done in range(0, requests, 16):
        futures = [
            engine.submit(job(done + index, one_turn(f"Person {done + index}", {"name": Words(8, 24)})))
            for index in range(16)
        ]
        for future in futures:
            future.result()
        if not early and done >= requests // 10:
            early = process.memory_info().rss
    late = process.memory_info().rss
    return {"requests": requests, "rss_early_bytes": early, "rss_late_bytes": late, "growth": late / early - 1}


def drift(engine: Engine, counts: list[int], answers: int) -> dict[int, dict[str, float]]:
    """The same seeds written in 1 slot and in n at once: the share of equal texts, how far equal ones and others go
    together, and the mean margin of each count's answers in a replay."""
    short = one_turn("Describe a lighthouse in one paragraph.", {"setting": Prose(150, 300)})
    found: dict[int, dict[str, float]] = {}
    alone: list[Generation] = []
    for count in sorted({1, *counts}):
        written: list[Generation] = []
        for seed in range(0, answers, count):
            futures = [engine.submit(job(seed + more, short)) for more in range(min(count, answers - seed))]
            written += [future.result() for future in futures]
        alone = alone or written
        pairs = list(zip(alone, written, strict=True))
        with engine.borrowed() as context:
            margins = [margin(engine, context, short, seed, answer) for seed, answer in enumerate(written)]
        found[count] = {
            "same_text": statistics.mean(one.tokens == other.tokens for one, other in pairs),
            "same_beginning": statistics.mean(
                _common(one.tokens, other.tokens) / len(one.tokens) for one, other in pairs
            ),
            "mean_margin": statistics.mean(margins),
        }
        note(f"drift, {count} at once: {found[count]}")
    return found


def margin(engine: Engine, context: Context, script: Script, seed: int, answer: Generation) -> float:
    rule = ChoiceRule(engine.model.vocabulary, answer.conversation, script, SamplingParams(seed), answer.max_tokens)
    result = Replayer(context).replay(rule, answer.conversation, list(answer.tokens))
    assert result.refuted is None, result.refuted
    return result.mean_margin


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))


def threads() -> int:
    return 1 if clock is time.process_time else psutil.cpu_count(logical=False) or 1


def gpu_layers() -> int:
    return 999 if devices.gpus() else 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    counts = [int(count) for count in arguments.slots.split(",")]
    settings = EngineSettings(n_ctx=N_CTX, n_threads=threads(), n_gpu_layers=gpu_layers())
    many = EngineSettings(n_ctx=N_CTX, n_slots=max(counts), n_threads=threads(), n_gpu_layers=gpu_layers())
    template = None if has_template(arguments.model) else PLAIN_TEMPLATE
    with Engine(arguments.model, settings, template) as one, Engine(arguments.model, many, template) as engine:
        prompt = list(engine.conversation(script()).opening)
        stock, bare = Stock(arguments.model, prompt, arguments.tokens), Bare(engine.model, many, prompt)
        rows: dict[str, Callable[[int], float]] = {
            "b": lambda seed: stock.speed(True, seed),
            "a": lambda seed: stock.speed(False, seed),
            "c": lambda seed: our_speed(one, 1, arguments.tokens, seed),
        }
        for count in counts:
            rows[f"d{count}"] = partial(our_speed, engine, count, arguments.tokens)
            rows[f"e{count}"] = lambda seed, count=count: bare.speed(count, arguments.tokens)  # type: ignore[misc]
        found: dict[str, list[float]] = {name: [] for name in rows}
        first: list[tuple[float, float, int]] = []
        for round_number in range(arguments.rounds + 1):
            for name, run in rows.items():
                speed = run(100 * round_number)
                if round_number:  # the first round warms up
                    found[name].append(speed)
                note(f"round {round_number}: ({name}) {speed:.1f} tokens/s")
            first += [first_token_ms(one, 100 * round_number + again) for again in range(3)]
        chosen_ms, forced = min(choice_ms(engine) for _ in range(5))  # the best: a neighbour's load is no cost of ours
        growth = memory_growth(engine, arguments.requests) if arguments.requests else None
        drifted = drift(engine, counts, arguments.drift) if arguments.drift else None
        vocabulary = engine.model.vocabulary.size
        bare.context.close()
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
        "ratios": {f"{one}/{other}": ratio(found[one], found[other]) for one, other in pairs(counts)},
        "choice_ms": chosen_ms,
        "forced_tokens": forced,
        "first_token": first_token(first[3:]),
        "memory": growth,
        "drift": drifted,
    }


def pairs(counts: list[int]) -> list[tuple[str, str]]:
    return [("b", "a"), ("c", "a"), ("c", "b"), *((f"d{count}", f"e{count}") for count in counts)]


def ratio(ones: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def first_token(found: list[tuple[float, float, int]]) -> dict[str, float]:
    ours, bare, tokens = (statistics.median(column) for column in zip(*found, strict=True))
    return {"ours_ms": ours, "bare_ms": bare, "uncached_tokens": tokens}


def has_template(path: Path) -> bool:
    from gguf import GGUFReader

    return "tokenizer.chat_template" in GGUFReader(path).fields


def show(result: dict[str, Any]) -> None:
    speeds, ratios = result["tokens_per_s"], result["ratios"]
    print(
        f"{result['model']}, {result['vocabulary_tokens']} tokens of vocabulary, {result['engine']}, {result['threads']} threads"
    )
    print(f"(a) stock, no grammar      {speeds['a']:8.1f} tokens/s")
    print(f"(b) stock, its grammar     {speeds['b']:8.1f} tokens/s   {ratios['b/a']:5.2f} × (a)")
    print(
        f"(c) ours, one slot         {speeds['c']:8.1f} tokens/s   {ratios['c/a']:5.2f} × (a)   {ratios['c/b']:5.2f} × (b)"
    )
    for name in (name for name in speeds if name.startswith("d")):
        other = "e" + name[1:]
        print(
            f"(d) ours, {name[1:]:>2} slots         {speeds[name]:8.1f} tokens/s   {ratios[f'{name}/{other}']:5.2f} × (e), bare: {speeds[other]:.1f}"
        )
    print(f"choosing and masking       {result['choice_ms']:8.3f} ms a token and slot")
    ours, bare, tokens = (result["first_token"][name] for name in ("ours_ms", "bare_ms", "uncached_tokens"))
    print(f"first token, cached prefix {ours:8.1f} ms   {ours / bare:5.2f} × bare decode of the {tokens} tokens left")
    if growth := result["memory"]:
        print(f"memory over {growth['requests']} requests   {100 * growth['growth']:8.2f} % growth")
    for count, row in (result["drift"] or {}).items():
        print(
            f"same seed, {count:>2} at once    {row['same_text']:7.0%} of texts equal those written alone, "
            f"{row['same_beginning']:.0%} of tokens before the first difference; replay margin {row['mean_margin']:.4f} nats"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--slots", default="1,2,4,8,16")
    parser.add_argument("--tokens", type=int, default=24, help="a slot and measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=0, help="short requests for the memory figure")
    parser.add_argument("--drift", type=int, default=0, help="answers for the figure of drift by slots")
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
