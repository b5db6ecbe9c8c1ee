"""Keeps a model from copying into its answer what it was asked with: our instructions, and long runs of what the request brings, such
as the setting of the blueprint. A function of the answer's own tokens and its script alone, so that a replay does the same.

It reads text and not token ids: words count however they are spelled (`In`, ` in`). Its units are words and, in scripts that write
no spaces, characters. Short runs that the request says itself stay free, such as names.
"""

from __future__ import annotations

import codecs
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from storyfi_lite.engine.sampler import Floats
from storyfi_lite.grammar.prose import in_word, is_wide

if TYPE_CHECKING:
    from storyfi_lite.engine.vocabulary import Vocabulary

RUN_WORDS, RUN_CHARS = 4, 5  # so many in a row are ours; a character of Chinese says less than a word
GIVEN_WORDS, GIVEN_CHARS = 8, 24  # so many are copied from what the request brings
TOKEN_CHARS = 4  # of Chinese, that a token may bring at once
_BEFORE = {RUN_WORDS - 1, GIVEN_WORDS - 1} | {
    run - count for run in (RUN_CHARS, GIVEN_CHARS) for count in range(1, TOKEN_CHARS + 1)
}
NATS = 20.0  # what the last of them loses, before temperature

Run = tuple[str, ...]


class OurWords:
    """Lowers the logits of tokens that would finish a run of such words. `ours`: the texts of our instructions; `given`: what the
    request brings."""

    def __init__(self, vocabulary: Vocabulary, ours: Iterable[str], given: str) -> None:
        self._vocabulary = vocabulary
        self._said = _Units()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        free = set(_runs(given, RUN_WORDS, RUN_CHARS))
        self._last: defaultdict[Run, set[str]] = defaultdict(set)
        for run in (run for text in ours for run in _runs(text, RUN_WORDS, RUN_CHARS) if run not in free):
            self._forbid(run)
        for run in _runs(given, GIVEN_WORDS, GIVEN_CHARS):
            self._forbid(run)

    def _forbid(self, run: Run) -> None:
        """Remember how a run ends: with one unit, or of characters with as many as a token may bring at once."""
        for count in range(1, TOKEN_CHARS + 1 if is_wide(run[-1][0]) else 2):
            self._last[run[:-count]].add("".join(run[-count:]))

    def append(self, token: int) -> None:
        self._said.read(self._decoder.decode(self._vocabulary.writes[token]))

    def cut(self) -> None:
        """Begins a text of its own."""
        self._said = _Units()

    def apply(self, logits: Floats) -> None:
        """Lowers the logits in place."""
        inside = bool(self._said.open)
        tokens = [self._vocabulary.beginning(units, inside) for units in self._forbidden()]
        if tokens:
            logits[np.unique(np.concatenate(tokens))] -= np.float32(NATS)

    def _forbidden(self) -> set[str]:
        said = (*self._said.whole, self._said.open) if self._said.open else (*self._said.whole,)
        return set().union(*(self._last.get(said[-count:], ()) for count in _BEFORE))


class _Units:
    """Holds the last units of a text as far as it was read, and the word that may go on (`open`)."""

    def __init__(self, kept: int | None = GIVEN_CHARS) -> None:
        self.whole: deque[str] = deque(maxlen=kept)
        self.open = ""

    def read(self, text: str) -> None:
        for char in text.lower():
            if in_word(char) or (self.open and char in "'’"):
                self.open += char
                continue
            self.close()
            if char.isalnum():
                self.whole.append(char)

    def close(self) -> None:
        """Ends the word that is open, if one is."""
        if self.open:
            self.whole.append(self.open)
            self.open = ""


def _runs(text: str, of_words: int, of_chars: int) -> list[Run]:
    """Return the runs of units in a text that are its own."""
    units = _Units(kept=None)
    units.read(text)
    units.close()
    said, found = tuple(units.whole), []
    for end, unit in enumerate(said, 1):
        count = of_chars if is_wide(unit[0]) else of_words
        if end >= count:
            found.append(said[end - count : end])
    return found
