"""Lowers what was said before: by the answer itself, and by what the model was asked with. A function of token ids alone, so that it
can be replayed. Knows no text, no grammar, no llama.cpp.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from storyfi_lite.engine.sampler import Floats, Ids
from storyfi_lite.engine.settings import SamplingParams

Flags = NDArray[np.bool_]
MOST_ALIKE = 24.0  # beyond this length a repeat is as forbidden as it gets, and base ** length stays finite
FORGIVEN = 0.85  # what stays of a repeat's length where one of its tokens is another, or where it goes on further off
BAND = 4  # so many tokens further off, left out or put in
_STEPS = (1, 2, 4)  # of three maxima, which make windows of 2 * BAND places
ASKED_MORE, GIVEN_MORE = 1, 6  # so many tokens longer is a repeat of what asks, and of the material, before it loses
WORD_TOKENS = 128  # so far back a word counts
WORD_NATS = 0.3  # that it loses for each time it was begun
# And so many times the share of long words that were said again, beyond what human prose says again, but at most:
ROUND_NATS, PROSE_SHARE, MOST_ROUND_NATS = 12.0, 0.1, 0.8
OF_SHORT = 0.5  # so much of that for short ones
FEW_WORDS = 16  # of fewer long words the share is taken of so many
ECHO_NATS = 4.0  # that the last long word loses
_CUT = -1  # stands between texts
_NO_WORD = -2


class Word(Enum):
    """Says what a token begins. A sign or a number counts as a short word: else a text whose words lose would flee to them."""

    SHORT = 1
    LONG = 2


class Repetition:
    """Lowers what was said before, in logits, before temperature. `given`: what the request brings; `asked`: what each turn asks.

    Repeats: DRY, which forgives. A token that would go on with a repeat of an earlier text loses dry_multiplier * dry_base ** (length
    - allowed). A repeat counts its tokens; one that is exchanged, left out or put in ends none, but shortens it (`_Repeats`).
    Words: in whole sentences, a token that begins a word loses for each time that it stands among the last WORD_TOKENS tokens:
    WORD_NATS, and where the text goes round up to MOST_ROUND_NATS more, a short one half as much.
    The last long word loses ECHO_NATS more. A title's words lose nothing by that: it would find none left.
    What goes on inside a word loses nothing by either (`free`), so that a name that is begun is spelled as before.
    """

    def __init__(self, params: SamplingParams, given: Sequence[int] = (), asked: Iterable[Sequence[int]] = ()) -> None:
        self._params = params
        self._repeats = _Repeats()
        self._repeats.begin(given, params.dry_allowed_length + GIVEN_MORE)
        for one in asked:
            self._repeats.begin(one, params.dry_allowed_length + ASKED_MORE)
        self._repeats.begin((), params.dry_allowed_length)
        self._words: deque[int] = deque(maxlen=WORD_TOKENS)  # twice the token, and one for a long word

    def append(self, token: int, word: Word | None) -> None:
        """Take the answer's next token, and what word it begins, if any."""
        self._repeats.append(token)
        self._words.append(2 * token + (word is Word.LONG) if word else _NO_WORD)

    def cut(self) -> None:
        """Begins a text of its own, such as what a label asks for: no repeat reaches across, for what follows the same label each time
        may well be the same."""
        self._repeats.cut()
        self._words.append(_NO_WORD)

    def apply(self, logits: Floats, of_prose: bool, free: Flags | None = None) -> None:
        """Lower the logits in place. `free`: tokens, one flag each, that no repeat makes lose."""
        if of_prose:
            self._lower_words(logits)
        if self._params.dry_multiplier:
            for token, over in self._repeats.goes_on().items():
                if free is not None and free[token]:
                    continue
                logits[token] -= self._params.dry_multiplier * self._params.dry_base**over

    def _lower_words(self, logits: Floats) -> None:
        long = [word for word in self._words if word & 1]
        share = (len(long) - len(set(long))) / max(len(long), FEW_WORDS)
        more = min(MOST_ROUND_NATS, ROUND_NATS * max(0.0, share - PROSE_SHARE))
        for word, times in Counter(self._words).items():
            if word != _NO_WORD:
                logits[word >> 1] -= (WORD_NATS + (more if word & 1 else more * OF_SHORT)) * times
        if long:
            logits[long[-1] >> 1] -= ECHO_NATS


class _Repeats:
    """Finds what the end of the text says again, as Smith and Waterman (1981) align two texts: by place, how many tokens of what stands
    up to there are those at the end, in their order."""

    def __init__(self) -> None:
        self._count = 0
        self._tokens: Ids = np.full(1024, _CUT, dtype=np.int64)
        self._allowed = np.zeros(1024)  # by place, the length from which on a repeat loses
        self._alike = np.zeros(0)
        self._now_allowed = 0

    def begin(self, tokens: Sequence[int], allowed: int) -> None:
        """Take a text that is no answer's; allowed are so many tokens of a repeat of it, or of what comes after it."""
        self._now_allowed = allowed
        for token in (*tokens, _CUT):
            self._put(token)
        self._alike = np.zeros(self._count)

    def append(self, token: int) -> None:
        tokens = self._tokens[: self._count]
        near = np.zeros(self._count + 2 * BAND)
        near[BAND:-BAND] = self._alike
        along = near[BAND - 1 : -BAND - 1]
        for step in _STEPS:  # in the end the greatest of 2 * BAND places
            near = np.maximum(near[:-step], near[step:])
        goes_on = 1.0 + np.maximum(along, FORGIVEN * near[: self._count])
        alike = np.where(tokens == token, np.minimum(goes_on, MOST_ALIKE), FORGIVEN * along)
        alike[tokens == _CUT] = 0.0
        self._alike = np.append(alike, 0.0)  # the text's end repeats nothing by itself
        self._put(token)

    def cut(self) -> None:
        self._alike = np.zeros(self._count + 1)
        self._put(_CUT)

    def goes_on(self) -> dict[int, float]:
        """Return the tokens that would go on with a repeat, each with how much longer than allowed its longest is."""
        over = self._alike[:-1] - self._allowed[: self._count - 1]
        longest: dict[int, float] = {}
        for place in np.flatnonzero(over >= 0):
            token = int(self._tokens[place + 1])
            if token != _CUT:
                longest[token] = max(float(over[place]), longest.get(token, 0.0))
        return longest

    def _put(self, token: int) -> None:
        if self._count == len(self._tokens):
            self._tokens = np.append(self._tokens, np.full_like(self._tokens, _CUT))
            self._allowed = np.append(self._allowed, np.zeros_like(self._allowed))
        self._tokens[self._count], self._allowed[self._count] = token, self._now_allowed
        self._count += 1
