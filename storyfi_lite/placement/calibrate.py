"""Measures, in about two seconds, how fast this CPU runs ggml's own kernels: products with quantized weights, type by type,
and attention. Kept per machine and number of threads. Nothing here knows a model.

Types differ by a factor of five on one CPU: the simple ones are bound by memory, the finely packed ones by arithmetic.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

COLUMNS, ROWS = 4096, 24_576  # 50 to 200 MB a matrix: larger than any cache that one core has to itself
NARROW_COLUMNS = 512
TILE_ROWS = 16  # so many rows of real quantized numbers, again and again: made-up ones are up to twice as fast or slow
# ggml_type of ggml.h
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_XS": 23,
         "IQ2_XXS": 16, "F16": 1}  # fmt: skip
NEEDS_IMPORTANCE = {"IQ2_XXS"}  # not to be made here; bound by arithmetic, so any bytes will do
F32, F16, Q8_0 = 0, 1, 8
SECONDS_A_KERNEL = 0.12
HEADS, KV_HEADS, HEAD_SIZE, CELLS = 32, 8, 128, 1024
WORKSPACE_BYTES = 256 << 20
TRIES = 3
SPARE_CORE_SHARE = 0.2  # that other programs may use of the cores we count on


@dataclass(frozen=True)
class CpuSpeed:
    """`gb_s`: of quantized weights, by type. `attention_ns`, by type of key and value: for each query head, cell and
    number of a key. `row_ns`: for each row of a matrix, however short."""

    gb_s: dict[str, float]
    attention_ns: dict[str, float]
    row_ns: float

    def best_of(self, other: CpuSpeed) -> CpuSpeed:
        """Kernel by kernel: whatever disturbs, slows."""
        gb_s = {kind: max(speed, other.gb_s[kind]) for kind, speed in self.gb_s.items()}
        attention_ns = {kind: min(ns, other.attention_ns[kind]) for kind, ns in self.attention_ns.items()}
        return CpuSpeed(gb_s, attention_ns, min(self.row_ns, other.row_ns))


FALLBACK = CpuSpeed(dict.fromkeys(TYPES, 10.0), {"f16": 0.3, "q8_0": 0.5}, 10.0)  # without llama.cpp: two slow cores


@cache
def cpu_speed(n_threads: int) -> CpuSpeed:
    """With so many threads, 0: all physical cores. Measured once, then read from the cache directory. While other programs have
    the cores, the best of three measurements counts, and is not kept."""
    import platformdirs
    import psutil

    try:
        import llama_cpp
    except ImportError:
        return FALLBACK
    n_threads = n_threads or psutil.cpu_count(logical=False) or 1
    path = Path(platformdirs.user_cache_dir("storyfi-lite")) / "speed.json"
    build = f"llama-cpp-python {llama_cpp.__version__}"
    key = f"{platform.node()} {platform.machine()} {os.cpu_count()} {build} {n_threads} threads"
    known: dict[str, Any] = {}
    try:
        known = dict(json.loads(path.read_text()))
        return CpuSpeed(**known[key])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    measured, undisturbed = _measured(n_threads)
    for _ in range(TRIES - 1):
        if undisturbed:
            break
        again, undisturbed = _measured(n_threads)
        measured = again if undisturbed else measured.best_of(again)
    if not undisturbed:
        return measured
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**known, key: asdict(measured)}))
    except OSError:
        pass  # a read-only home: measured again next time
    return measured


def _measured(n_threads: int) -> tuple[CpuSpeed, bool]:
    """And whether other programs left us the cores that we count on."""
    start_s, others_s = time.monotonic(), cpu_seconds_of_others()
    measured = measure_cpu(n_threads)
    others = (cpu_seconds_of_others() - others_s) / (time.monotonic() - start_s)
    return measured, others <= max(0, (os.cpu_count() or 1) - n_threads) + SPARE_CORE_SHARE


def cpu_seconds_of_others() -> float:
    """That all other programs, and a virtual machine's host, have used since the start, all cores together."""
    import psutil

    of_all, own = psutil.cpu_times(), psutil.Process().cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(of_all, kind, 0.0) for kind in kinds) - own.user - own.system


