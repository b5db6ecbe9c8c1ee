"""Knows how fast GPUs read their memory, by name: for machines that are only described, and where no driver says it.

Peak figures from cards.tsv, which scripts/make_cards.py makes; each row names the page that it is from. A card without a row is not
known. Of cards that are sold with memory of several speeds under one name, the first that was sold. Measures nothing: see kernels.py.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

TABLE = Path(__file__).with_name("cards.tsv")
_MARKS = (" laptop ", " max q ")  # such a GPU is another than the card of the same number
_LEFT_OUT = r"[(](r|tm)[)]|\b(geforce|radeon|tesla|generation|blackwell|with)\b|\b\d+ ?gb\b"
# What follows a card's name makes it another card.
_VARIANTS = {"ti", "super", "d", "pro", "max", "ultra", "xt", "xtx", "gre", "le"}


@lru_cache
def _table() -> dict[str, list[tuple[int, float]]]:
    """Return GiB (0: any) and GB/s by a card's words; of several sizes the first is what a name without one means."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]:
        name, gib, gb_s, _ = line.split("\t")
        found.setdefault(_words(name), []).append((int(gib), float(gb_s)))
    return found


def _words(name: str) -> str:
    """Return the name in lower case, with a blank around each word, without memory sizes and words that tell nothing apart."""
    kept = re.sub(_LEFT_OUT, " ", name.lower().replace("mobile", "laptop"))
    return f" {' '.join(re.findall(r'[a-z0-9]+', kept))} "


def shares_ram(name: str) -> bool:
    """Return whether this GPU has no memory of its own: Apple's, and NVIDIA's GB10."""
    return bool(re.search(r" (apple m\d+|gb10) ", _words(name)))


def bandwidth_of(name: str, total_bytes: int | None = None) -> float | None:
    """Return GB/s by the row with the most letters that the name holds, None for a GPU that the table does not know. `total_bytes` tells
    cards of one name apart; without it, a size in the name does."""
    words = _words(name)
    marks = [mark for mark in _MARKS if mark in words]
    rows = (row for row in _table() if row in words and [mark for mark in _MARKS if mark in row] == marks)
    row = max(rows, key=len, default=None)
    if row is None or words.partition(row)[2].split(" ")[0] in _VARIANTS:
        return None
    said = re.search(r"\b(\d+) ?gb\b", name.lower())
    gib = total_bytes / 2**30 if total_bytes else float(said[1]) if said else 0.0
    sizes = _table()[row]
    return next((gb_s for size, gb_s in sizes if abs(gib - size) <= size / 10), sizes[0][1])
