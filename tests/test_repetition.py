"""What was said before loses, by a rule that any validator must be able to repeat: vectors, repeats word for word and in other words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from storyfi_lite.engine.repetition import (
    ASKED_MORE,
    ECHO_NATS,
    FEW_WORDS,
    FORGIVEN,
    GIVEN_MORE,
    MOST_ROUND_NATS,
    OF_SHORT,
    PROSE_SHARE,
    ROUND_NATS,
    WORD_NATS,
    WORD_TOKENS,
    Repetition,
    Word,
)
from storyfi_lite.engine.settings import SamplingParams

VECTORS = json.loads((Path(__file__).parent / "vectors" / "sampler.json").read_text())
CUT = -1  # of a history: a text of its own begins


def penalties(
    history: list[int], words: Mapping[int, Word] = MappingProxyType({}), of_prose: bool = True, **params: Any
) -> dict[int, float]:
    plain: dict[str, Any] = {"dry_multiplier": 1.0, "dry_base": 2.0, "dry_allowed_length": 2}
    repetition = Repetition(SamplingParams(0, **(plain | params)))
    for token in history:
        repetition.cut() if token == CUT else repetition.append(token, words.get(token))
    logits = np.zeros(40, dtype=np.float32)
    repetition.apply(logits, of_prose)
    return {token: -float(value) for token, value in enumerate(logits) if value}


def test_dry_penalises_what_would_go_on_with_a_repeat_and_grows_with_its_length() -> None:
    assert penalties([1, 2, 3, 1, 2]) == {3: 1.0}
    assert penalties([1, 2, 3, 4, 1, 2, 3]) == {4: 2.0}
    assert penalties([1, 2, 8, 9, 10, 11, 12, 13, 3, 1, 2]) == {8: 1.0}
    assert penalties([1, 3, 2, 3]) == {}  # one token alone is no repeat
    assert penalties([1, 2, 3, 1, 2], dry_multiplier=0.0) == {}


def test_no_repeat_reaches_into_another_text() -> None:
    """What follows a label each time may well be the same."""
    assert penalties([1, 2, 3, CUT, 1, 2]) == {3: 1.0}
    assert penalties([1, 2, CUT, 3, 1, 2]) == {}
    assert penalties([1, CUT, 2, 3, 1, CUT, 2]) == {}
    assert penalties([1, 2, 3, 1, 2, CUT]) == {}
    assert penalties([1, 2, 3, 4, CUT, 5, CUT, 1, 2, 3, 4, 9]) == {}  # nor where a repeat goes on in other words


def dry(length: float) -> float:
    """What a repeat of so many tokens costs what goes on with it, by the parameters of `penalties`."""
    return float(2.0 ** (length - 2))


def test_a_repeat_in_other_words_still_loses() -> None:
    """One token exchanged, one put in, one left out: each time the next token of the old text loses, a little less than after a
    repeat word for word."""
    old = [1, 2, 3, 4, 5, 6, 7, CUT, 1, 2, 3, 4]
    assert penalties([*old, 5]) == {6: dry(5)}
    assert penalties([*old, 9]) == pytest.approx({6: dry(FORGIVEN * 4)})
    assert penalties([*old, 9, 5])[6] == pytest.approx(dry(1 + FORGIVEN**2 * 4))
    assert penalties([*old, 6])[7] == pytest.approx(dry(1 + FORGIVEN * 4))
    assert penalties([*old, *range(10, 15)]) == {}  # and it is over after as many new ones


def test_what_asks_may_be_said_again_less_far_than_the_answer_and_the_material_further() -> None:
    text = list(range(1, 15))

    def free_tokens(**known: Any) -> int:
        repetition = Repetition(SamplingParams(0), **known)
        for said, token in enumerate(text):
            logits = np.zeros(40, dtype=np.float32)
            repetition.apply(logits, of_prose=False)
            if logits.any():
                return said
            repetition.append(token, None)
        return len(text)

    allowed = SamplingParams(0).dry_allowed_length
    assert free_tokens(asked=[[20, 21], text]) == allowed + ASKED_MORE
    assert free_tokens(given=text) == allowed + GIVEN_MORE
    assert free_tokens(given=[20], asked=[[21]]) == len(text)


def test_a_name_that_is_begun_is_spelled_as_before() -> None:
    """Its tokens after the first are free of repeats, and so of the words' loss, which is for beginnings alone."""
    repetition = Repetition(SamplingParams(0))
    for token in (1, 2, 3, 4, 1, 2, 3):
        repetition.append(token, None)
    free = np.zeros(40, dtype=np.bool_)
    for lost in (2.625, 0.0):
        logits = np.zeros(40, dtype=np.float32)
        repetition.apply(logits, of_prose=True, free=free)
        assert -float(logits[4]) == pytest.approx(lost)
        free[4] = True


def test_a_word_loses_for_each_time_it_was_begun_not_long_ago() -> None:
    words = dict.fromkeys((1, 2), Word.SHORT)
    assert penalties([1, 3, 2, 3, 4, 1], words) == pytest.approx({1: 2 * WORD_NATS, 2: WORD_NATS})
    assert penalties([1, *[3, 4, 5, 6] * (WORD_TOKENS // 4)], words, dry_multiplier=0.0) == {}
    assert penalties([1, 3, 2, 3, 4, 1], words, of_prose=False) == {}  # a title may say what the story says


@pytest.mark.parametrize(("times", "more"), [(2, 0.0), (4, ROUND_NATS * (3 / 20 - PROSE_SHARE)), (8, MOST_ROUND_NATS)])
def test_where_a_text_goes_round_words_lose_more(times: int, more: float) -> None:
    """By its long words alone: prose's short ones come again all the time."""
    once = range(2, 2 + FEW_WORDS)
    words = {0: Word.SHORT} | dict.fromkeys((1, *once), Word.LONG)
    lost = penalties([1] * times + [0] * 8 + [*once], words, dry_multiplier=0.0)
    nats = WORD_NATS + more
    expected = {0: 8 * (WORD_NATS + OF_SHORT * more), 1: times * nats} | dict.fromkeys(once, nats)
    assert lost == pytest.approx(expected | {once[-1]: nats + ECHO_NATS}, rel=1e-5)


def vector_word(vector: dict[str, Any], token: int) -> Word | None:
    return Word.SHORT if token in vector["short"] else Word.LONG if token in vector["long"] else None


@pytest.mark.parametrize("vector", VECTORS["repetition"])
def test_published_penalties(vector: dict[str, Any]) -> None:
    """By the published parameters."""
    repetition = Repetition(SamplingParams(0), vector.get("given", ()), vector.get("asked", ()))
    for token in vector["tokens"]:
        repetition.cut() if token == CUT else repetition.append(token, vector_word(vector, token))
    logits = np.zeros(10, dtype=np.float32)
    repetition.apply(logits, of_prose=True)
    assert [-float(value) for value in logits] == pytest.approx(vector["penalties"], abs=1e-4)


def test_a_long_loop_stays_finite() -> None:
    assert all(math.isfinite(value) for value in penalties([1] * 5000).values())
