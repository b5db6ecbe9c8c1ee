"""Measures how fast a device, a CPU or a GPU, runs ggml's own kernels: products with quantized weights, and attention.

It knows no models; what follows from the figures is placement's.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from storyfi_lite import files
from storyfi_lite.machine.build import fingerprint
from storyfi_lite.machine.devices import Device, InitParams, ggml

COLUMNS, ROWS = 4096, 24_576  # 50 to 200 MB a matrix: larger than any cache that one core has to itself
TILE_ROWS = 16  # so many rows of real quantized numbers, again and again: made-up ones are up to twice as fast or slow
TILE_BYTES = 1 << 20  # about so much is handed to a device at once
F32, F16 = 0, 1  # ggml_type of ggml.h
HEADS, KV_HEADS, HEAD_SIZE, CELLS = 32, 8, 128, 1024
SECONDS_A_KERNEL, RUNS_A_KERNEL = 0.12, 5  # at least, but a device that is too slow for it gets
MAX_SECONDS_A_KERNEL = 1.0
_BUFFER_BYTES, _ALIGNMENT_BYTES = 224 << 20, 256
_GRAPH_BYTES = 1 << 20  # the descriptions of tensors and graph, without data

_POINTER, _SIZE, _NUMBER, _FLOAT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_float


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_get_first_tensor": (_POINTER, [_POINTER]),
    "ggml_get_next_tensor": (_POINTER, [_POINTER, _POINTER]),
    "ggml_nbytes": (_SIZE, [_POINTER]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_flash_attn_ext": (_POINTER, [_POINTER] * 5 + [_FLOAT] * 3),
    "ggml_new_graph": (_POINTER, [_POINTER]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_row_size": (_SIZE, [ctypes.c_int, _NUMBER]),
    "ggml_quantize_chunk": (_SIZE, [ctypes.c_int, _POINTER, _POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER]),
    "ggml_backend_dev_init": (_POINTER, [_POINTER, ctypes.c_char_p]),
    "ggml_backend_free": (None, [_POINTER]),
    "ggml_backend_dev_backend_reg": (_POINTER, [_POINTER]),
    "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, ctypes.c_char_p]),
    "ggml_backend_alloc_buffer": (_POINTER, [_POINTER, _SIZE]),
    "ggml_backend_buffer_free": (None, [_POINTER]),
    "ggml_backend_buffer_get_base": (_POINTER, [_POINTER]),
    "ggml_backend_tensor_alloc": (ctypes.c_int, [_POINTER, _POINTER, _POINTER]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_tensor_memset": (None, [_POINTER, ctypes.c_uint8, _SIZE, _SIZE]),
    "ggml_backend_graph_compute": (ctypes.c_int, [_POINTER, _POINTER]),
}


class KernelBench(AbstractContextManager["KernelBench"]):
    """Times kernels on one device, with 224 MiB of memory there. Raises RuntimeError where ggml cannot."""

    def __init__(self, device: Device, n_threads: int = 0) -> None:
        self._ggml = ggml()
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._ggml, name)
            function.restype, function.argtypes = result, arguments
        self._backend = self._ggml.ggml_backend_dev_init(device.handle, None)
        self._buffer = self._ggml.ggml_backend_alloc_buffer(self._backend, _BUFFER_BYTES) if self._backend else None
        if not self._buffer:
            raise RuntimeError(f"ggml could not open {device.description}")
        if n_threads:
            registry = self._ggml.ggml_backend_dev_backend_reg(device.handle)
            address = self._ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
            ctypes.CFUNCTYPE(None, _POINTER, ctypes.c_int)(address)(self._backend, n_threads)
        self._numbers = np.random.default_rng(0).normal(0, 0.02, (TILE_ROWS, COLUMNS)).astype(np.float32)

    def __exit__(self, *_: object) -> None:
        self._ggml.ggml_backend_buffer_free(self._buffer)
        self._ggml.ggml_backend_free(self._backend)

    def weights_gb_s(self, kind: int, quantizes: bool = True, columns: int = COLUMNS, tokens: int = 1) -> float:
        """Measure how fast a matrix of this ggml_type is read for a product with one vector, or those of several tokens, in GB/s.
        `quantizes`: whether such a matrix can be made here; else any bytes must do."""
        ggml, rows = self._ggml, ROWS * COLUMNS // columns
        size = rows * ggml.ggml_row_size(kind, columns)

        # whole rows of about TILE_BYTES: a few real ones, again and again
        real_rows = self._numbers.size // columns
        made = ctypes.create_string_buffer(real_rows * ggml.ggml_row_size(kind, columns))
        if quantizes:
            ggml.ggml_quantize_chunk(kind, self._numbers.ctypes.data, made, 0, real_rows, columns, None)
        else:
            ctypes.memmove(made, self._numbers.ctypes.data, len(made))

        def product(context: Any) -> tuple[Any, dict[Any, bytes]]:
            matrix = ggml.ggml_new_tensor_3d(context, kind, columns, rows, 1)
            vector = ggml.ggml_new_tensor_3d(context, F32, columns, tokens, 1)
            data = {matrix: made.raw * max(1, TILE_BYTES // len(made)), vector: self._numbers[0, :columns].tobytes()}
            return ggml.ggml_mul_mat(context, matrix, vector), data

        return size / self._seconds(product) / 1e9

    def attention_ns(self, kind: int) -> float:
        """Measure attention over keys and values of this ggml_type: nanoseconds for each query head, cell and number of a key."""
        ggml = self._ggml

        def attend(context: Any) -> tuple[Any, dict[Any, bytes]]:
            new = ggml.ggml_new_tensor_3d
            query = new(context, F32, HEAD_SIZE, 1, HEADS)
            keys, values = (new(context, kind, HEAD_SIZE, CELLS, KV_HEADS) for _ in range(2))
            mask = new(context, F16, CELLS, 1, 1)
            return ggml.ggml_flash_attn_ext(context, query, keys, values, mask, 0.1, 0.0, 0.0), {}

        return self._seconds(attend) * 1e9 / (HEADS * CELLS * HEAD_SIZE)

    def _seconds(self, build: Callable[[Any], tuple[Any, dict[Any, bytes]]]) -> float:
        """Return the time of the fastest tenth of many runs: other programs slow the rest. `build` gives a result, and what fills
        its inputs again and again; the others are zero."""
        ggml = self._ggml
        context = ggml.ggml_init(InitParams(_GRAPH_BYTES, None, True))
        try:
            result, data = build(context)
            self._place(context, data)
            graph = ggml.ggml_new_graph(context)
            ggml.ggml_build_forward_expand(graph, result)
            self._compute(graph)  # a GPU may have to compile it first
            times: list[float] = []
            while sum(times) < (SECONDS_A_KERNEL if len(times) >= RUNS_A_KERNEL else MAX_SECONDS_A_KERNEL):
                start = time.perf_counter()
                self._compute(graph)
                times.append(time.perf_counter() - start)
            return sorted(times)[len(times) // 10]
        finally:
            ggml.ggml_free(context)

    def _compute(self, graph: Any) -> None:
        if self._ggml.ggml_backend_graph_compute(self._backend, graph):
            raise RuntimeError("ggml could not compute")

    def _place(self, context: Any, data: dict[Any, bytes]) -> None:
        """Lay all tensors one after the other in the device's memory."""
        ggml, at = self._ggml, self._ggml.ggml_backend_buffer_get_base(self._buffer)
        tensor = ggml.ggml_get_first_tensor(context)
        while tensor:
            size = ggml.ggml_nbytes(tensor)
            if ggml.ggml_backend_tensor_alloc(self._buffer, tensor, at):
                raise RuntimeError("ggml could not place a tensor")
            tile = data.get(tensor)
            if tile is None:
                ggml.ggml_backend_tensor_memset(tensor, 0, 0, size)
            else:
                for start in range(0, size, len(tile)):
                    ggml.ggml_backend_tensor_set(tensor, tile, start, min(len(tile), size - start))
            at += size + -size % _ALIGNMENT_BYTES
            tensor = ggml.ggml_get_next_tensor(context, tensor)


def memory_gb_s(device: Device) -> float | None:
    """Measure how fast a GPU reads its memory, in GB/s, by a product with a matrix of 16-bit floats, which need no unpacking. Takes
    a second or less, then it is kept for this build and driver. None where ggml cannot say."""
    key = f"{device.description} {fingerprint()}"
    speed: float | None = files.read_cache("gpu-speed.json").get(key)
    if speed is None:
        try:
            with KernelBench(device) as bench:
                speed = round(bench.weights_gb_s(F16), 3)
        except RuntimeError:
            return None
        files.keep("gpu-speed.json", key, speed)
    return speed
