#!/usr/bin/env python3
"""How well the stories read, in figures: fixed inputs, one seed each, all four tasks of one model.

    bench_stories.py MODEL.gguf [--language zh] [--held-out] [--inputs N] [--stories N] [--before OLD.jsonl] [--keep NEW.jsonl] [--pairs]

Twenty blueprints, or so many as `--inputs` says, seeds 1 to 20; from the first of them, as many as `--stories` says, the other tasks
too, each from the stages before it. `--held-out`: ten other inputs, by which no rule was chosen. Prints a table and one JSON line: the
share of answers with four words (Chinese: six characters) in a row from our own instructions, prose that ends inside a sentence,
digits among its characters, repeated word trigrams, distinct words (Chinese:
characters) of all words and in each hundred, and our own score. `--before` reads answers that were kept by an earlier version,
for the same table; `--pairs` prints the blueprints, as docs/stories.md has them. Such figures see noise, not quality.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections import defaultdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from storyfi_lite import tasks
from storyfi_lite.engine.engine import Engine, EngineJob
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.grammar.prose import Prose, ends_a_sentence
from storyfi_lite.models.gguf import read_local
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.tasks.base import Language
from storyfi_lite.validator.score import Context, score

# For a base model that carries no chat template: the texts one after the other.
PLAIN = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
INPUTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "a lighthouse keeper who hears the sea speak",
        "two bakers in a small town want the same oven",
        "the last train out of a city that is forgetting its name",
        "a girl finds a door in the library that opens once a year",
        "a detective who cannot lie must catch a thief who cannot tell the truth",
        "an old soldier carries a letter across the mountains in winter",
        "a robot gardener keeps the only green park of a desert colony",
        "three sisters inherit a circus that nobody has ever seen",
        "a fisherman sells his shadow to pay for a boat",
        "the king's food taster falls in love with the poisoner",
        "a map maker draws an island and wakes up on it",
        "children in a flooded village teach themselves to build a ship",
        "a musician who lost her hearing joins an orchestra of ghosts",
        "a heist in a museum where the paintings watch",
        "the night nurse of a hospital for retired superheroes",
        "a boy raised by crows goes to school for the first time",
        "a clock that runs backwards is delivered to the wrong house",
        "a translator is hired to talk with something under the ice",
        "a village where every promise has to be written on a stone",
        "two rival astronauts share the last capsule home",
    ),
    "zh": (
        "一个关于灯塔守护人的故事",
        "一个关于AI觉醒的科幻故事",
        "古代王朝里的一场阴谋",
        "一位外卖骑手捡到一封寄往过去的信",
        "沙漠边上的小镇等了三十年的一场雨",
        "一个会做梦的机器人在图书馆工作",
        "两个武林门派争夺一口枯井",
        "失聪的琴师进了宫",
        "深海里的一座城市停了电",
        "一个女孩用影子换来一条船",
        "末班地铁上坐着十年前的自己",
        "草原上的一匹马不肯离开车站",
        "一位老木匠要造一扇通往昨天的门",
        "长安城里的猫都不见了",
        "月球殖民地最后一个医生",
        "一家只在下雪时开门的茶馆",
        "盗墓人挖出了自己的名字",
        "山里的小学只剩一个学生",
        "一条龙想学会说谎",
        "江边的渡口和不肯过河的人",
    ),
}
HELD_OUT: dict[Language, tuple[str, ...]] = {
    "en": (
        "a widow keeps bees on the roof of a bank",
        "the last speaker of a language teaches it to a parrot",
        "a ferryman refuses to carry one passenger",
        "a baker's apprentice finds a letter in the flour",
        "two brothers dig for water and find a staircase",
        "a weather station at the pole stops reporting snow",
        "a thief breaks into a house and decides to clean it",
        "an astronomer's daughter sells stars at the market",
        "the orchestra plays on while the theatre is being torn down",
        "a dragon opens a school for knights",
    ),
    "zh": (
        "一位寡妇在银行楼顶养蜂",
        "最后一个会说某种语言的人教鹦鹉说话",
        "渡口的船夫不肯载一位客人",
        "面包店学徒在面粉里发现一封信",
        "两兄弟挖井挖出一段楼梯",
        "极地气象站再也没有报告过下雪",
        "小偷闯进一户人家，决定替他们打扫",
        "天文学家的女儿在集市上卖星星",
        "剧院拆除时乐队还在演奏",
        "一条龙给骑士们办了一所学校",
    ),
}
HUNDRED = 100

Answers = dict[str, list[dict[str, Any]]]  # by task


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path)
    options.add_argument("--language", choices=list(INPUTS), default="en")
    options.add_argument("--held-out", action="store_true")
    options.add_argument("--inputs", type=int, default=20, metavar="N", help="blueprints of so many inputs")
    options.add_argument("--stories", type=int, default=5, metavar="N", help="of so many inputs all four tasks")
    options.add_argument("--before", type=Path, help="answers that an earlier version kept")
    options.add_argument(
        "--keep", type=Path, help="keep the answers, a line of JSON each; what is there is not written again"
    )
    options.add_argument("--pairs", action="store_true", help="print the blueprints, too")
    options.add_argument("--slots", type=int, default=2)
    options.add_argument("--threads", type=int, default=0)
    given = options.parse_args()
    after = read(given.keep) if given.keep and given.keep.exists() else write(given)
    both = {"before": read(given.before), "now": after} if given.before else {"now": after}
    found = {
        when: {task: measure(task, answers, given.language) for task, answers in by_task.items()}
        for when, by_task in both.items()
    }
    if given.pairs:
        print_pairs({when: by_task["blueprint"] for when, by_task in both.items()})
    columns = [(task, when) for task in after for when in both if task in both[when]]
    table = Table("", *(f"{task}, {when}" for task, when in columns))
    for name in found["now"]["blueprint"]:
        table.add_row(name, *(f"{found[when][task][name]:.3f}" for task, when in columns))
    Console(width=220).print(table)
    print(json.dumps({"model": given.model.name, "language": given.language, **found}))


def template_for(model: Path) -> str | None:
    """Return a plain template for a file that carries none."""
    return None if "tokenizer.chat_template" in read_local(model).metadata else PLAIN


def read(path: Path) -> Answers:
    by_task: Answers = defaultdict(list)
    for line in path.read_text().splitlines():
        one = json.loads(line)
        by_task[one["request"]["task_type"]].append(one)
    return by_task


def write(given: argparse.Namespace) -> Answers:
    """Each task from the answers to the tasks before it."""
    settings = EngineSettings(n_ctx=4096, n_slots=given.slots, n_threads=given.threads)
    inputs = (HELD_OUT if given.held_out else INPUTS)[given.language][: given.inputs]
    stages: list[dict[str, Any]] = [{} for _ in inputs]
    by_task: Answers = {}
    with Engine(given.model, settings, template_for(given.model)) as engine:
        for task in tasks.TASKS.values():
            count = len(inputs) if task.name == "blueprint" else min(given.stories, len(inputs))
            by_task[task.name] = []
            futures = []
            for seed in range(1, count + 1):
                fields = {"task_type": task.name, "user_input": inputs[seed - 1], "chapter_ids": [1]}
                asked = StoryRequest.model_validate(fields | stages[seed - 1])
                job = EngineJob(task.script(asked), SamplingParams(seed), time.monotonic() + 36_000)
                futures.append((seed, asked, engine.submit(job)))
            for seed, asked, future in track(futures, task.name, console=Console(stderr=True)):
                done = future.result()
                stages[seed - 1][task.name] = json.loads(done.text)
                row = {"seed": seed, "request": asked.model_dump(exclude_none=True), "text": done.text}
                by_task[task.name].append({**row, "tokens": len(done.tokens)})
    by_task = {task: answers for task, answers in by_task.items() if answers}
    if given.keep:
        rows = [json.dumps(one, ensure_ascii=False) for answers in by_task.values() for one in answers]
        given.keep.write_text("".join(f"{row}\n" for row in rows))
    return by_task


def measure(task: str, answers: list[dict[str, Any]], language: Language) -> dict[str, float]:
    found = []
    for one in answers:
        request = StoryRequest.model_validate(one["request"])
        script = tasks.get(task).script(request)
        data = json.loads(one["text"])
        envelope = json.dumps({"output_data": data, "output_text": one["text"]}).encode()
        forms = {path: row.form for piece in script.pieces for path, row in zip(piece.paths, piece.rows, strict=True)}
        prose = [reduce(getitem, path, data) for path, form in forms.items() if isinstance(form, Prose)]
        whole = " ".join(prose)
        said = words(whole)
        triples = grams(said, 3)
        count = 6 if language == "zh" else 4
        instructions = {run for text in our_words(task, request, language) for run in grams(words(text), count)}
        found.append(
            {
                "copies our instructions": bool(set(grams(words(one["text"]), count)) & instructions),
                "ends inside a sentence": statistics.mean(not ends_a_sentence(text) for text in prose),
                "digits": sum(char.isdigit() for char in whole) / len(whole),
                "repeated trigrams": 1 - len(set(triples)) / len(triples),
                "distinct words": len(set(said)) / len(said),
                "distinct words in a hundred": statistics.mean(len(set(some)) / len(some) for some in hundreds(said)),
                "our score, of 100": score(envelope, Context(request, 10.0)).total,
                "characters": len(whole),
                "tokens": one["tokens"],
            }
        )
    return {name: round(statistics.mean(float(one[name]) for one in found), 4) for name in found[0]}


def our_words(task: str, request: StoryRequest, language: Language) -> list[str]:
    """All that we ask with, the APIs' prompt included; what the request brings apart."""
    script = tasks.get(task).script(request)
    return [tasks.get(task).instructions(language), script.system, *(piece.ask for piece in script.pieces)]


def hundreds(said: list[str]) -> list[list[str]]:
    """Every run of a hundred words; all of them, if they are fewer."""
    return [said[at : at + HUNDRED] for at in range(max(1, len(said) - HUNDRED + 1))]


def words(text: str) -> list[str]:
    """Words; of Chinese, characters."""
    return re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’][^\W_]+)*", text.lower())


def grams(said: list[str], count: int) -> list[tuple[str, ...]]:
    return [tuple(said[at : at + count]) for at in range(len(said) - count + 1)]


def print_pairs(rows: dict[str, list[dict[str, Any]]]) -> None:
    for together in zip(*rows.values(), strict=True):
        print(f"\n### {together[0]['seed']}. {together[0]['request']['user_input']}\n")
        for name, one in zip(rows, together, strict=True):
            data = json.loads(one["text"])
            print(f"**{name}: {data['title']}.** {data['setting']} / {data['core_conflict']}\n")


if __name__ == "__main__":
    main()
