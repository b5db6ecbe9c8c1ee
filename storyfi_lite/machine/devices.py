"""The GPUs as llama.cpp sees them: its own registry of devices. Knows no driver and no models."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import llama_cpp

_GPU, _INTEGRATED = 1, 2  # ggml_backend_dev_type of ggml-backend.h


@dataclass(frozen=True)
class Device:
    """`handle`: ggml's own pointer to it."""

    handle: int
    description: str

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total. On a CUDA device this opens a driver's context, which takes some memory there itself."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _call("dev_memory", None, ctypes.c_void_p(self.handle), ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value


def gpus() -> list[Device]:
    """In llama.cpp's order; integrated ones only where there are no others, as llama.cpp chooses too."""
    handles = [
        _call("dev_get", ctypes.c_void_p, ctypes.c_size_t(n)) for n in range(_call("dev_count", ctypes.c_size_t))
    ]
    kinds = {handle: _call("dev_type", ctypes.c_int, ctypes.c_void_p(handle)) for handle in handles}
    wanted = _GPU if _GPU in kinds.values() else _INTEGRATED
    chosen = [handle for handle, kind in kinds.items() if kind == wanted]
    texts = [_call("dev_description", ctypes.c_char_p, ctypes.c_void_p(handle)) for handle in chosen]
    return [Device(handle, text.decode(errors="replace")) for handle, text in zip(chosen, texts, strict=True)]


def of_buffer_type(buffer_type: int) -> int | None:
    """The handle of the GPU that the buffers of this type lie on; None for memory that the CPU reads, pinned memory too."""
    if _call("buft_is_host", ctypes.c_bool, ctypes.c_void_p(buffer_type)):
        return None
    handle: int | None = _call("buft_get_device", ctypes.c_void_p, ctypes.c_void_p(buffer_type))
    return handle


def _call(name: str, result: Any, *arguments: Any) -> Any:
    """Through libllama: the package holds a second libggml.so, with a registry of its own, which `_ggml` would answer from."""
    function = getattr(llama_cpp.llama_cpp._lib, f"ggml_backend_{name}")
    function.restype = result
    return function(*arguments)
