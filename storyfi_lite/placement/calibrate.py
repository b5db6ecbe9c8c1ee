"""Measures how fast this CPU runs ggml's own kernels, in about two seconds: products with quantized weights, type by type,
and attention. What it finds is kept per build, machine and number of threads. Nothing here knows a model.

Types differ by a factor of five on one CPU: the simple ones are bound by memory, the finely packed ones by arithmetic.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from dataclasses import asdict, dataclass
from functools import cache

from storyfi_lite import files
from storyfi_lite.machine import limits

log = logging.getLogger(__name__)

CACHE = "speed.json"
NARROW_COLUMNS = 512
TOGETHER = 8  # tokens in one step, to see what each further one costs
# ggml_type of ggml.h
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_XS": 23,
         "IQ2_XXS": 16, "F16": 1}  # fmt: skip
NEEDS_IMPORTANCE = {"IQ2_XXS"}  # not to be made here; bound by arithmetic, so any bytes will do
TRIES = 3
SPARE_CORE_SHARE = 0.2  # that other programs may use of the cores we count on


@dataclass(frozen=True)
class CpuSpeed:
    """Holds the speed of this CPU's kernels. `gb_s`: of quantized weights, by type, for one token. `more_share`: what each
    further token of the same step costs, as a share of the first. `attention_ns`, by type of key and value: for each query
    head, cell and number of a key. `row_ns`: for each row of a matrix, however short."""

    gb_s: dict[str, float]
    attention_ns: dict[str, float]
    row_ns: float
    more_share: dict[str, float]

    def best_of(self, other: CpuSpeed) -> CpuSpeed:
        """Return, kernel by kernel, the faster of two measurements: whatever disturbs, slows."""
        gb_s = {kind: max(speed, other.gb_s[kind]) for kind, speed in self.gb_s.items()}
        attention_ns = {kind: min(ns, other.attention_ns[kind]) for kind, ns in self.attention_ns.items()}
        more = {kind: min(share, other.more_share[kind]) for kind, share in self.more_share.items()}
        return CpuSpeed(gb_s, attention_ns, min(self.row_ns, other.row_ns), more)


# without llama.cpp: two slow cores
FALLBACK = CpuSpeed(dict.fromkeys(TYPES, 10.0), {"f16": 0.3, "q8_0": 0.5}, 10.0, dict.fromkeys(TYPES, 0.5))


@cache
def cpu_speed(n_threads: int) -> CpuSpeed:
    """Return the CPU's speed with so many threads, 0: all physical cores. It is measured once, then read from the cache
    directory. While other programs have the cores, the best of three measurements counts, and is not kept."""
    n_threads = n_threads or limits.cores()
    try:
        key = _key(n_threads)
    except ImportError:
        return FALLBACK
    with contextlib.suppress(KeyError, TypeError):
        return CpuSpeed(**files.read_cache(CACHE)[key])
    measured, undisturbed = _measured(n_threads)
    for _ in range(TRIES - 1):
        if undisturbed:
            break
        again, undisturbed = _measured(n_threads)
        measured = again if undisturbed else measured.best_of(again)
    if undisturbed:
        keep(n_threads, measured)
    else:
        log.warning(
            "this CPU was measured while other programs had its cores: what is predicted is too slow, and measured again next time"
        )
    return measured


def keep(n_threads: int, speed: CpuSpeed) -> None:
    """Keep the speed for later processes with so many threads."""
    files.keep(CACHE, _key(n_threads), asdict(speed))


def _key(n_threads: int) -> str:
    import llama_cpp

    build = f"llama-cpp-python {llama_cpp.__version__}"
    return f"{platform.node()} {platform.machine()} {os.cpu_count()} {build} {n_threads} threads"


def _measured(n_threads: int) -> tuple[CpuSpeed, bool]:
    """Measure once. Returns the speed, and whether other programs left us the cores that we count on."""
    start_s, others_s = time.monotonic(), cpu_seconds_of_others()
    measured = measure_cpu(n_threads)
    others = (cpu_seconds_of_others() - others_s) / (time.monotonic() - start_s)
    return measured, others <= max(0, (os.cpu_count() or 1) - n_threads) + SPARE_CORE_SHARE


def cpu_seconds_of_others() -> float:
    """Return what all other programs, and a virtual machine's host, have used since the start, all cores together."""
    import psutil

    of_all, own = psutil.cpu_times(), psutil.Process().cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(of_all, kind, 0.0) for kind in kinds) - own.user - own.system


def measure_cpu(n_threads: int) -> CpuSpeed:
    """Measure each kernel by the fastest tenth of many runs: other programs slow the rest."""
    from storyfi_lite.machine import devices, selftest
    from storyfi_lite.machine.kernels import COLUMNS, KernelBench

    selftest.require("cpu")
    with KernelBench(devices.cpu(), n_threads) as bench:
        weights = {
            name: round(bench.weights_gb_s(kind, name not in NEEDS_IMPORTANCE), 2) for name, kind in TYPES.items()
        }
        several = {
            name: bench.weights_gb_s(kind, name not in NEEDS_IMPORTANCE, tokens=TOGETHER)
            for name, kind in TYPES.items()
        }
        attention = {
            name: round(bench.attention_ns(TYPES[kind]), 4) for name, kind in (("f16", "F16"), ("q8_0", "Q8_0"))
        }
        narrow_gb_s = bench.weights_gb_s(TYPES["Q8_0"], columns=NARROW_COLUMNS)
    # a row of Q8_0, 34 bytes for 32 numbers, in nanoseconds
    wide_ns = COLUMNS * 34 / 32 / weights["Q8_0"]
    narrow_ns = NARROW_COLUMNS * 34 / 32 / narrow_gb_s
    row_ns = (narrow_ns * COLUMNS - wide_ns * NARROW_COLUMNS) / (COLUMNS - NARROW_COLUMNS)
    more = {name: (weights[name] / several[name] - 1) / (TOGETHER - 1) for name in weights}
    shares = {name: round(min(1.0, max(0.0, share)), 3) for name, share in more.items()}
    return CpuSpeed(weights, attention, round(max(0.0, row_ns), 2), shares)
