"""Chooses tokens: a pure function from (logits, allowed tokens, seed, position, history) to one token.

Gumbel-max with counter-based noise: token v at position i has the score logit(v)/T + g(S, i, v), and the best allowed
score wins, so a validator that knows the seed S repeats every choice (docs/proof.md; after Token-DiFR, arXiv
2511.20621). Unlikely tokens are held down by a soft min-p against the best allowed logit: continuous in the logits, where
top-p, top-k and a hard cut flip on rounding noise. Knows token ids only: no text, no grammar, no llama.cpp.
"""

from __future__ import annotations

import math

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
