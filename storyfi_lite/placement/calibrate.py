"""Measures, in about two seconds, how fast this CPU reads quantized weights in ggml's own kernels; kept per machine."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import Any

COLUMNS, ROWS = 4096, 65536  # 151 MB of Q4_K: larger than any cache that one core has to itself
SECONDS = 2.0
Q4_K, F32 = 12, 0
FALLBACK_GB_S = 10.0  # without llama.cpp: two slow cores


@cache
def cpu_bandwidth_gb_s() -> float:
    """Of quantized weights, all physical cores. Measured once, then read from the cache directory."""
    import platformdirs

    try:
        import llama_cpp
    except ImportError:
        return FALLBACK_GB_S
    path = Path(platformdirs.user_cache_dir("storyfi-lite")) / "speed.json"
    key = f"{platform.node()} {platform.machine()} {os.cpu_count()} llama-cpp-python {llama_cpp.__version__}"
    try:
        return float(json.loads(path.read_text())[key])
    except (OSError, ValueError, KeyError, TypeError):
        measured = measure_cpu()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({key: round(measured, 2)}))
    except OSError:
        pass  # a read-only home: measured again next time
    return measured


def measure_cpu() -> float:
    """GB/s of the fastest tenth of many products of a Q4_K matrix with a vector: other programs slow the rest."""
    import psutil
    from llama_cpp import _ggml

    ggml = _Ggml(_ggml.libggml)
    return ggml.measure(psutil.cpu_count(logical=False) or 1)


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Ggml:
    """The few functions of ggml.h and ggml-cpu.h that a matrix product takes."""

    def __init__(self, library: Any) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "ggml_init": (pointer, [_InitParams]),
            "ggml_free": (None, [pointer]),
            "ggml_new_tensor_2d": (pointer, [pointer, ctypes.c_int, number, number]),
            "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
            "ggml_set_zero": (pointer, [pointer]),
            "ggml_new_graph": (pointer, [pointer]),
            "ggml_build_forward_expand": (None, [pointer, pointer]),
            "ggml_graph_compute_with_ctx": (ctypes.c_int, [pointer, pointer, ctypes.c_int]),
            "ggml_nbytes": (ctypes.c_size_t, [pointer]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self.library = library

    def measure(self, n_threads: int) -> float:
        ggml = self.library
        context = ggml.ggml_init(_InitParams(512 << 20, None, False))
        try:
            matrix = ggml.ggml_set_zero(ggml.ggml_new_tensor_2d(context, Q4_K, COLUMNS, ROWS))
            vector = ggml.ggml_set_zero(ggml.ggml_new_tensor_2d(context, F32, COLUMNS, 1))
            graph = ggml.ggml_new_graph(context)
            ggml.ggml_build_forward_expand(graph, ggml.ggml_mul_mat(context, matrix, vector))
            times: list[float] = []
            end = time.perf_counter() + SECONDS
            while time.perf_counter() < end and len(times) < 200:
                start = time.perf_counter()
                ggml.ggml_graph_compute_with_ctx(context, graph, n_threads)
                times.append(time.perf_counter() - start)
            return float(ggml.ggml_nbytes(matrix)) / sorted(times)[len(times) // 10] / 1e9
        finally:
            ggml.ggml_free(context)
