"""Says how many tokens a task takes to read and to write, by the model's vocabulary and the language of the request.

Characters come from real answers of small models, tokens a character from real vocabularies (lengths.json, made by
scripts/make_lengths.py); of a file that is here its own tokenizer is asked. An estimate: another model likes its sentences
longer or shorter. Runs no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from storyfi_lite.placement.traffic import Kind
from storyfi_lite.tasks.base import Language

TABLE = Path(__file__).with_name("lengths.json")
LANGUAGES: tuple[Language, ...] = get_args(Language)
TEMPLATE_TOKENS = 8  # that a chat template puts around a turn

TokensAChar = Mapping[Language, float]


@dataclass(frozen=True)
class Work:
    """Counts the tokens of one answer. `opening`: read before the first turn, once for all who ask the same at the same time;
    `bridges`: read between turns; written: `whole` with the task's own grammar, `brief` with the short one, `least` with that one and
    the smallest budget. `spread`: how much whole answers differ in length, as their standard deviation over the mean."""

    opening: int
    bridges: int
    whole: int
    brief: int
    least: int
    spread: float = 0.0

    def within(self, n_ctx: int) -> Work | None:
        """Return what a context of so many tokens leaves of it: an answer is closed before it is full. None if not even the
        shortest has room."""
        room = n_ctx - self.opening - self.bridges
        if room < self.least:
            return None
        return replace(self, whole=min(self.whole, room), brief=min(self.brief, room))

    def cells(self, tokens: float) -> float:
        """Return how many cells a token of an answer of so many looks back on, on average."""
        return self.opening + (self.bridges + tokens) / 2


@lru_cache
def _table() -> Any:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def sample(language: Language) -> str:
    """Return the text that tokens a character are counted on."""
    return str(_table()["sample"][language])


@lru_cache
def tokens_a_char(vocab_size: int) -> TokensAChar:
    """Return tokens a character of the vocabulary that is nearest in size among those of the table."""
    rows = _table()["tokens_a_char"].values()
    row = min(rows, key=lambda row: abs(math.log(row["vocab_size"] / vocab_size)))
    return {language: row[language] for language in LANGUAGES}


@lru_cache(maxsize=1024)
def _work(kind: Kind, a_char: float) -> Work:
    chars = _table()["chars"][kind.task][kind.language]
    times = kind.chapters  # 1 but for the task that writes several
    turns = chars["turns"] * times
    written_a_char = a_char * chars["factor"]
    return Work(
        opening=round(chars["opening"] * a_char) + 2 * TEMPLATE_TOKENS,
        bridges=round(chars["bridges"] * a_char * times) + (turns - 1) * TEMPLATE_TOKENS,
        whole=round(chars["whole"] * written_a_char * times),
        brief=round(chars["brief"] * written_a_char * times),
        least=round(chars["least"] * written_a_char * times),
        spread=chars["spread"] / math.sqrt(times),
    )


def factor(kind: Kind) -> float:
    """Return how many times the sample's tokens a character of this task's answers takes: names and labels take more."""
    return float(_table()["chars"][kind.task][kind.language]["factor"])


def usual_chars(kind: Kind) -> float:
    """Return the characters of a whole answer's turns, labels and all."""
    return float(_table()["chars"][kind.task][kind.language]["whole"] * kind.chapters)


def work(kind: Kind, a_char: TokensAChar) -> Work:
    """Return the tokens of an answer of this kind by a model with so many tokens a character."""
    return _work(kind, a_char[kind.language])
