"""Tells prose from noise: how much of a text's worth is left after its faults. Pure, deterministic, no model.

Each fault keeps a share of the worth, 1 for none of it, and the shares are multiplied: instructions copied, digits, letters of
other scripts, loops, few different words, words in no order, texts cut off inside a sentence. What it is not: a judge. Fluent nonsense passes, and so
do sentences in a wrong order, because each of them is prose.

Word order is seen by pairs of neighbours: the mean logarithm of how much oftener two words follow each other than chance
would have it (pointwise mutual information), from a table of common words of English, and of common Chinese characters
in simplified and traditional spelling (pairs.json; `scripts/bench_score.py --write-table` makes it and names its sources). In
prose it is above 0, among shuffled words below. Of other languages it says nothing, and costs nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from storyfi_lite import tasks
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.tasks.base import Language
from storyfi_lite.validator.text import (
    HAN,
    KANA,
    SEPARATOR,
    ends_a_sentence,
    falling,
    fold,
    passages,
    repeated_share,
    script_shares,
    variety,
    visible,
)

SUFFIXES = ("lng", "ed", "ly", "s")  # of words that are not common ones; folded, an i is an l
SCORE_UNIT = 0.1  # nats
_WORD = re.compile("[ \0]+")
ZERO = ord("O")  # a pair's score as a character: this one is 0

# (all is left up to, nothing is left from); of human prose of 500 characters 99 in 100 lie inside the first
_COPIED = (0.02, 0.12)  # of the passages, in the instructions of a task
_DIGITS = (0.05, 0.15)  # of the characters; letters that are numbers count
_STRAYS = (0.03, 0.1)  # of the letters, in scripts that the language of the text is not written in
_REPEATED = (0.1, 0.4)  # of the passages, said before
_VARIETY = (0.5, 0.25)  # different words in a hundred
_ORDER = (0.05, -0.15)  # mean score of a pair, in nats
_CUT_OFF = 0.4  # what a text loses that stops inside a sentence
_SENTENCE_CHARS = (100, 50)  # a shorter text may be a phrase; Han says the same in half
_ENGLISH = (0.25, 0.1)  # of the words are among the table's: English has them, a list of nouns has not
_ONLY_ENGLISH = {"the", "and", "who", "with", "that"}  # in plain ASCII letters
_MIN_PAIRS = 20
_EAST = {"Han", "kana", "Hangul", "Katakana-hiragana"}


class Reading:
    """Measures an answer's prose. `texts` as they are; `hashes` are their passages, `repeated` and `varied` shares, 0 to 1."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.folded = fold(SEPARATOR.join(texts))
        self.hashes = passages(self.folded)
        self.repeated = repeated_share(self.hashes)
        self.varied = variety(self.folded)

    def worth(self, user_input: str) -> tuple[float, str]:
        """Return what the prose is worth in an answer to `user_input`, 0 to 1, and the faults seen."""
        printed = "".join("".join(self.texts).split())
        digits = sum(char.isnumeric() and not HAN.match(char) for char in printed) / max(1, len(printed))
        shares = script_shares(printed)
        is_latin = shares.get("Latin", 0.0) >= 0.5
        main = "Latin" if is_latin else next((script for script in shares if script != "Latin"), "")
        own = {"Latin", main, *(_EAST if main in _EAST else ())}
        strays = sum(share for script, share in shares.items() if script not in own)
        given = _instructions()
        at = np.searchsorted(given, self.hashes).clip(max=len(given) - 1)
        copied = float((given[at] == self.hashes).mean()) if len(self.hashes) else 0.0
        long = [text for text in map(visible, self.texts) if _is_long(text)]
        cut = sum(not ends_a_sentence(text) for text in long) / len(long) if long else 0.0
        kept = {
            f"{copied:.0%} copied from the instructions": falling(copied, *_COPIED),
            f"{digits:.0%} digits": falling(digits, *_DIGITS),
            f"{strays:.0%} letters of other scripts": falling(strays, *_STRAYS),
            f"{self.repeated:.0%} said before": falling(self.repeated, *_REPEATED),
            f"{self.varied:.0%} different words in a hundred": falling(self.varied, *_VARIETY),
            f"{cut:.0%} of the texts cut off": 1 - _CUT_OFF * cut,
            **_order(user_input, self.folded),
        }
        return math.prod(kept.values()), ", ".join(saw for saw, share in kept.items() if share < 1)


