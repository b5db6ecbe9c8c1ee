#!/usr/bin/env python3
"""Has a model compare blueprints in pairs, blind: two that answer one input, without names, in both orders.

    PYTHONPATH=. scripts/judge_stories.py BEFORE.jsonl NOW.jsonl --model JUDGE.gguf
    PYTHONPATH=. scripts/judge_stories.py BEFORE.jsonl NOW.jsonl --url http://127.0.0.1:8000/v1 --name MODEL      any OpenAI-compatible endpoint; $OPENAI_API_KEY

The files are those that scripts/bench_stories.py keeps. Prints how many pairs each side won in both orders, how many were decided by
the order alone, and one JSON line. A judge that mostly names the place and not the text says nothing: look at that figure first.
"""

from __future__ import annotations

import argparse
import json
import os
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scripts.bench_stories import PLAIN, read
from storyfi_lite.engine.model import Context, Feed, Model
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.grammar.prose import Words
from storyfi_lite.grammar.script import one_turn
from storyfi_lite.models.gguf import read_local

ASK = """Two writers were given this idea for a story: {idea}

Text A:
{a}

Text B:
{b}

Which text is the better beginning of a story that people would want to read, A or B? Answer with one letter."""

Judge = Callable[[str], float]  # what is asked -> how much A is preferred; below 0: B


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("before", type=Path)
    options.add_argument("now", type=Path)
    judges = options.add_mutually_exclusive_group(required=True)
    judges.add_argument("--model", type=Path)
    judges.add_argument("--url")
    options.add_argument("--name", default="", help="the endpoint's model")
    given = options.parse_args()
    before, now = (read(path)["blueprint"] for path in (given.before, given.now))
    judge = local(given.model) if given.model else remote(given.url, given.name)
    found: Counter[str] = Counter()
    for old, new in zip(before, now, strict=True):
        idea = new["request"]["user_input"]
        texts = [
            f"{data['setting']}\n{data['core_conflict']}" for data in (json.loads(one["text"]) for one in (old, new))
        ]
        first = judge(ASK.format(idea=idea, a=texts[0], b=texts[1]))
        second = judge(ASK.format(idea=idea, a=texts[1], b=texts[0]))
        if (first > 0) != (second > 0):
            found["before" if first > 0 else "now"] += 1
        else:
            found["the first" if first > 0 else "the second"] += 1
    sides = ("before", "now", "the first", "the second")
    for side in sides:
        print(f"{found[side]:3d} of {len(now)} pairs: {side}{'' if side in sides[:2] else ', in both orders'}")
    print(json.dumps({"judge": given.name or given.model.name, **{side: found[side] for side in sides}}))


def local(path: Path) -> Judge:
    """By the logits of the two letters, where the answer begins."""
    settings = EngineSettings(n_ctx=2048, n_batch=2048)
    model = Model(path, settings, None if "tokenizer.chat_template" in read_local(path).metadata else PLAIN)
    context, words = Context(model, settings), model.vocabulary
    letters = [[words.spelled(spelled)[0] for spelled in (letter, f" {letter}")] for letter in "AB"]

    def judge(asked: str) -> float:
        script = one_turn(asked, {"answer": Words(1, 1)})
        opening = list(model.chat_template.conversation(words, script).opening)
        context.forget(0)
        logits = context.decode([Feed(0, 0, opening, [len(opening) - 1])])[0][0]
        a, b = (float(logits[ids].max()) for ids in letters)
        return a - b

    return judge


def remote(url: str, name: str) -> Judge:
    def judge(asked: str) -> float:
        body = {"model": name, "messages": [{"role": "user", "content": asked}], "temperature": 0}
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}",
        }
        request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=600) as answer:
            said = json.load(answer)["choices"][0]["message"]["content"]
        return 1.0 if said.strip().upper().startswith("A") else -1.0

    return judge


if __name__ == "__main__":
    main()