def measure_cpu(n_threads: int) -> CpuSpeed:
    """The fastest tenth of many runs of each kernel: other programs slow the rest."""
    from llama_cpp import _ggml

    bench = _Bench(_ggml.libggml, n_threads)
    weights = {name: round(bench.weights_gb_s(kind, name not in NEEDS_IMPORTANCE), 2) for name, kind in TYPES.items()}
    attention = {name: round(bench.attention_ns(kind), 4) for name, kind in (("f16", F16), ("q8_0", Q8_0))}
    # a row of Q8_0, 34 bytes for 32 numbers, in nanoseconds
    wide_ns = COLUMNS * 34 / 32 / weights["Q8_0"]
    narrow_ns = NARROW_COLUMNS * 34 / 32 / bench.weights_gb_s(TYPES["Q8_0"], True, NARROW_COLUMNS)
    row_ns = (narrow_ns * COLUMNS - wide_ns * NARROW_COLUMNS) / (COLUMNS - NARROW_COLUMNS)
    return CpuSpeed(weights, attention, round(max(0.0, row_ns), 2))


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_POINTER, _NUMBER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (_POINTER, [_InitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_new_tensor_3d": (_POINTER, [_POINTER, ctypes.c_int, _NUMBER, _NUMBER, _NUMBER]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_flash_attn_ext": (_POINTER, [_POINTER] * 5 + [_FLOAT] * 3),
    "ggml_set_zero": (_POINTER, [_POINTER]),
    "ggml_get_data": (_POINTER, [_POINTER]),
    "ggml_new_graph": (_POINTER, [_POINTER]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_graph_compute_with_ctx": (ctypes.c_int, [_POINTER, _POINTER, ctypes.c_int]),
    "ggml_nbytes": (ctypes.c_size_t, [_POINTER]),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        [ctypes.c_int, _POINTER, _POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER],
    ),
}


class _Bench:
    """The few functions of ggml.h and ggml-cpu.h that this takes."""

    def __init__(self, library: Any, n_threads: int) -> None:
        import numpy as np

        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self.ggml, self.n_threads = library, n_threads
        self.numbers = np.random.default_rng(0).normal(0, 0.02, (TILE_ROWS, COLUMNS)).astype(np.float32)
        self.workspace = ctypes.create_string_buffer(WORKSPACE_BYTES)

    def weights_gb_s(self, kind: int, quantizes: bool, columns: int = COLUMNS) -> float:
        size, factor = 0, COLUMNS // columns

        def product(context: Any) -> Any:
            nonlocal size
            matrix = self.ggml.ggml_new_tensor_3d(context, kind, columns, ROWS * factor, 1)
            vector = self.ggml.ggml_new_tensor_3d(context, F32, columns, 1, 1)
            ctypes.memmove(self.ggml.ggml_get_data(vector), self.numbers.ctypes.data, 4 * columns)
            size = self.ggml.ggml_nbytes(matrix)
            self._fill(self.ggml.ggml_get_data(matrix), size, kind, quantizes, columns)
            return self.ggml.ggml_mul_mat(context, matrix, vector)

        seconds = self._seconds(product)
        return size / seconds / 1e9

    def _fill(self, data: int, size: int, kind: int, quantizes: bool, columns: int) -> None:
        tile = size * TILE_ROWS // ROWS
        if quantizes:
            self.ggml.ggml_quantize_chunk(
                kind, self.numbers.ctypes.data, data, 0, TILE_ROWS * COLUMNS // columns, columns, None
            )
        else:
            ctypes.memmove(data, self.numbers.ctypes.data, tile)
        while tile < size:  # twice as much each time
            ctypes.memmove(data + tile, data, min(tile, size - tile))
            tile *= 2

    def attention_ns(self, kind: int) -> float:
        def attend(context: Any) -> Any:
            new, zero = self.ggml.ggml_new_tensor_3d, self.ggml.ggml_set_zero
            query = zero(new(context, F32, HEAD_SIZE, 1, HEADS))
            keys, values = (zero(new(context, kind, HEAD_SIZE, CELLS, KV_HEADS)) for _ in range(2))
            mask = zero(new(context, F16, CELLS, 1, 1))
            return self.ggml.ggml_flash_attn_ext(context, query, keys, values, mask, 0.1, 0.0, 0.0)

        return self._seconds(attend) * 1e9 / (HEADS * CELLS * HEAD_SIZE)

    def _seconds(self, build: Callable[[Any], Any]) -> float:
        ggml = self.ggml
        context = ggml.ggml_init(_InitParams(WORKSPACE_BYTES, ctypes.addressof(self.workspace), False))
        try:
            graph = ggml.ggml_new_graph(context)
            ggml.ggml_build_forward_expand(graph, build(context))
            times: list[float] = []
            end = time.perf_counter() + SECONDS_A_KERNEL
            while len(times) < 5 or (time.perf_counter() < end and len(times) < 1000):
                start = time.perf_counter()
                if ggml.ggml_graph_compute_with_ctx(context, graph, self.n_threads):
                    raise RuntimeError("ggml could not compute")
                times.append(time.perf_counter() - start)
            return sorted(times)[len(times) // 10]
        finally:
            ggml.ggml_free(context)
