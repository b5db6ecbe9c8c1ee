"""Knows how fast GPUs read their memory, by name: for machines that are only described, and where no driver says it.

Peak figures as the makers publish them, in GB/s. Where to check a row: NVIDIA's GeForce, RTX and data-centre product pages and
data sheets (of a laptop GPU that is sold with memory of several speeds: the fastest), AMD's Radeon product pages, Intel's ARK,
Apple's technical specifications; a page that gives only bus and transfer rate gives their product: GB/s = bits / 8 × GT/s. Not
every row has been compared with its page yet. Measures nothing: see kernels.py.
"""

from __future__ import annotations

import re

# One figure, or several by memory size in GiB, of which the first is what a name without a size means.
Speed = float | dict[int, float]

_DESKTOP: dict[str, Speed] = {
    # NVIDIA GeForce and TITAN
    "RTX 5090 D v2": 1344, "RTX 5090 D": 1792, "RTX 5090": 1792, "RTX 5080": 960, "RTX 5070 Ti": 896, "RTX 5070": 672,
    "RTX 5060 Ti": 448, "RTX 5060": 448, "RTX 5050": 320,
    "RTX 4090 D": 1008, "RTX 4090": 1008, "RTX 4080 SUPER": 736, "RTX 4080": 717, "RTX 4070 Ti SUPER": 672, "RTX 4070 Ti": 504,
    "RTX 4070 SUPER": 504, "RTX 4070": 504, "RTX 4060 Ti": 288, "RTX 4060": 272,
    "RTX 3090 Ti": 1008, "RTX 3090": 936, "RTX 3080 Ti": 912, "RTX 3080": {10: 760, 12: 912}, "RTX 3070 Ti": 608, "RTX 3070": 448,
    "RTX 3060 Ti": 448, "RTX 3060": {12: 360, 8: 240}, "RTX 3050": {8: 224, 6: 168},
    "TITAN RTX": 672, "RTX 2080 Ti": 616, "RTX 2080 SUPER": 496, "RTX 2080": 448, "RTX 2070 SUPER": 448, "RTX 2070": 448,
    "RTX 2060 SUPER": 448, "RTX 2060": 336,
    "GTX 1660 Ti": 288, "GTX 1660 SUPER": 336, "GTX 1660": 192, "GTX 1650 SUPER": 192, "GTX 1650": 128, "GTX 1630": 96,
    "GTX 1080 Ti": 484, "GTX 1080": 320, "GTX 1070 Ti": 256, "GTX 1070": 256,
    # NVIDIA workstations
    "RTX PRO 6000": 1792, "RTX PRO 6000 Blackwell Server": 1597, "RTX PRO 5000": 1344, "RTX PRO 4500": 896, "RTX PRO 4000": 672,
    "RTX PRO 4000 Blackwell SFF": 432, "RTX PRO 2000": 288,
    "RTX 6000 Ada": 960, "RTX 5880 Ada": 960, "RTX 5000 Ada": 576, "RTX 4500 Ada": 432, "RTX 4000 Ada": 360, "RTX 4000 SFF Ada": 280,
    "RTX 2000 Ada": 224,
    "RTX A6000": 768, "RTX A5500": 768, "RTX A5000": 768, "RTX A4500": 640, "RTX A4000": 448, "RTX A2000": 288, "RTX A1000": 192,
    "RTX A400": 96,
    "Quadro RTX 8000": 672, "Quadro RTX 6000": 672, "Quadro RTX 5000": 448, "Quadro RTX 4000": 416,
    # NVIDIA data centres
    "B300": 8000, "GB300": 8000, "B200": 8000, "GB200": 8000, "H200": 4800, "GH200": {96: 4000, 144: 4900}, "H100 NVL": 3938,
    "H100 PCIe": 2039, "H100": 3350, "H20": 4000, "A100": {40: 1555, 80: 1935}, "A100 SXM4": {40: 1555, 80: 2039}, "A40": 696,
    "A30": 933, "A16": 200, "A10": 600, "A10G": 600, "A2": 200, "L40S": 864, "L40": 864, "L20": 864, "L4": 300, "V100S": 1134,
    "V100": 900, "T4": 320, "P100": {16: 732, 12: 549}, "P40": 347,
    "GB10": 273,
    # AMD; names that end in M or S are laptops'
    "RX 9070 XT": 640, "RX 9070 GRE": 432, "RX 9070": 640, "RX 9060 XT": 320, "RX 9060": 288,
    "RX 7900 XTX": 960, "RX 7900 XT": 800, "RX 7900 GRE": 576, "RX 7800 XT": 624, "RX 7700 XT": 432, "RX 7600 XT": 288, "RX 7600": 288,
    "RX 6950 XT": 576, "RX 6900 XT": 512, "RX 6800 XT": 512, "RX 6800": 512, "RX 6750 XT": 432, "RX 6700 XT": 384, "RX 6700": 320,
    "RX 6650 XT": 280, "RX 6600 XT": 256, "RX 6600": 224, "RX 6500 XT": 144, "RX 6400": 128,
    "RX 7900M": 576, "RX 7600M XT": 288, "RX 7600M": 256, "RX 7700S": 288, "RX 7600S": 256, "RX 6850M XT": 432, "RX 6800M": 384,
    "RX 6700M": 320, "RX 6600M": 224,
    "AI PRO R9700": 640, "PRO W7900": 864, "PRO W7800": {32: 576, 48: 864}, "PRO W7700": 576, "PRO W7600": 288, "PRO W7500": 172,
    "PRO W6800": 512, "PRO W6600": 224, "PRO W6400": 128,
    # Intel; names that end in M are laptops'
    "Arc B580": 456, "Arc B570": 380, "Arc A770": {16: 560, 8: 512}, "Arc A750": 512, "Arc A580": 512, "Arc A380": 186, "Arc A310": 124,
    "Arc A770M": 512, "Arc A730M": 336, "Arc A550M": 224, "Arc A370M": 112, "Arc A350M": 112,
    "Arc Pro B60": 456, "Arc Pro B50": 224, "Arc Pro A60": 384, "Arc Pro A50": 192, "Arc Pro A40": 192,
    # Apple; the two M3 Max and the two M4 Max are told apart by the memory that they are sold with
    "Apple M1": 68, "Apple M1 Pro": 200, "Apple M1 Max": 400, "Apple M1 Ultra": 800,
    "Apple M2": 100, "Apple M2 Pro": 200, "Apple M2 Max": 400, "Apple M2 Ultra": 800,
    "Apple M3": 100, "Apple M3 Pro": 150, "Apple M3 Max": {36: 300, 48: 400, 64: 400, 128: 400}, "Apple M3 Ultra": 819,
    "Apple M4": 120, "Apple M4 Pro": 273, "Apple M4 Max": {36: 410, 48: 546, 64: 546, 128: 546},
    "Apple M5": 153,
}  # fmt: skip

