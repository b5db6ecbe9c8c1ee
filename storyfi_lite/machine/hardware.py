"""Finds what this machine has: GPUs, RAM, cores, disk, and whether llama.cpp can use the GPUs. Knows no models.

NVIDIA's driver is asked through NVML (names, memory, who holds it), llama.cpp's ggml for what it will see itself. GPUs are
numbered as nvidia-smi numbers them (CUDA_DEVICE_ORDER=PCI_BUS_ID is set where the user set nothing). Of RAM and cores counts
what this process may use: see limits.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storyfi_lite.errors import BadInput
from storyfi_lite.machine import limits, selftest
from storyfi_lite.machine.build import rebuild_command
from storyfi_lite.machine.cards import bandwidth_of, shares_ram
from storyfi_lite.machine.gpus import UNIFIED, Gpu, read_driver

UNIFIED_HOST_BYTES = 4 << 30  # where a GPU shares the RAM: the CPU's part; the rest is planned for the GPU
CONTEXT_ROOM_BYTES = 1 << 30  # a CUDA context takes a few hundred MB
# PCI vendors whose cards llama.cpp runs through Vulkan
_VULKAN_VENDORS = {"0x1002": "AMD", "0x8086": "Intel"}


@dataclass(frozen=True)
class Hardware:
    """Describes a machine. `llama_gpu_build`: whether llama.cpp was built for GPUs; None if it is not installed. `hints`: what could
    be better, in words; `fault`: what must be."""

    gpus: tuple[Gpu, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    physical_cores: int
    disk_free_bytes: int
    driver: str = ""
    llama_gpu_build: bool | None = True
    llama_devices: tuple[str, ...] = ()
    cpu_bandwidth_gb_s: float | None = None  # None: measured here (placement/calibrate.py)
    fault: str = ""
    broken: tuple[str, ...] = ()  # parts of the self-test that failed on a GPU: files that need them run on the CPU
    hints: tuple[str, ...] = ()

    @property
    def usable_gpus(self) -> tuple[Gpu, ...]:
        """Return the GPUs that llama.cpp as installed can use."""
        return self.gpus if self.llama_gpu_build and not self.fault else ()


@dataclass(frozen=True)
class LlamaBuild:
    """Describes llama.cpp as installed, with the GPUs that it sees. `idle`: why it uses none although it is built for some."""

    for_gpus: bool
    gpus: tuple[Gpu, ...] = ()
    idle: str = ""
    fault: str = ""  # it cannot be loaded, or fails its self-test on a GPU


def read_llama(driver_says: tuple[Gpu, ...]) -> LlamaBuild | None:
    """Ask llama.cpp for its GPUs. Returns None if it is not installed. A GPU that is full by `driver_says` is not asked: asking opens
    a context on it, and where that fails llama.cpp ends the process."""
    try:
        from storyfi_lite.machine import devices, kernels
    except ImportError:
        return None
    except RuntimeError as error:  # from llama_cpp, when one of its libraries cannot be loaded
        return LlamaBuild(False, fault=f"{error}; build it again:\n  {rebuild_command()}")
    backends, present = devices.gpu_backends(), devices.gpus()
    if not present:
        idle = "; ".join(f"{name}: {why}" for name, why in backends.items() if why)
        return LlamaBuild(bool(backends), idle=idle)
    full = [told.free_bytes < CONTEXT_ROOM_BYTES and not told.memory_unknown for told in driver_says]
    fault = "" if any(full) else selftest.fault("gpu")
    found: list[Gpu] = []
    for number, device in enumerate(present):
        told = driver_says[number] if number < len(driver_says) else None
        if told and full[number]:
            free_bytes, total_bytes = told.free_bytes, told.total_bytes
        else:
            free_bytes, total_bytes = device.memory_bytes()
        name, speed = device.description, bandwidth_of(device.description, total_bytes)
        if not (speed or told or fault):
            speed = kernels.memory_gb_s(device)
        found.append(Gpu(name, total_bytes, free_bytes, speed, index=number))
    return LlamaBuild(True, tuple(found), fault=fault)


def probe(models_root: Path | None = None, nvml: Any = None) -> Hardware:
    """Describe this machine, now. `models_root`: where models live; by default the store's."""
    from storyfi_lite.models.store import Store

    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if nvml is None:
        import pynvml

        nvml = pynvml
    driver = read_driver(nvml)
    llama = read_llama(driver.gpus)
    seen = llama.gpus if llama else ()
    total_bytes, available_bytes = limits.memory_bytes()
    gpus = _with_memory(driver.gpus, seen, total_bytes, available_bytes)
    if seen:
        gpus, available_bytes = _shared_once(gpus, available_bytes)
    broken = (
        {part: why for part, why in selftest.noted("gpu").items() if why} if seen and llama and not llama.fault else {}
    )
    return Hardware(
        gpus=gpus,
        ram_total_bytes=total_bytes,
        ram_available_bytes=available_bytes,
        physical_cores=limits.cores(),
        disk_free_bytes=Store(models_root).free_bytes,
        driver=driver.version,
        llama_gpu_build=None if llama is None else llama.for_gpus,
        llama_devices=tuple(f"{gpu.name}, {gpu.free_bytes / 2**30:.1f} GiB free" for gpu in seen),
        fault=driver.fault or _fault(gpus, llama),
        broken=tuple(broken),
        hints=(*driver.hints, *_hints(gpus, llama), *map(broken_hint, broken, broken.values())),
    )


