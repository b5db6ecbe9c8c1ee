"""Chooses tokens: a pure function from (logits, allowed tokens, seed, position, history) to one token.

Gumbel-max with counter-based noise: token v at position i has the score logit(v)/T + g(S, i, v), and the best allowed
score wins, so a validator that knows the seed S repeats every choice (docs/proof.md; after Token-DiFR, arXiv
2511.20621). Unlikely tokens are held down by a soft min-p against the best allowed logit: continuous in the logits, where
top-p, top-k and a hard cut flip on rounding noise. Knows token ids only: no text, no grammar, no llama.cpp.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from storyfi_lite.engine.settings import SamplingParams

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_MASK = (1 << 64) - 1
_POSITION_STEP = 0x9E3779B97F4A7C15  # splitmix64's increment, 2^64 / golden ratio
_TOKEN_STEP = np.uint64(0xD1342543DE82EF95)  # an odd multiplier with good spectral properties (Steele & Vigna 2021)
# numpy's own numbers, made once: a few dozen candidates cost less than making them
_11, _27, _30, _31 = (np.uint64(bits) for bits in (11, 27, 30, 31))
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)
SLOPE = 2.0
REACH = 4.0  # nats below the cut
_DRY_MAX_MATCH = 24  # beyond this length a repeat is as forbidden as it gets, and base ** length stays finite
WORD_TOKENS = 128  # so far back a word counts
WORD_NATS = 0.3  # that it loses for each time it was begun
# And so many times the share of long words that were said again, beyond what human prose says again, but at most:
ROUND_NATS, PROSE_SHARE, MOST_ROUND_NATS = 12.0, 0.1, 0.8
OF_SHORT = 0.5  # so much of that for short ones
FEW_WORDS = 16  # of fewer long words the share is taken of so many
ECHO_NATS = 4.0  # that the last long word loses
_CUT = -1  # stands between texts
_NO_WORD = -2


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix bits with splitmix64's finalizer (Stafford's mix 13)."""
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


def _mix_one(x: int) -> int:
    """Mix one plain number as `_mix` does: numpy would take ten times as long."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def gumbel_noise(seed: int, position: int, tokens: Ids) -> NDArray[np.float64]:
    """Return g = -ln(-ln u) for each token id; u is uniform in (0, 1) from the top 53 bits of a 64-bit mix of the three.

    Vectors: tests/vectors/sampler.json.
    """
    key = np.uint64(_mix_one((seed + (position + 1) * _POSITION_STEP) & _MASK))
    bits = _mix(_mix(key + (tokens.astype(np.uint64) + _ONE) * _TOKEN_STEP))
    uniform = ((bits >> _11).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def scores(
    logits: Floats, tokens: Ids, best_allowed: float, position: int, params: SamplingParams
) -> NDArray[np.float64]:
    """Return the scores of these tokens: logit/T + g, and a slope below min-p's cut; at temperature 0 the logit alone.

    The cut is min_p times the probability of the best allowed token, whose logit is `best_allowed`. Below it a score
    falls SLOPE times as fast as the logit. A hard cut would let rounding noise carry a token with a large g over it, and
    so make an honest replay differ by whole nats there.
    """
    values = logits[tokens].astype(np.float64)
    if params.temperature == 0:
        return values
    values /= params.temperature
    if params.min_p > 0:
        values -= SLOPE * np.maximum(0.0, _cut(best_allowed, params) - values)
    return values + gumbel_noise(params.seed, position, tokens)


def lowest_logit(best_allowed: float, params: SamplingParams) -> float:
    """Return the lowest logit that can win: REACH below the cut, where a token is e^-(SLOPE * REACH) as likely again as its own
    probability."""
    if params.temperature == 0:
        return best_allowed
    if params.min_p == 0:
        return -math.inf
    return params.temperature * (_cut(best_allowed, params) - REACH)


def _cut(best_allowed: float, params: SamplingParams) -> float:
    return best_allowed / params.temperature + math.log(params.min_p)


class Word(Enum):
    """Says what a token begins. A sign or a number counts as a short word: else a text whose words lose would flee to them."""

    SHORT = 1
    LONG = 2


class Repetition:
    """Lowers what was said before, by a function of the answer's own tokens alone, so that it can be replayed. In logits, before
    temperature.

    DRY: a token that would go on with a repeat of earlier text loses dry_multiplier * dry_base ** (length - allowed).
    Words: in whole sentences, a token that begins a word loses for each time that it stands among the last WORD_TOKENS tokens:
    WORD_NATS, and where the text goes round up to MOST_ROUND_NATS more, a short one half as much.
    The last long word loses ECHO_NATS more. What goes on inside a word loses nothing by that, so a name that is begun is spelled as
    before; nor does a title, which would find no word left.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._tokens: list[int] = []
        self._places: defaultdict[int, list[int]] = defaultdict(list)
        self._words: deque[int] = deque(maxlen=WORD_TOKENS)  # twice the token, and one for a long word

    def append(self, token: int, word: Word | None) -> None:
        """Take the answer's next token, and what word it begins, if any."""
        self._places[token].append(len(self._tokens))
        self._tokens.append(token)
        self._words.append(2 * token + (word is Word.LONG) if word else _NO_WORD)

    def cut(self) -> None:
        """Begins a text of its own, such as what a label asks for: no repeat reaches across, for what follows the same label each time
        may well be the same."""
        self._tokens.append(_CUT)
        self._words.append(_NO_WORD)

    def apply(self, logits: Floats, of_prose: bool) -> None:
        """Lower the logits in place."""
        if of_prose:
            self._lower_words(logits)
        if self._params.dry_multiplier and self._tokens:
            for token, length in self._repeats().items():
                over = min(length, _DRY_MAX_MATCH) - self._params.dry_allowed_length
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

    def _repeats(self) -> dict[int, int]:
        """Return by token the longest repeat that it would go on with, of those at least dry_allowed_length long."""
        tokens, last = self._tokens, len(self._tokens) - 1
        longest: dict[int, int] = {}
        for place in self._places[tokens[last]][:-1]:
            length = 1
            while (
                length < _DRY_MAX_MATCH and length <= place and tokens[place - length] == tokens[last - length] != _CUT
            ):
                length += 1
            follower = tokens[place + 1]
            if length >= self._params.dry_allowed_length and follower != _CUT:
                longest[follower] = max(length, longest.get(follower, 0))
        return longest
