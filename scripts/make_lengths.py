#!/usr/bin/env python3
"""Makes storyfi_lite/placement/lengths.json: characters of real answers, and tokens a character of real vocabularies.

    scripts/make_lengths.py answers en SmolLM2-135M-Instruct.Q4_1.gguf ANSWERS.jsonl      all tasks, whole, brief and shortest: minutes
    scripts/make_lengths.py answers zh gemma-3-270m.gguf ANSWERS.jsonl --template GEMMA.jinja
    scripts/make_lengths.py table ANSWERS.jsonl VOCABULARY.gguf ...                       writes the table

Vocabularies: llama-cpp-python's source has real ones, vendor/llama.cpp/models/ggml-vocab-*.gguf; a model's file does as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import llama_cpp

from storyfi_lite import tasks
from storyfi_lite.engine.engine import Engine, EngineJob, Generation
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.engine.vocabulary import Vocabulary
from storyfi_lite.grammar.script import Script
from storyfi_lite.loaders.forecast import EXAMPLES
from storyfi_lite.machine import devices
from storyfi_lite.placement import catalog
from storyfi_lite.placement.lengths import TABLE
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.tasks.base import language_of

PROSE = Path(__file__).parent.parent / "tests" / "prose.json"
SAMPLE_CHARS = 800
# Today's Chinese, written for this table: that of tests/prose.json is a hundred years old, and takes a quarter more tokens.
CHINESE = (
    "故事发生在一座被海雾包围的小城。每天傍晚，码头上的灯一盏接一盏地亮起来，渔民们收起渔网，沿着石板路慢慢走回家。城里的人都相信，"
    "只要灯塔还亮着，大海就会把远行的亲人送回来。年轻的守灯人林远却知道，灯塔里的灯油只够再烧七个晚上。他的父亲三年前驾船出海，"
    "从此没有任何消息，只留下一本写满奇怪符号的航海日志。那天夜里，退潮以后，他第一次听见海水在说话，声音很轻，像是从很深的地方传来：“把灯熄掉，"
    "我们就把他还给你。”林远站在窗前，手心全是汗。如果他照做，夜里归航的十几条渔船就会撞上礁石；如果他拒绝，父亲也许永远不会回来。"
    "第二天早上，他去找城里最年长的修表匠，希望弄明白日志里的符号到底是什么意思。老人看了很久，最后叹了一口气，说这些符号记录的不是航线，"
    "而是每一个和大海做过交易的人的名字。林远翻到最后一页，看见了自己的名字，墨迹还没有干。他忽然明白，真正的选择并不在灯塔上，而在他愿意相信谁。"
)
INPUTS: dict[str, str] = {language_of(text): text for text in EXAMPLES.values()}
FORMS = {"whole": 6, "brief": 2, "least": 2}  # with so many seeds: whole ones differ most in length


def answers(language: str, path: Path, out: Path, template: str | None) -> None:
    """Whole stories, brief ones and the shortest, each task from the stages before it, all seeds at once; a line for each answer."""
    engine = Engine(path, EngineSettings(n_ctx=8192, n_slots=max(FORMS.values())), template)
    a_char = (catalog.tokens_a_char(path) or {})[language]  # type: ignore[index]
    for form, count in FORMS.items():
        stories: dict[int, dict[str, Any]] = {seed: {} for seed in range(1, count + 1)}
        for name, task in tasks.TASKS.items():
            writing: list[tuple[int, Script, Future[Generation]]] = []
            for seed, stages in stories.items():
                fields = {"task_type": name, "user_input": INPUTS[language], "chapter_ids": [1], **stages}
                request = StoryRequest.model_validate(fields)
                script = task.script(request, task.constraint(request, brief=form != "whole"))
                budget = script.min_tokens_bound if form == "least" else None
                job = EngineJob(script, SamplingParams(seed), time.monotonic() + 7200, budget)
                writing.append((seed, script, engine.submit(job)))
            for seed, script, future in writing:
                written = future.result()
                stories[seed][name] = json.loads(written.text)
                row = {"lang": language, "seed": seed, "task": name, "form": form, "turns": len(script.pieces),
                       "turn_chars": sum(map(len, script.texts(stories[seed][name]))), "tokens": len(written.tokens),
                       "a_char": a_char, "opening_chars": len(script.system) + len(script.asks[0]),
                       "bridge_chars": sum(map(len, script.asks[1:]))}  # fmt: skip
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    engine.close()


def table(rows: list[dict[str, Any]], vocabularies: list[Path]) -> dict[str, Any]:
    chars: dict[str, dict[str, Any]] = defaultdict(dict)
    for task in tasks.TASKS:
        for language in INPUTS:
            own = [row for row in rows if (row["task"], row["lang"]) == (task, language)]

            def usual(name: str, form: str, own: list[dict[str, Any]] = own) -> int:
                return round(statistics.median(row[name] for row in own if row["form"] == form))

            # Names, labels and turned phrases take more tokens than the sample, and a brief answer has more of them: each form counts
            # by its tokens, in characters of a whole answer.
            factor = statistics.median(
                one["tokens"] / one["turn_chars"] / one["a_char"] for one in own if one["form"] == "whole"
            )
            chars[task][language] = {
                "turns": own[0]["turns"],
                "opening": usual("opening_chars", "whole"),
                "bridges": usual("bridge_chars", "whole"),
                **{form: round(usual("tokens", form) / own[0]["a_char"] / factor) for form in FORMS},
                "factor": round(factor, 3),
            }
            row = chars[task][language]
            row["least"] = min(row["least"], row["brief"])  # where a brief answer is as short as can be, chance decides
        # both languages together: that much more is known of it
        shares = [
            row["turn_chars"] / chars[task][row["lang"]]["whole"]
            for row in rows
            if (row["task"], row["form"]) == (task, "whole")
        ]
        for by_language in chars[task].values():
            by_language["spread"] = round(statistics.stdev(shares), 3)
    prose = json.loads(PROSE.read_text())
    texts = {"en": " ".join(" ".join(text) for text in prose["en"])[:SAMPLE_CHARS], "zh": CHINESE}
    return {
        "made_by": "scripts/make_lengths.py",
        "chars": chars,
        "tokens_a_char": {path.stem.removeprefix("ggml-vocab-"): _counted(path, texts) for path in vocabularies},
        "sample": texts,
    }


def _counted(path: Path, texts: dict[str, str]) -> dict[str, float]:
    devices.ggml()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    vocabulary = Vocabulary(llama_cpp.llama_model_get_vocab(model))
    found = {language: round(len(vocabulary.tokenize(text, False)) / len(text), 4) for language, text in texts.items()}
    size = vocabulary.size
    llama_cpp.llama_model_free(model)
    return {"vocab_size": size, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["answers", "table"])
    parser.add_argument("rest", nargs="+")
    parser.add_argument("--template", metavar="FILE", help="a chat template, for a file that carries none")
    given = parser.parse_args()
    if given.what == "answers":
        language, path, out = given.rest
        answers(language, Path(path), Path(out), given.template and Path(given.template).read_text())
        return
    rows = [json.loads(line) for line in Path(given.rest[0]).read_text().splitlines()]
    made = table(rows, [Path(name) for name in given.rest[1:]])
    TABLE.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