# NVIDIA's, whose names are those of faster cards with "Laptop GPU" behind them
_LAPTOP: dict[str, Speed] = {
    "RTX 5090": 896, "RTX 5080": 896, "RTX 5070 Ti": 672, "RTX 5070": 384, "RTX 5060": 384, "RTX 5050": 384,
    "RTX 4090": 576, "RTX 4080": 432, "RTX 4070": 256, "RTX 4060": 256, "RTX 4050": 192,
    "RTX 3080 Ti": 512, "RTX 3080": 448, "RTX 3070 Ti": 448, "RTX 3070": 448, "RTX 3060": 336,
    "RTX 2080": 384, "RTX 2070": 384, "RTX 2060": 264,  # with Max-Q Design; the others of 2019 are named as desktop cards
    "RTX PRO 5000": 896, "RTX PRO 4000": 896, "RTX PRO 3000": 672,
    "RTX 5000 Ada": 576, "RTX 4000 Ada": 432, "RTX 3500 Ada": 432, "RTX 3000 Ada": 256, "RTX 2000 Ada": 256,
}  # fmt: skip


def _words(name: str) -> str:
    """In lower case, with a blank around each word."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', re.sub(r'[(](r|tm)[)]', '', name.lower())))} "


def shares_ram(name: str) -> bool:
    """Whether this GPU has no memory of its own: Apple's, and NVIDIA's GB10."""
    return bool(re.search(r" (apple m\d+|gb10) ", _words(name)))


def bandwidth_of(name: str, total_bytes: int | None = None) -> float | None:
    """GB/s, None for a GPU that the tables do not know; the row with the most letters wins. `total_bytes` tells cards of one
    name apart; without it, a size in the name does."""
    words = _words(name)
    laptop = " laptop " in words or " mobile " in words or (" max q " in words and " workstation " not in words)
    table = _LAPTOP if laptop else _DESKTOP
    row = max((row for row in table if _words(row) in words), key=len, default=None)
    if row is None:
        return None
    speed = table[row]
    if not isinstance(speed, dict):
        return speed
    said = re.search(r" (\d+) ?gb? ", words)
    gib = total_bytes / 2**30 if total_bytes else float(said[1]) if said else 0.0
    near = (speed[size] for size in speed if abs(gib - size) <= size / 10)
    return next(near, next(iter(speed.values())))
