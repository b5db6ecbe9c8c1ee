"""Holds the network's time limits and the number of chapters, each once. The score's other rules are in validator/."""

from __future__ import annotations

FULL_MARKS_S = 30.0  # an answer that took no longer has all points for time
NO_MARKS_S = 60.0  # none any more; the points fall in a line between
TIMEOUT_S = 60.0  # validators hang up
DEADLINE_S = 55.0  # when a miner gives up: its refusal must still reach the validator
AIM_S = 24.0  # what a miner plans for: predictions are good to a quarter, and the way there and back counts

CHAPTER_COUNT = 12  # of a story arc
MAX_THINK_TOKENS = 4096  # that a proof may have before its answer
