"""Reads the next layer's weights from the disk while llama.cpp computes with this one's, for a model whose weights stay in its file.

Left alone, computing and reading take turns: llama.cpp touches a page, waits for the disk, and computes again. It is a hint to the
system's cache only; what it gets wrong costs time, and changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llama_cpp

from storyfi_lite.machine import devices
from storyfi_lite.models.gguf import Tensor, read_local, split_parts

LAYERS_AHEAD = 2
CHUNK_BYTES = 4 << 20
_LAYER = re.compile(r"blk\.(\d+)\.")
_LAYERS_OUTPUT = re.compile(rb"l_out-(\d+)")  # llama.cpp's name for what a layer hands to the next


class ReadAhead:
    """Asks for the next layer's weights while one is computed. `callback` is for llama.cpp's context, which calls it as it
    computes; `start` comes before each batch. Only for a file of one part, on a system that takes such hints; elsewhere nothing
    is read ahead. `after_layer` is called once a layer is computed. Close it after the context."""

    def __init__(self, path: Path, n_layers_on_host: int, after_layer: Callable[[], None]) -> None:
        self._after_layer = after_layer
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._computed)
        self._name = devices.ggml().ggml_get_name
        self._ranges: list[tuple[int, int]] = []
        if hasattr(os, "posix_fadvise") and split_parts(path) == [path]:
            tensors = read_local(path).tensors
            start = path.stat().st_size - max(one.offset + one.size_bytes for one in tensors)  # of the data section
            layers = _by_layer(tensors)
            kept = [layers[number] for number in sorted(layers)[:n_layers_on_host]]
            self._ranges = [(start + first, start + last) for first, last in kept]
        self._file = path.open("rb")
        self._thread = ThreadPoolExecutor(1, "read-ahead")

    def start(self) -> None:
        for layer in range(LAYERS_AHEAD):
            self._read(layer)

    def _computed(self, tensor: Any, is_asked: bool, _: Any) -> bool:
        """Answer llama.cpp, which asks of each result whether we want to know when it is there, and tells us."""
        layer = _LAYERS_OUTPUT.fullmatch(self._name(tensor))
        if layer and not is_asked:
            self._read(int(layer[1]) + LAYERS_AHEAD)
            self._after_layer()
        return bool(layer) or not is_asked

    def _read(self, layer: int) -> None:
        if layer < len(self._ranges):
            self._thread.submit(self._hint, *self._ranges[layer])

    def _hint(self, start: int, end: int) -> None:
        for at in range(start, end, CHUNK_BYTES):
            os.posix_fadvise(self._file.fileno(), at, min(CHUNK_BYTES, end - at), os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.close()


def _by_layer(tensors: tuple[Tensor, ...]) -> dict[int, tuple[int, int]]:
    """Find where each layer's weights begin and end in the data section."""
    found: dict[int, tuple[int, int]] = {}
    for one in tensors:
        if match := _LAYER.match(one.name):
            first, last = found.get(int(match[1]), (one.offset, 0))
            found[int(match[1])] = min(first, one.offset), max(last, one.offset + one.size_bytes)
    return found
