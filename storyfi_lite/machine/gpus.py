"""Asks NVIDIA's driver, through NVML, for the GPUs: names, memory, who holds it, and what keeps one from use.

It knows nothing of llama.cpp. CUDA_VISIBLE_DEVICES counts as it does for CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyfi_lite.machine.cards import bandwidth_of

UNIFIED = "GPU and CPU share the RAM"
# nvmlReturn_t of nvml.h
_NOT_SUPPORTED, _NOT_LOADED, _NO_LIBRARY, _MISMATCH = 3, 9, 12, 18


@dataclass(frozen=True)
class Gpu:
    """Describes a GPU that this process may use. `holders`: what other processes hold there, by pid and name. `memory_unknown`:
    why the driver does not tell its memory: UNIFIED, or an error of NVML's."""

    name: str
    total_bytes: int
    free_bytes: int
    bandwidth_gb_s: float | None = None
    compute_capability: str = ""
    index: int = 0  # as nvidia-smi numbers it
    holders: tuple[str, ...] = ()
    memory_unknown: str = ""


def in_words(gb_s: float) -> str:
    """Return a speed of reading as people read it; a GPU in software has less than one."""
    return f"{gb_s:.0f} GB/s" if gb_s >= 10 else f"{gb_s:.2g} GB/s"


@dataclass(frozen=True)
class Driver:
    """Holds what NVIDIA's driver says. `hints`: GPUs that it left out, and why; `fault`: why it says nothing at all."""

    version: str = ""
    gpus: tuple[Gpu, ...] = ()
    hints: tuple[str, ...] = ()
    fault: str = ""


def visible_devices(setting: str | None, uuids: list[str]) -> list[int]:
    """Return the device numbers that CUDA_VISIBLE_DEVICES leaves, in its order. As for CUDA, the list ends at the first entry that
    is no device."""
    if setting is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal():
            found = [int(entry)] if int(entry) < len(uuids) else []
        else:
            found = [i for i, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen += found
    return chosen


def read_driver(nvml: Any, environment: Mapping[str, str] = os.environ) -> Driver:
    """Ask the driver. `nvml` is the pynvml module, or a test's. Without a driver all fields are empty."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value in (_NO_LIBRARY, _NOT_LOADED):
            return Driver()
        fault = f"NVIDIA's driver does not answer ({error}), so no GPU can be used:\n  nvidia-smi"
        if error.value == _MISMATCH:
            said = "NVIDIA's driver and its library differ, as after an update, so no GPU can be used"
            fault = f"{said}; reboot:\n  sudo reboot"
        return Driver(fault=fault)
    try:
        lost, there = [], []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                there.append((index, handle, _text(nvml.nvmlDeviceGetUUID(handle))))
            except nvml.NVMLError as error:
                lost.append(f"GPU {index} is left out: {error}; see `nvidia-smi`")
        chosen = visible_devices(environment.get("CUDA_VISIBLE_DEVICES"), [uuid for _, _, uuid in there])
        gpus = tuple(_read_gpu(nvml, there[at][1], there[at][0]) for at in chosen)
        return Driver(_text(nvml.nvmlSystemGetDriverVersion()), gpus, tuple(lost))
    except nvml.NVMLError as error:
        return Driver(fault=f"the GPU driver fails ({error}):\n  nvidia-smi")
    finally:
        nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _read_gpu(nvml: Any, handle: Any, index: int) -> Gpu:
    name = _text(nvml.nvmlDeviceGetName(handle))
    total_bytes, free_bytes, secret = 0, 0, ""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total_bytes, free_bytes = memory.total, memory.free
    except nvml.NVMLError as error:
        secret = UNIFIED if error.value == _NOT_SUPPORTED else str(error)
    try:
        capability = "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle))
    except nvml.NVMLError:
        capability = ""
    try:  # from the memory's clock and bus, as CUDA's deviceQuery computes it: two transfers a clock
        bits = nvml.nvmlDeviceGetMemoryBusWidth(handle)
        mhz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
    except nvml.NVMLError:
        bits = mhz = 0
    bandwidth = round(2 * mhz * bits / 8 / 1000, 1) or bandwidth_of(name, total_bytes)
    return Gpu(name, total_bytes, free_bytes, bandwidth, capability, index, _holders(nvml, handle), secret)


def _holders(nvml: Any, handle: Any) -> tuple[str, ...]:
    """Return the other processes on this GPU. The driver tells no sizes inside containers, and no names of others' processes."""
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return ()
    found: list[str] = []
    for process in processes:
        if process.pid == os.getpid():
            continue
        try:
            name = Path(_text(nvml.nvmlSystemGetProcessName(process.pid))).name
        except nvml.NVMLError:
            name = "a process"
        size = f", {process.usedGpuMemory / 2**30:.1f} GiB" if process.usedGpuMemory else ""
        found.append(f"{name} (pid {process.pid}{size})")
    return tuple(found)
