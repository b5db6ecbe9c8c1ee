"""Keeps the noise of each model file, and how honest answers of it were judged (docs/proof.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from storyfi_lite import files
from storyfi_lite.errors import BadInput
from storyfi_lite.validator.verdict import judge, noise_of

if TYPE_CHECKING:
    from storyfi_lite.engine.replay import Replay

MIN_ANSWERS = 6
MOVED_BY = "XDG_CONFIG_HOME=DIRECTORY"


@dataclass(frozen=True)
class Calibration:
    """Holds the noise of one file in nats (verdict.py), of how many honest answers it was taken, and how many of these were proven and
    refuted by it."""

    model_sha256: str
    noise: float
    answers: int
    positions: int
    proven: int
    refuted: int
    made_with: str


def calibrate(sha256: str, pairs: Sequence[tuple[Replay, Replay]], made_with: str) -> Calibration:
    """Measure a file's noise on honest answers, each replayed in two ways. The noise knows nothing of who wrote them, so their
    verdicts test it. Raises BadInput if they are too few."""
    if len(pairs) < MIN_ANSWERS:
        raise BadInput(f"{len(pairs)} answers; at least {MIN_ANSWERS} are needed")
    noise = round(noise_of(pairs), 4)
    statuses = [judge(one, noise).status for one, _ in pairs]
    positions = sum(len(one.margins) for one, _ in pairs)
    return Calibration(
        sha256, noise, len(pairs), positions, statuses.count("proven"), statuses.count("refuted"), made_with
    )


def calibration_of(sha256: str, path: Path | None = None) -> Calibration | None:
    """Return the file's calibration on this machine; None if there is none. Raises BadInput for a broken file."""
    path = path or user_calibrations()
    rows = _read(path) if path.exists() else {}
    return Calibration(sha256, **rows[sha256]) if sha256 in rows else None


def save_calibration(calibration: Calibration, path: Path | None = None) -> Path:
    """Add it to the user's own calibrations; returns their file. Raises ConfigError or DoesNotFit where it cannot be written."""
    path = path or user_calibrations()
    rows = _read(path) if path.exists() else {}
    fields = {key: value for key, value in vars(calibration).items() if key != "model_sha256"}
    rows[calibration.model_sha256] = fields
    files.write_text(path, yaml.safe_dump(rows, sort_keys=False), MOVED_BY)
    return path


def user_calibrations() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("storyfi-lite")) / "calibrations.yaml"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows = yaml.safe_load(path.read_text()) or {}
    fields = set(Calibration.__dataclass_fields__) - {"model_sha256"}
    if not isinstance(rows, dict) or any(not isinstance(row, dict) or set(row) != fields for row in rows.values()):
        raise BadInput(
            f"{path} does not hold calibrations of this version: delete it, and `storyfi-lite calibrate` makes it anew"
        )
    return rows


def rate_bound(found: int, of: int) -> float:
    """Return Clopper and Pearson's one-sided 95 % upper bound on a rate of which `found` in `of` were seen."""
    low, high = found / of, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        logs = [
            math.log(math.comb(of, k)) + k * math.log(rate) + (of - k) * math.log1p(-rate) for k in range(found + 1)
        ]
        low, high = (rate, high) if math.fsum(map(math.exp, logs)) > 0.05 else (low, rate)
    return high
