"""The sampler is a pure function that any validator must be able to repeat: vectors, statistics, equality of its paths."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from storyfi_lite.engine.sampler import gumbel_noise, lowest_logit, scores
from storyfi_lite.engine.settings import SamplingParams

VECTORS = json.loads((Path(__file__).parent / "vectors" / "sampler.json").read_text())


def reference_noise(seed: int, position: int, token: int) -> float:
    """The published definition, in plain integers: what another implementation would write."""
    mask = (1 << 64) - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    key = mix((seed + (position + 1) * 0x9E3779B97F4A7C15) & mask)
    bits = mix(mix((key + (token + 1) * 0xD1342543DE82EF95) & mask))
    return -math.log(-math.log(((bits >> 11) + 0.5) * 2.0**-53))


@pytest.mark.parametrize("vector", VECTORS["noise"])
def test_published_noise(vector: dict[str, float]) -> None:
    seed, position, token = int(vector["seed"]), int(vector["position"]), int(vector["token"])
    ours = float(gumbel_noise(seed, position, np.array([token]))[0])
    assert ours == pytest.approx(vector["g"], abs=1e-12)
    assert reference_noise(seed, position, token) == pytest.approx(vector["g"], abs=1e-12)


def test_noise_is_gumbel_and_independent_of_its_neighbours() -> None:
    noise = gumbel_noise(0, 0, np.arange(200_000))
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.03)
    for other in (
        gumbel_noise(0, 1, np.arange(200_000)),
        gumbel_noise(1, 0, np.arange(200_000)),
        np.roll(noise, 1),
    ):
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.01


def test_choices_follow_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    params = SamplingParams(seed=9, temperature=1.0, min_p=0.0)
    picks = [
        int(np.argmax(scores(logits, np.arange(4), float(logits[0]), position, params))) for position in range(20_000)
    ]
    assert np.bincount(picks) / 20_000 == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.012)


def test_min_p_holds_down_what_is_unlikely_beside_the_best_allowed_token() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.19, 0.01], dtype=np.float32))
    params = SamplingParams(seed=9, temperature=1.0, min_p=0.1)
    picks = [
        int(np.argmax(scores(logits, np.arange(4), float(logits[0]), position, params))) for position in range(9000)
    ]
    assert np.bincount(picks, minlength=4)[3] / 9000 < 0.001  # 0.01 * (0.01 / 0.05) ** SLOPE
    assert -9.0 < lowest_logit(0.0, params) < -4.0


def test_a_score_moves_no_further_than_its_logits_do() -> None:
    """Honest replays differ from generation by rounding noise; no choice may jump because of it."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, 500).astype(np.float32)
    noisy = logits + rng.uniform(-1e-3, 1e-3, 500).astype(np.float32)
    params = SamplingParams(seed=3, temperature=0.7, min_p=0.1)
    before = scores(logits, np.arange(500), float(logits.max()), 0, params)
    after = scores(noisy, np.arange(500), float(noisy.max()), 0, params)
    assert np.abs(before - after).max() < 1e-3 / 0.7 * 5.1  # (1 + 2 * SLOPE) of the noise, and rounding


def test_temperature_zero_is_greedy_whatever_the_seed() -> None:
    logits = np.array([0.1, 2.0, 1.9], dtype=np.float32)
    for seed in range(20):
        params = SamplingParams(seed, temperature=0.0)
        kept = np.flatnonzero(logits >= lowest_logit(2.0, params))
        assert list(kept) == [1]
        assert int(kept[np.argmax(scores(logits, kept, 2.0, 5, params))]) == 1
