#!/usr/bin/env python3
"""What lengths are worth to the network's published scorer, and what they cost: the trade behind the bounds in storyfi_lite/tasks/.

The rules are those of `vya42/storyfi-subnet` at 6228cd9 (scoring/, protocol 3.2.0), written anew from what they do: technical 20,
structure 30 and content 20 of 100 points; the judge's 30 are not in it, nor is the central scorer of 3.2.1, which is not public.
Prints a table and one JSON line. No model is run: texts are honest prose, cut to length.

    PYTHONPATH=. python scripts/bench_network_score.py
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from typing import Any

from storyfi_lite.tasks.characters import IDS
from tests.answers import CHINESE, ENGLISH

PROSE = {
    "en": f"{ENGLISH['setting']} {ENGLISH['core_conflict']} ",
    "zh": CHINESE["setting"] + CHINESE["core_conflict"],
}
INPUT = {"en": "a lighthouse keeper who hears the sea speak", "zh": "一个关于灯塔守护人的故事"}


def prose(language: str, chars: int, skip: int = 0) -> str:
    """So many characters, begun `skip` sentences in, so that no two texts are alike."""
    sentences = re.findall(r"[^.。]+[.。]\s*", PROSE[language])
    text = "".join(sentences[skip % len(sentences) :] + sentences) * 3
    return text[: chars - 1] + ("." if language == "en" else "。")


def band(value: int, full: tuple[int, int], part: tuple[int, int], points: tuple[float, float]) -> float:
    if full[0] <= value <= full[1]:
        return points[0]
    return points[1] if part[0] <= value <= part[1] else 0.0


def blueprint_structure(data: dict[str, Any]) -> float:
    """40: fields 20, lengths 10, themes 10."""
    return (
        20
        + band(len(data["setting"]), (50, 300), (30, 500), (5, 3))
        + band(len(data["core_conflict"]), (30, 200), (15, 300), (5, 3))
        + band(len(data["themes"]), (2, 5), (1, 6), (10, 5))
    )


def fluency(text: str) -> float:
    """10, over words between white space: end marks 2, different words 3, number of words 3, length of sentences 2."""
    words = text.split()
    unlike = len(set(words)) / len(words)
    sentences = [one.split() for one in text.replace("。", ".").split(".") if one.strip()]
    mean = sum(map(len, sentences)) / len(sentences)
    return (
        2 * any(mark in text for mark in "。！？.!?")
        + (3 if unlike > 0.6 else 1.5 if unlike > 0.4 else 0)
        + (3 if len(words) > 100 else 1.5 if len(words) > 50 else 0)
        + 2 * (len(sentences) > 3 and 10 < mean < 30)
    )


def relevance(asked: str, written: str, points_a_word: float) -> float:
    """15: so much for each word, between white space, that both have."""
    return min(15.0, points_a_word * len(set(asked.lower().split()) & set(written.lower().split())))


def of_100(structure: float, content: float) -> float:
    """With all of the technical part, as an answer within 30 s has."""
    return 20 + structure * 30 / 40 + content * 20 / 30


def blueprint(language: str, setting: int, conflict: int, themes: int) -> dict[str, float]:
    story = ENGLISH if language == "en" else CHINESE
    data = {**story, "setting": prose(language, setting), "core_conflict": prose(language, conflict, 3)}
    data["themes"] = [f"{story['themes'][0]}{n}" for n in range(themes)]
    flow = fluency(f"{data['setting']} {data['core_conflict']}")
    near = relevance(INPUT[language], f"{data['title']} {data['genre']} {data['setting']}", 3.0)
    return figures(blueprint_structure(data), near + flow + 5, flow, setting + conflict)


def characters(language: str, background: int) -> dict[str, float]:
    texts = [prose(language, background, number) for number in range(len(IDS))]
    flow = fluency(" ".join(texts))
    near = relevance(json.dumps(ENGLISH if language == "en" else CHINESE, ensure_ascii=False), " ".join(texts), 0.5)
    return figures(40, near + flow + 5, flow, background * len(IDS))


def figures(structure: float, content: float, flow: float, chars: int) -> dict[str, float]:
    return {"structure": structure, "fluency": flow, "points": round(of_100(structure, content), 1), "chars": chars}


ROWS: list[tuple[str, Callable[..., dict[str, float]], tuple[Any, ...]]] = [
    *((f"blueprint {lang}: setting {s}, conflict {c}, themes {t}", blueprint, (lang, s, c, t))
      for lang in ("en", "zh")
      for s, c, t in ((300, 150, 3), (330, 150, 3), (400, 150, 3), (400, 200, 3), (400, 250, 3), (500, 200, 3), (501, 201, 3), (300, 150, 6))),
    *((f"characters {lang}: background {b}", characters, (lang, b)) for lang in ("en", "zh") for b in (40, 80, 120, 160, 240)),
]  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = {name: make(*arguments) for name, make, arguments in ROWS}
    print(f"{'':<52} {'structure':>9} {'fluency':>8} {'of 70':>6} {'characters':>11}")
    for name, row in found.items():
        print(f"{name:<52} {row['structure']:>9g} {row['fluency']:>8g} {row['points']:>6g} {row['chars']:>11g}")
    print(json.dumps({"bench": "network_score", "rows": found}, ensure_ascii=False))


if __name__ == "__main__":
    main()
