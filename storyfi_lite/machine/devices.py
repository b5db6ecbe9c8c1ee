"""Loads llama.cpp's back ends and lists the GPUs that they see. Knows no driver and no models."""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp

log = logging.getLogger("storyfi_lite.llama")

complaints: deque[str] = deque(maxlen=8)  # llama.cpp's last errors: its functions return no reasons
# of ggml_log_level; llama.cpp's warnings are about a file, to its makers
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}
_ERROR = 4
_TENSOR_BYTES = 1 << 12  # a tensor's description, without data
_CPU, _GPU, _INTEGRATED = 0, 1, 2  # ggml_backend_dev_type of ggml-backend.h
_HANDLE, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p


class InitParams(ctypes.Structure):
    """Mirrors ggml_init_params of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_reg_count": (_SIZE, []),
    "ggml_backend_reg_get": (_HANDLE, [_SIZE]),
    "ggml_backend_reg_name": (_TEXT, [_HANDLE]),
    "ggml_backend_reg_dev_count": (_SIZE, [_HANDLE]),
    "ggml_backend_load_all_from_path": (None, [_TEXT]),
    "ggml_backend_dev_count": (_SIZE, []),
    "ggml_backend_dev_get": (_HANDLE, [_SIZE]),
    "ggml_backend_dev_by_type": (_HANDLE, [ctypes.c_int]),
    "ggml_backend_dev_type": (ctypes.c_int, [_HANDLE]),
    "ggml_backend_dev_description": (_TEXT, [_HANDLE]),
    "ggml_backend_dev_memory": (None, [_HANDLE, ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)]),
    "ggml_backend_dev_buffer_type": (_HANDLE, [_HANDLE]),
    "ggml_backend_buft_is_host": (ctypes.c_bool, [_HANDLE]),
    "ggml_backend_buft_get_device": (_HANDLE, [_HANDLE]),
    "ggml_get_name": (_TEXT, [_HANDLE]),
    "ggml_init": (_HANDLE, [InitParams]),
    "ggml_free": (None, [_HANDLE]),
    "ggml_new_tensor_3d": (_HANDLE, [_HANDLE, ctypes.c_int, *[ctypes.c_int64] * 3]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [_HANDLE, _HANDLE]),
}
LIBRARIES: Path = llama_cpp.llama_cpp._base_path  # the package's, or what LLAMA_CPP_LIB_PATH names


@llama_cpp.llama_log_callback
def _forward(level: int, text: bytes, _: object) -> None:
    line = text.decode(errors="replace").rstrip()
    if level == _ERROR:
        complaints.append(line)
    log.log(_LEVELS.get(level, logging.DEBUG), "%s", line)


@cache
def ggml() -> Any:
    """Start llama.cpp, once a process, with its log in Python's. Returns ggml's library, with typed functions for devices.

    Back ends that are modules (GGML_BACKEND_DL) are loaded from beside libllama; left alone, llama.cpp would look for them beside the
    interpreter and in the working folder. The library is reached through libllama, because `llama_cpp._ggml` is a second copy with
    a list of devices of its own."""
    library = llama_cpp.llama_cpp._lib
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    llama_cpp.llama_log_set(_forward, ctypes.c_void_p(0))
    if not library.ggml_backend_reg_count():
        library.ggml_backend_load_all_from_path(str(LIBRARIES).encode())
    llama_cpp.llama_backend_init()
    return library


@dataclass(frozen=True)
class Device:
    """Names a CPU or GPU. `handle`: ggml's pointer to it."""

    handle: int
    description: str

    def memory_bytes(self) -> tuple[int, int]:
        """Return free and total memory. On a CUDA device this opens a driver's context, which itself takes some memory there."""
        free, total = _SIZE(), _SIZE()
        ggml().ggml_backend_dev_memory(self.handle, ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def can_compute(self, kind: int, columns: int, rows: int) -> bool:
        """Return whether a tensor of this ggml_type and size is within the device's limits; Vulkan's have one for each buffer."""
        library = ggml()
        context = library.ggml_init(InitParams(_TENSOR_BYTES, None, True))
        try:
            tensor = library.ggml_new_tensor_3d(context, kind, columns, rows, 1)
            return bool(library.ggml_backend_dev_supports_op(self.handle, tensor))
        finally:
            library.ggml_free(context)

    def buffer_type(self) -> int:
        """Return ggml's pointer to the device's own kind of memory."""
        handle: int = ggml().ggml_backend_dev_buffer_type(self.handle)
        return handle


def gpus() -> list[Device]:
    """Return the GPUs in llama.cpp's order; integrated ones only where there are no others, as llama.cpp chooses too."""
    library = ggml()
    handles = [library.ggml_backend_dev_get(number) for number in range(library.ggml_backend_dev_count())]
    kinds = [library.ggml_backend_dev_type(handle) for handle in handles]
    wanted = _GPU if _GPU in kinds else _INTEGRATED
    return [_device(handle) for handle, kind in zip(handles, kinds, strict=True) if kind == wanted]


def of_buffer_type(buffer_type: int) -> int | None:
    """Return the handle of the GPU that holds buffers of this type; None for memory that the CPU reads, pinned memory too."""
    library = ggml()
    if library.ggml_backend_buft_is_host(buffer_type):
        return None
    handle: int | None = library.ggml_backend_buft_get_device(buffer_type)
    return handle


def cpu() -> Device:
    return _device(ggml().ggml_backend_dev_by_type(_CPU))


def _device(handle: int) -> Device:
    return Device(handle, ggml().ggml_backend_dev_description(handle).decode(errors="replace"))


def gpu_backends() -> dict[str, str]:
    """Return the back ends for GPUs that this build has, by name, each with why it is not in use; "" if it is."""
    library, found = ggml(), {}
    for path in sorted(LIBRARIES.glob("libggml-*.so")):  # modules; one without its driver cannot be loaded
        name = path.stem.removeprefix("libggml-")
        if name.split("-")[0] not in ("base", "cpu"):
            try:
                ctypes.CDLL(str(path))
            except OSError as error:
                found[name.upper()] = str(error)
    for number in range(library.ggml_backend_reg_count()):
        registry = library.ggml_backend_reg_get(number)
        name = library.ggml_backend_reg_name(registry).decode()
        if name != "CPU":
            found[name] = "" if library.ggml_backend_reg_dev_count(registry) else "it finds no device"
    return found
