"""Asks llama.cpp itself what a layout takes: it reserves every buffer and allocates none. No weight is read; a file that has
only its header's bytes (and the right size) will do.

Not for planning, which compares hundreds of layouts and has no file yet: that is placement/memory.py.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import llama_cpp

from storyfi_lite.engine.model import Context, Model
from storyfi_lite.engine.settings import Demand, EngineSettings
from storyfi_lite.errors import BadInput, LiteError
from storyfi_lite.machine import devices

log = logging.getLogger(__name__)

# std::map<ggml_backend_buffer_type_t, llama_memory_breakdown_data> llama_get_memory_breakdown(const llama_context *) of
# llama.cpp's src/llama-ext.h: the only place that tells the buffers apart by device. The layout is libstdc++'s.
_BREAKDOWN = "_Z26llama_get_memory_breakdownPK13llama_context"
_PAGE_BYTES = 4096  # no pointer is below


class _Map(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("compare", "color", "root", "first", "last")),
        ("size", ctypes.c_size_t),
    )


class _Node(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("color", "parent", "left", "right", "buffer_type")),
        *((name, ctypes.c_size_t) for name in ("model_bytes", "context_bytes", "compute_bytes")),
    )


def measure(path: Path, settings: EngineSettings) -> tuple[Demand, ...] | None:
    """Return the bytes on each GPU that llama.cpp sees, in its order, and last on the host. None if this llama.cpp does not tell.

    Raises what loading raises: BadInput for a file that is no whole GGUF, DoesNotFit where llama.cpp cannot make a context.
    """
    breakdown = getattr(llama_cpp.llama_cpp._lib, _BREAKDOWN, None)
    if breakdown is None:
        log.info("this build of llama.cpp does not tell what a layout takes; the prediction has to do")
        return None
    breakdown.restype, breakdown.argtypes = _Map, [ctypes.c_void_p]
    gpus = [device.handle for device in devices.gpus()]
    with _quiet(), closing(Model(path, settings, dry_run=True)) as model:
        found = [Demand() for _ in gpus] + [Demand(output_bytes=4 * model.n_vocabulary * settings.logit_rows)]
        others = [(1, settings.n_contexts - 1)] if settings.n_contexts > 1 else []  # in step, and without logits
        for n_outputs, count in [(0, 1), *others]:
            with closing(Context(model, settings, n_outputs=n_outputs)) as context:
                buffers = breakdown(context.handle)
                if (buffers.root or 0) < _PAGE_BYTES:  # another C++ library's map, with its size here
                    return None
                for node in _nodes(buffers.root):
                    device = devices.of_buffer_type(node.buffer_type)
                    held = 0 if n_outputs or (settings.mapped and device not in gpus) else node.model_bytes
                    need = Demand(held, node.context_bytes * count, node.compute_bytes * count)
                    found[gpus.index(device) if device in gpus else -1] += need
    return tuple(found)


def refuse_if_it_crashes(path: Path) -> None:
    """Have a child process open the file first: on some that are damaged llama.cpp ends the whole process. Raises BadInput."""
    command = [sys.executable, "-m", "storyfi_lite.engine.dry_run", os.fspath(path)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    child = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=environment)
    if child.returncode < 0:
        lines = child.stderr.decode(errors="replace").splitlines()
        why = next(
            (line.rpartition("/")[2] for line in lines if "GGML_A" in line), signal.Signals(-child.returncode).name
        )
        raise BadInput(
            f"{path.name} makes llama.cpp crash ({why}); it is damaged: fetch it again, or take another file"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps llama.cpp's lines out of the log: the load in earnest says them again."""
    llama_log = logging.getLogger("storyfi_lite.llama")
    llama_log.disabled = True
    try:
        yield
    finally:
        llama_log.disabled = False


def _nodes(address: int | None) -> Iterator[Any]:
    if address:
        node = _Node.from_address(address)
        yield from _nodes(node.left)
        yield node
        yield from _nodes(node.right)


if __name__ == "__main__":
    with suppress(LiteError):  # the load in earnest says it
        Model(Path(sys.argv[1]), EngineSettings(), dry_run=True).close()
