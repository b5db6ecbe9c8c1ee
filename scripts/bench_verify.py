"""How fast a validator verifies, scores and finds near-copies, on one core. Prints a table, then one JSON line.

    python scripts/bench_verify.py                 # 100,000 old answers, about two minutes
    python scripts/bench_verify.py --old 10000

Answers are made up: words drawn from a vocabulary by Zipf's law, so that they share bigrams as prose of one language does;
half of them in Han characters. Tasks come in the network's shares. Nothing else should load the machine meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from storyfi_lite import tasks
from storyfi_lite.grammar.schema import Array, Const, Node, Object, Open, Text, Tuple, dump
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator import Context, CopyIndex, Entry, fingerprint, score, verify

SHARES = {"blueprint": 40, "characters": 25, "story_arc": 25, "chapters": 10}
ROUND = 256
WANTED = {"verify_per_s": 256, "score_per_s": 100, "copies_s": 1.0}


class Writer:
    """Fills a task's schema with words; `han` writes without spaces."""

    def __init__(self, rng: random.Random, han: bool) -> None:
        self._rng, self._han = rng, han
        syllables = [
            a + b
            for a in ["b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "th", "v", "w"]
            for b in ["a", "e", "i", "o", "u", "ar", "en", "il", "on"]
        ]
        made = {"".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(4000)}
        self._words = [chr(0x4E00 + at * 5) for at in range(3000)] if han else sorted(made)
        self._weights = [1 / (rank + 3) for rank in range(len(self._words))]

    def story(self, node: Node) -> Any:
        if isinstance(node, Text):
            return self._text(self._rng.randint(node.min_chars, min(node.max_chars, node.min_chars * 2)))
        if isinstance(node, Const):
            return list(node.value) if isinstance(node.value, tuple) else node.value
        if isinstance(node, Open):
            return self.story(node.written)
        if isinstance(node, Array):
            return [self.story(node.item) for _ in range(self._rng.randint(node.min_items, node.max_items))]
        if isinstance(node, Tuple):
            return [self.story(item) for item in node.items]
        assert isinstance(node, Object)
        return {key: self.story(item) for key, item in node.fields}

    def _text(self, length: int) -> str:
        count = length if self._han else length // 3 + 1  # with its space, a word has three letters or more
        words = self._rng.choices(self._words, self._weights, k=count)
        space, comma, stop = ("", "，", "。") if self._han else (" ", ", ", ". ")
        ends = [stop if at % 19 == 18 else comma if at % 7 == 6 else space for at in range(count)]
        text = "".join(word + end for word, end in zip(words, ends, strict=True))
        return text[: length - 1] + ("。" if self._han else ".")


def a_request(task: str, stages: dict[str, Any]) -> StoryRequest:
    asked = {"task_type": task, "user_input": "一位守灯人听见大海说话 a lighthouse keeper who hears the sea speak"}
    needs = {name: stages[name] for name in tasks.get(task).needs if name in stages}
    return StoryRequest.model_validate({**asked, **needs, "chapter_ids": [3, 4] if task == "chapters" else None})


def a_body(story: Any) -> bytes:
    text = dump(story)
    fields = {
        "output_data": story,
        "output_text": text,
        "generation_time": 1.0,
        "miner_version": "bench",
        "model_info": {"mode": "local", "name": "m", "version": "1", "provider": "p", "parameters": {}},
        "miner_mode": "LocalModelLoader",
        "model_name": "llama-3-8b",
        "gpu_memory_gb": 24.0,
        "tokens": list(range(len(text) // 4)),
    }
    return json.dumps(fields, ensure_ascii=False).encode()


def traffic(rng: random.Random, count: int) -> list[tuple[StoryRequest, bytes]]:
    """Requests and answers as a round brings them, stages included."""
    writers = [Writer(rng, han) for han in (False, True)]
    drawn = rng.choices(list(SHARES), list(SHARES.values()), k=count)
    made = []
    for at, task in enumerate(drawn):
        writer, stages = writers[at % 2], dict[str, Any]()
        for name in ("blueprint", "characters", "story_arc"):
            stages[name] = writer.story(tasks.get(name).schema_of(a_request(name, {**stages})))
        request = a_request(task, stages)
        made.append((request, a_body(writer.story(tasks.get(task).schema_of(request)))))
    return made


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """The best of `times` runs, after one that does not count."""
    work()
    best = float("inf")
    for _ in range(times):
        started_s = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started_s)
    return best


def verify_and_score(figures: dict[str, float], rng: random.Random) -> None:
    made = traffic(rng, ROUND)
    seen = [verify(request, body) for request, body in made]
    assert all(one.valid and one.canonical for one in seen), next(one.problems for one in seen if not one.valid)

    def whole() -> None:
        for request, body in made:
            one = verify(request, body)
            assert one.data is not None
            fingerprint(request, one.data, "m")
            score(one, Context(request, 20.0))

    figures["mean_body_bytes"] = sum(len(body) for _, body in made) / len(made)
    figures["verify_per_s"] = ROUND / seconds(lambda: [verify(request, body) for request, body in made])
    figures["score_per_s"] = ROUND / seconds(whole)
    request = made[0][0]
    hostile = {
        "50 MB": b'{"output_data":"' + b"x" * 50_000_000,
        "4 MB of brackets": b"[" * 4_000_000,
        "4 MB of lists": b'{"output_data":{"a":[' + b"[]," * 1_300_000 + b"1]}}",
        "2 MB of one text": b'{"output_data":{"title":"'
        + b"x" * 1_900_000
        + a_body({"title": "x"}).split(b'"title": "x')[1],
        "600 kB of marks": a_body({"title": "a" + "\u0301" * 150_000 + "\u0323" * 150_000}),
        "a theme of marks, just not too long": a_body({"themes": ["\u0323\u0f73\uff9e\u0301" * 4_990]}),
    }
    context = Context(request, 10.0)
    figures["worst_hostile_s"] = max(seconds(partial(score, raw, context), 1) for raw in hostile.values())


def near_copies(figures: dict[str, float], rng: random.Random, old: int) -> None:
    """All of one task, which is the worst case: everything on one catalog. 16 of the round are copies."""
    request = a_request("blueprint", {})
    schema = tasks.get("blueprint").schema_of(request)
    writers = [Writer(rng, han) for han in (False, True)]
    before = psutil.Process().memory_info().rss
    history = [fingerprint(request, writers[at % 2].story(schema), f"m{at}") for at in range(old)]
    started_s = time.perf_counter()
    index = CopyIndex(history)
    figures["index_build_s"] = time.perf_counter() - started_s
    figures["index_mb"] = (psutil.Process().memory_info().rss - before) / 1e6
    prints = [fingerprint(request, writers[at % 2].story(schema), f"r{at}") for at in range(ROUND - 16)]
    prints += rng.sample(history, 16)
    entries = [Entry(one, float(at)) for at, one in enumerate(prints)]
    figures["old_answers"] = old
    figures["copies_s"] = seconds(lambda: index.compare(entries))
    figures["copies_found_of_16"] = sum(like.copy_of is not None for like in index.compare(entries))


@click.command(help=__doc__)
@click.option("--old", default=100_000, show_default=True, help="Old answers in the index.")
@click.option("--seed", default=1, show_default=True)
def main(old: int, seed: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures: dict[str, float] = {}
    verify_and_score(figures, random.Random(seed))
    near_copies(figures, random.Random(seed), old)
    table = Table(
        "figure", "measured", "wanted", title=f"one core of {platform.machine()}, Python {platform.python_version()}"
    )
    for name, value in figures.items():
        wanted = WANTED.get(name)
        at_least = "at most" if name.endswith("_s") and not name.endswith("per_s") else "at least"
        table.add_row(
            name, f"{value:,.4g}" if value < 1000 else f"{value:,.0f}", f"{at_least} {wanted:g}" if wanted else ""
        )
    Console().print(table)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
