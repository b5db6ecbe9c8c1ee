"""Our instructions stay out of an answer by their text, whatever tokens spell it, in scripts with spaces and without."""

from __future__ import annotations

import numpy as np
import pytest

from storyfi_lite.engine.names import Names
from storyfi_lite.engine.our_words import NATS, OurWords
from storyfi_lite.engine.vocabulary import Vocabulary
from storyfi_lite.grammar.prose import TAIL_CHARS

OURS = ("Describe the world where it happens.", "用一段话描写这个故事发生的地方。")


class Spelled(Vocabulary):
    """Has these pieces for tokens, and needs no file."""

    def __init__(self, pieces: list[str]) -> None:
        self.writes = [piece.encode() for piece in pieces]
        self._by_bytes = {piece: token for token, piece in enumerate(self.writes)}


def lowered(said: str, more: str, given: str = "") -> set[str]:
    """What may as good as not follow: tokens with a `|` between them, `/` for what begins a text of its own. `more`: what else the
    vocabulary has."""
    pieces = list(dict.fromkeys(f"{said}|{more}".split("|")))
    words = OurWords(Spelled(pieces), OURS, given)
    for piece in said.split("|"):
        words.cut() if piece == "/" else words.append(pieces.index(piece))
    logits = np.zeros(len(pieces), dtype=np.float32)
    words.apply(logits)
    assert set(logits) <= {0.0, -np.float32(NATS)}
    return {piece for piece, value in zip(pieces, logits, strict=True) if value}


@pytest.mark.parametrize(
    ("said", "more", "expected"),
    [
        (
            " the| world| where",
            " it| happens| IT|it|its",
            {" it", " IT"},
        ),  # "where" is in hand: "it" would go on with it
        (" the| world|,| where|:|", " it|it", {" it", "it"}),
        ("The| wo|rld| where", " it", {" it"}),
        (" the| world| which", " it", set()),
        (" world| where", " it", set()),
        (" the| world|/| where", " it", set()),
        ("这个|故事|，|发|生", "的|的人|地", {"的", "的人"}),
        ("故事|发|生", "的", {"的"}),  # five characters, some three words
        ("事|发|生", "的", set()),
        ("故事|发", "生|生的|生的人|生地", {"生的", "生的人"}),  # one token brings what would end the run, and more
    ],
)
def test_what_would_finish_a_run_of_our_words(said: str, more: str, expected: set[str]) -> None:
    assert lowered(said, more) == expected


def test_what_the_request_says_itself_is_free() -> None:
    assert lowered(" the| world| where", " it", given="The world, where it rains") == set()


def test_a_long_run_of_what_the_request_brings_is_not_copied() -> None:
    """Eight words, or twenty-four characters; fewer may be said again, as names are."""
    given = "The harbour lay quiet under the first cold stars of winter. 海边的小镇上住着一位守灯塔的老人，每天傍晚把灯点亮等船回来。"
    began = " lay| quiet| under| the| first| cold"
    assert lowered(began, " stars", given) == set()
    assert lowered(f" harbour|{began}", " stars| star", given) == {" stars"}
    assert lowered(f" harbour|{began}|/", " stars", given) == set()
    assert lowered("小镇上住着一位守灯塔的老人，每天傍晚把灯点亮", "等|等船", given) == set()
    assert lowered("的小镇上住着一位守灯塔的老人，每天傍晚把灯点亮|等", "船|船回|回", given) == {"船", "船回"}


def test_a_character_in_pieces_is_read_when_it_is_whole() -> None:
    words = OurWords(Spelled(["故事", "的"]), OURS, "")
    words._vocabulary.writes = ["故事".encode(), "发".encode()[:2], "发".encode()[2:], "生".encode(), "的".encode()]
    for token in range(4):
        words.append(token)
    logits = np.zeros(5, dtype=np.float32)
    words.apply(logits)
    assert list(logits) == [0, 0, 0, 0, -np.float32(NATS)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("她看见艾", {"米", "米丽"}),
        ("她看见艾米", {"丽"}),
        ("她看见艾米丽", set()),
        ("米", set()),
        ("", set()),
        ("She saw El", {"ara"}),
        ("She saw Elara", {" B", " Black"}),
        ("She saw Elara Black", {"wood"}),
        ("She saw NotEl", set()),
    ],
)
def test_a_name_that_the_request_brings_goes_on_as_it_is_written(text: str, expected: set[str]) -> None:
    vocabulary = Spelled(["艾", "米", "米丽", "丽", "ara", " B", " Black", "wood", "El"])
    found = Names(vocabulary, ["艾米丽", "Elara Blackwood", ""]).going_on(text[-TAIL_CHARS:])
    assert {vocabulary.writes[token].decode() for token in found} == expected