def _with_memory(told: tuple[Gpu, ...], seen: tuple[Gpu, ...], ram_bytes: int, available_bytes: int) -> tuple[Gpu, ...]:
    """Return the driver's GPUs. Memory that it does not tell is what llama.cpp sees, or the RAM that they share. Where llama.cpp sees
    another number of GPUs (another maker's, one that fell off the bus), its own are those that count."""
    if seen and len(seen) != len(told):
        return seen

    def completed(at: int, gpu: Gpu) -> Gpu:
        shared = gpu.memory_unknown == UNIFIED
        total, free = (ram_bytes, available_bytes) if shared else (0, 0)
        if seen:
            total, free = seen[at].total_bytes, seen[at].free_bytes
        return replace(gpu, total_bytes=total, free_bytes=max(0, free - UNIFIED_HOST_BYTES) if shared else free)

    return tuple(completed(at, gpu) if gpu.memory_unknown else gpu for at, gpu in enumerate(told))


def _shared_once(gpus: tuple[Gpu, ...], ram_bytes: int) -> tuple[tuple[Gpu, ...], int]:
    """Return the GPUs, and the bytes of RAM to plan with: where a GPU shares the RAM, what it may use is not planned for twice."""
    shared = [gpu for gpu in gpus if gpu.memory_unknown == UNIFIED or shares_ram(gpu.name)]
    if not shared:
        return gpus, ram_bytes
    host_bytes = min(ram_bytes, UNIFIED_HOST_BYTES)
    most = ram_bytes - host_bytes
    gpus = tuple(replace(gpu, free_bytes=min(gpu.free_bytes, most)) if gpu in shared else gpu for gpu in gpus)
    return gpus, host_bytes


def broken_hint(part: str, why: str) -> str:
    words = selftest.in_words(part, why)
    return f"{words}: such files run on the CPU; with a newer driver ask again: storyfi-lite doctor"


def _fault(gpus: tuple[Gpu, ...], llama: LlamaBuild | None) -> str:
    """Return what keeps llama.cpp from these GPUs, with the command that mends it; "" if nothing does."""
    if llama and llama.fault:
        return llama.fault
    if not gpus or (llama and llama.gpus):
        return ""
    if llama is None:
        return f"llama.cpp is not installed; build it for {gpus[0].name}:\n  {rebuild_command()}"
    if llama.for_gpus:
        why = llama.idle or "driver and CUDA version may not match"
        return f"llama.cpp cannot use {gpus[0].name} ({why}):\n  nvidia-smi"
    return f"llama.cpp was built for the CPU only, {gpus[0].name} lies idle; build it again:\n  {rebuild_command()}"


def _hints(gpus: tuple[Gpu, ...], llama: LlamaBuild | None) -> tuple[str, ...]:
    """Return what is not known of the GPUs, why a build for them leaves the work to the CPU, or what to build for another maker's."""
    if gpus or llama is None:
        secret = [gpu for gpu in gpus if gpu.memory_unknown]
        return tuple(f"the driver does not tell the memory of GPU {gpu.index}: {gpu.memory_unknown}" for gpu in secret)
    if llama.for_gpus:
        return (f"llama.cpp's GPU part is not in use, the CPU computes: {llama.idle}",)
    found = {path.read_text().strip() for path in Path("/sys/class/drm").glob("card*/device/vendor")}
    makers = [maker for vendor, maker in _VULKAN_VENDORS.items() if vendor in found]
    command = f"with Vulkan's driver and headers, build for it: {rebuild_command('-DGGML_VULKAN=on')}"
    return tuple(f"an {maker} GPU is here; {command}" for maker in makers)


# --- a machine that is described, not probed -------------------------------------------------------------------

_Positive = Annotated[float, Field(gt=0, lt=1e6)]


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _DescribedGpu(_Described):
    total_gb: _Positive
    free_gb: _Positive | None = None
    name: str = "GPU"
    bandwidth_gb_s: _Positive | None = None


class _DescribedMachine(_Described):
    ram_gb: _Positive
    gpus: list[_DescribedGpu] = Field([], max_length=64)
    cores: _Positive = 8
    cpu_bandwidth_gb_s: _Positive = 40.0  # two channels of DDR4-3200, as measured by users
    disk_gb: _Positive = 1000


def from_json(path: Path) -> Hardware:
    """Read a machine from a file such as {"gpus": [{"name": "RTX 3090", "total_gb": 24}], "ram_gb": 64, "cores": 8}; GB as vendors
    say it (a "24 GB" card has 24 GiB). A Mac's total_gb is its ram_gb. Raises BadInput with the key that is wrong."""
    try:
        machine = _DescribedMachine.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the machine"
        wrong = "there is no such key" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadInput(f"{path}: {key}: {wrong}") from None
    gpus = []
    for index, gpu in enumerate(machine.gpus):
        free_gb = gpu.total_gb if gpu.free_gb is None else gpu.free_gb
        if free_gb > gpu.total_gb:
            raise BadInput(f"{path}: gpus.{index} has more memory free than in all")
        total_bytes = int(gpu.total_gb * 2**30)
        speed = gpu.bandwidth_gb_s or bandwidth_of(gpu.name, total_bytes)
        gpus.append(Gpu(gpu.name, total_bytes, int(free_gb * 2**30), speed, index=index))
    ram_bytes = int(machine.ram_gb * 2**30)
    described, available_bytes = _shared_once(tuple(gpus), ram_bytes)
    return Hardware(
        gpus=described,
        ram_total_bytes=ram_bytes,
        ram_available_bytes=available_bytes,
        physical_cores=int(machine.cores),
        disk_free_bytes=int(machine.disk_gb * 2**30),
        cpu_bandwidth_gb_s=machine.cpu_bandwidth_gb_s,
    )
