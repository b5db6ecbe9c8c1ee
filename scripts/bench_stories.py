#!/usr/bin/env python3
"""How well the stories read, in figures: twenty fixed inputs, seeds 1 to 20, blueprints of one model.

    bench_stories.py MODEL.gguf [--language zh] [--before OLD.jsonl] [--keep NEW.jsonl] [--pairs]

Prints a table and one JSON line: the share of answers with four words in a row from our own instructions, texts that end inside
a sentence, digits among the characters, repeated word trigrams, distinct words (Chinese: characters), and our own score.
`--before` reads answers that were kept by an earlier version, for the same table; `--pairs` prints both, as docs/stories.md has
them. Such figures see noise, not quality.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from storyfi_lite import tasks
from storyfi_lite.engine.engine import Engine, EngineJob
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.grammar.prose import ends_a_sentence
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
TASK = tasks.get("blueprint")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path)
    options.add_argument("--language", choices=list(INPUTS), default="en")
    options.add_argument("--before", type=Path, help="answers that an earlier version kept")
    options.add_argument(
        "--keep", type=Path, help="keep the answers, a line of JSON each; what is there is not written again"
    )
    options.add_argument("--pairs", action="store_true", help="print the texts, too")
    options.add_argument("--slots", type=int, default=2)
    options.add_argument("--threads", type=int, default=0)
    given = options.parse_args()
    after = read(given.keep) if given.keep and given.keep.exists() else write(given)
    rows = {"before": read(given.before)} if given.before else {}
    rows["now"] = after
    found = {name: measure(answers, given.language) for name, answers in rows.items()}
    if given.pairs:
        print_pairs(rows)
    table = Table("", *found)
    for name in found["now"]:
        table.add_row(name, *(f"{figures[name]:.3f}" for figures in found.values()))
    Console().print(table)
    print(json.dumps({"model": given.model.name, "language": given.language, **found}))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(given: argparse.Namespace) -> list[dict[str, Any]]:
    template = None if "tokenizer.chat_template" in read_local(given.model).metadata else PLAIN
    settings = EngineSettings(n_ctx=2048, n_slots=given.slots, n_threads=given.threads)
    answers = []
    with Engine(given.model, settings, template) as engine:
        futures = [
            engine.submit(EngineJob(TASK.script(request_of(text)), SamplingParams(seed), time.monotonic() + 36_000))
            for seed, text in enumerate(INPUTS[given.language], 1)
        ]
        for (seed, text), future in zip(enumerate(INPUTS[given.language], 1), futures, strict=True):
            done = future.result()
            answers.append({"seed": seed, "input": text, "text": done.text, "tokens": len(done.tokens)})
    if given.keep:
        given.keep.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answers))
    return answers


def request_of(text: str) -> StoryRequest:
    return StoryRequest(task_type="blueprint", user_input=text)


def measure(answers: list[dict[str, Any]], language: Language) -> dict[str, float]:
    instructions = grams(our_words(language), 4)
    found = []
    for one in answers:
        data = json.loads(one["text"])
        envelope = json.dumps({"output_data": data, "output_text": one["text"]}).encode()
        prose = [data["setting"], data["core_conflict"]]
        whole = " ".join(prose)
        said = words(whole)
        triples = grams(said, 3)
        found.append(
            {
                "copies our instructions": bool(set(grams(words(one["text"]), 4)) & set(instructions)),
                "ends inside a sentence": statistics.mean(not ends_a_sentence(text) for text in prose),
                "digits": sum(char.isdigit() for char in whole) / len(whole),
                "repeated trigrams": 1 - len(set(triples)) / len(triples),
                "distinct words": len(set(said)) / len(said),
                "our score, of 100": score(envelope, Context(request_of(one["input"]), 10.0)).total,
                "characters": len(whole),
                "tokens": one["tokens"],
            }
        )
    return {name: round(statistics.mean(float(one[name]) for one in found), 4) for name in found[0]}


def our_words(language: Language) -> list[str]:
    """All that we ask with, the APIs' prompt included; the inputs apart."""
    request = request_of(INPUTS[language][0])
    script = TASK.script(request)
    asked = [TASK.instructions(language), script.system, *(piece.ask for piece in script.pieces)]
    return words("\n".join(asked))


def words(text: str) -> list[str]:
    """Words; of Chinese, characters."""
    return re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’][^\W_]+)*", text.lower())


def grams(said: list[str], count: int) -> list[tuple[str, ...]]:
    return [tuple(said[at : at + count]) for at in range(len(said) - count + 1)]


def print_pairs(rows: dict[str, list[dict[str, Any]]]) -> None:
    for together in zip(*rows.values(), strict=True):
        print(f"\n### {together[0]['seed']}. {together[0]['input']}\n")
        for name, one in zip(rows, together, strict=True):
            data = json.loads(one["text"])
            print(f"**{name}: {data['title']}.** {data['setting']} / {data['core_conflict']}\n")


if __name__ == "__main__":
    main()