@lru_cache(maxsize=1)
def _instructions() -> npt.NDArray[np.uint64]:
    texts: list[str] = []
    languages: tuple[Language, ...] = ("en", "zh")
    for name, task in tasks.TASKS.items():
        stages: dict[str, Any] = {stage: {} for stage in ("blueprint", "characters", "story_arc")}
        request = StoryRequest(task_type=name, user_input="-", chapter_ids=[1], **stages)  # type: ignore[arg-type]
        for language in languages:
            texts += [task.instructions(language), *(turn.ask for turn in task.turns(request, language))]
    return np.unique(passages(fold(SEPARATOR.join(texts))))


def is_cut_off(text: str) -> bool:
    """Return whether a text that is long enough to be sentences stops inside one."""
    seen = visible(text)
    return _is_long(seen) and not ends_a_sentence(seen)


def _is_long(text: str) -> bool:
    return len(text) >= _SENTENCE_CHARS[len(HAN.findall(text)) * 2 > len(text)]


# --- word order --------------------------------------------------------------------------------------------------


class Pairs:
    """Scores neighbours in a text. `units` are the common words or characters in the table's order; what is not among them goes
    by its suffix, or as the last unit of all. `scores` in steps of SCORE_UNIT, first unit by second."""

    def __init__(self, units: Sequence[str], rows: Sequence[str]) -> None:
        self.places = {unit: at for at, unit in enumerate(units)}
        self.common = len(units) - len([unit for unit in units if unit.startswith("~")])
        self.scores = np.array([[ord(char) - ZERO for char in row] for row in rows], np.int64)

    def place(self, unit: str) -> int:
        if (at := self.places.get(unit)) is not None:
            return at
        suffix = next((end for end in SUFFIXES if unit.endswith(end)), "") if len(unit) > 3 else ""
        return self.places[f"~{suffix}"]

    def look(self, found: Sequence[str]) -> tuple[float, float]:
        """Return the mean score of neighbours, in nats, and the share of common units."""
        places = np.fromiter(map(self.place, found), np.int64, len(found))
        mean = float(self.scores[places[:-1], places[1:]].sum()) * SCORE_UNIT / (len(found) - 1)
        return mean, float((places < self.common).mean())


@lru_cache(maxsize=1)
def _tables() -> dict[str, Pairs]:
    text = resources.files("storyfi_lite.validator").joinpath("pairs.json").read_text("utf-8")
    return {name: Pairs(table["units"], table["rows"]) for name, table in json.loads(text)["tables"].items()}


def units(folded: str) -> tuple[str, list[str]]:
    """Return the table's name, and the units in the text's order. Han characters where they are the more, else words."""
    han = HAN.findall(folded)
    words = [word for word in _WORD.split(folded) if word.isalpha() and not HAN.search(word)]
    return ("han", han) if len(han) > len(words) else ("english", words)


def _order(user_input: str, folded: str) -> dict[str, float]:
    """Return what is kept for the order of words; nothing is said of few words, or of a language that the tables do not know. An
    English request makes English of what has no common words."""
    name, found = units(folded)
    if len(found) <= _MIN_PAIRS or len(KANA.findall(folded)) * 20 > len(found):
        return {}
    mean, common = _tables()[name].look(found)
    if name == "han" or common >= _ENGLISH[0]:
        return {f"{mean:+.2f} nats a pair of neighbours": falling(mean, *_ORDER)}
    asked = units(fold(user_input))[1]
    is_english = (
        user_input.isascii()
        and len(asked) > 1
        and not _ONLY_ENGLISH.isdisjoint(user_input.lower().split())
        and _tables()["english"].look(asked)[1] >= _ENGLISH[0]
    )
    return {f"{common:.0%} common words": falling(common, *_ENGLISH)} if is_english else {}
