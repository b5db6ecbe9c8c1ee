"""Tells one llama.cpp build from another, and names the command that makes a new one. It does not load llama.cpp."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from hashlib import sha256
from pathlib import Path

VULKAN_DRIVERS = (Path("/usr/share/vulkan/icd.d"), Path("/etc/vulkan/icd.d"))  # a file for each, new with each version


def rebuild_command(cmake_args: str = "") -> str:
    """Return the command that builds llama.cpp for this interpreter, to be typed in the source folder."""
    before = f'CMAKE_ARGS="{cmake_args}" ' if cmake_args else ""
    if Path(sys.prefix).name == ".venv":
        return f"{before}scripts/setup"
    return f"{before}PYTHON={sys.executable} scripts/install_release"


def fingerprint() -> str:
    """Hash what may change how llama.cpp computes: its libraries, the CPU, the GPUs, their drivers, what ggml is told of them. Returns
    hex; "" without llama.cpp. A file counts by its size and time of change, because a CUDA library takes a second to read."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return ""
    libraries = Path(os.environ.get("LLAMA_CPP_LIB_PATH", Path(found.origin).parent / "lib"))
    paths = sorted(path for folder in (libraries, *VULKAN_DRIVERS) for path in folder.glob("*") if path.is_file())
    parts = [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths]
    lines = _text(Path("/proc/cpuinfo")).partition("\n\n")[0].splitlines()
    wanted = ("model name", "flags", "Features", "CPU part")
    cpu = [platform.machine(), platform.processor(), *(line for line in lines if line.startswith(wanted))]
    devices = (path for folder in ("/proc/driver/nvidia/gpus", "/dev/dri") for path in sorted(Path(folder).glob("*")))
    visible = (
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.endswith("_VISIBLE_DEVICES") or name.startswith(("GGML_", "VK_"))  # VK_: which of Vulkan's drivers
    )
    gpus = [_text(Path("/proc/driver/nvidia/version")), *map(str, devices), *visible]
    return sha256("\n".join([*parts, *cpu, *gpus]).encode()).hexdigest()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
