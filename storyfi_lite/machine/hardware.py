"""What this machine has: GPUs, RAM, cores, disk, and whether llama.cpp can use the GPUs. Knows no models.

The driver is asked through NVML (names, memory, who holds it), llama.cpp's ggml for what it will see itself. A machine
without a driver is an ordinary case. CUDA_VISIBLE_DEVICES is honoured as CUDA does; GPUs are numbered as nvidia-smi
numbers them (CUDA_DEVICE_ORDER=PCI_BUS_ID is set where the user set nothing).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storyfi_lite import files
from storyfi_lite.errors import BadInput
from storyfi_lite.machine import selftest
from storyfi_lite.machine.build import rebuild_command

# GB/s of the memory, by words of the name, first match wins. Source: NVIDIA's product pages and data sheets. For machines that
# are only described, and where the driver does not say.
GPU_BANDWIDTH_GB_S: tuple[tuple[str, float], ...] = (
    ("H200", 4800), ("H100 NVL", 3938), ("H100 PCIe", 2039), ("H100", 3350), ("GH200", 4000), ("B200", 8000),
    ("A100-SXM4-80GB", 2039), ("A100 80GB PCIe", 1935), ("A100", 1555), ("RTX PRO 6000", 1792), ("RTX 6000 Ada", 960),
    ("RTX 5000 Ada", 576), ("RTX 4000 Ada", 360), ("L40S", 864), ("L40", 864), ("L4", 300), ("A40", 696), ("A30", 933),
    ("A10", 600), ("A10G", 600), ("RTX A6000", 768), ("RTX A5000", 768), ("RTX A4000", 448), ("V100", 900), ("P100", 732), ("P40", 347),
    ("T4", 320), ("RTX 5090", 1792), ("RTX 5080", 960), ("RTX 5070 Ti", 896), ("RTX 5070", 672), ("RTX 5060", 448),
    ("RTX 4090", 1008), ("RTX 4080 SUPER", 736), ("RTX 4080", 717), ("RTX 4070 Ti SUPER", 672), ("RTX 4070", 504),
    ("RTX 4060", 272), ("RTX 3090 Ti", 1008), ("RTX 3090", 936), ("RTX 3080 Ti", 912), ("RTX 3080", 760),
    ("RTX 3070 Ti", 608), ("RTX 3070", 448), ("RTX 3060 Ti", 448), ("RTX 3060", 360), ("RTX 3050", 224), ("RTX 2080 Ti", 616),
    ("RTX 2080", 448), ("RTX 2070", 448), ("RTX 2060", 336), ("GTX 1080 Ti", 484), ("GTX 1080", 320), ("GTX 1070", 256),
    ("GTX 1660", 192),
)  # fmt: skip
CONTEXT_ROOM_BYTES = 1 << 30  # a CUDA context takes a few hundred MB
# PCI vendors whose cards llama.cpp runs through Vulkan
_VULKAN_VENDORS = {"0x1002": "AMD", "0x8086": "Intel"}


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use. `holders`: what other processes hold there, by pid and name."""

    name: str
    total_bytes: int
    free_bytes: int
    bandwidth_gb_s: float | None = None
    compute_capability: str = ""
    index: int = 0  # nvidia-smi's
    holders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hardware:
    """`llama_gpu_build`: whether llama.cpp was built for GPUs; None if it is not installed. `hints`: what could be better, in
    words; `fault`: what must be."""

    gpus: tuple[Gpu, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    physical_cores: int
    disk_free_bytes: int
    driver: str = ""
    llama_gpu_build: bool | None = True
    llama_devices: tuple[str, ...] = ()
    cpu_bandwidth_gb_s: float | None = None  # None: as calibrated here
    fault: str = ""
    hints: tuple[str, ...] = ()

    @property
    def usable_gpus(self) -> tuple[Gpu, ...]:
        """Those that llama.cpp as installed can use."""
        return self.gpus if self.llama_gpu_build and not self.fault else ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bandwidth_of(name: str) -> float | None:
    """GB/s, None for a GPU that the table does not know. A laptop's has a desktop card's name and half its memory's speed."""
    if re.search(r"\b(laptop|max-q|mobile)\b", name, re.IGNORECASE):
        return None
    known = ((re.search(rf"\b{re.escape(part)}\b", name, re.IGNORECASE), speed) for part, speed in GPU_BANDWIDTH_GB_S)
    return next((speed for found, speed in known if found), None)


def _bandwidth(nvml: Any, handle: Any, name: str) -> float | None:
    """From the memory's clock and bus, as CUDA's deviceQuery computes it: two transfers a clock."""
    try:
        bits = nvml.nvmlDeviceGetMemoryBusWidth(handle)
        mhz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
    except nvml.NVMLError:
        bits = mhz = 0
    return round(2 * mhz * bits / 8 / 1000, 1) or bandwidth_of(name)


def visible(setting: str | None, uuids: list[str]) -> list[int]:
    """The device numbers that CUDA_VISIBLE_DEVICES leaves, in its order. As CUDA: the list ends at the first entry that is
    no device."""
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


def read_gpus(nvml: Any, environment: Mapping[str, str] = os.environ) -> tuple[str, tuple[Gpu, ...]]:
    """The driver's version and the visible GPUs; ("", ()) without a driver. `nvml` is the pynvml module, or a test's."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return "", ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        chosen = visible(environment.get("CUDA_VISIBLE_DEVICES"), uuids)
        return _text(nvml.nvmlSystemGetDriverVersion()), tuple(_read_gpu(nvml, handles[i], i) for i in chosen)
    finally:
        nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _read_gpu(nvml: Any, handle: Any, index: int) -> Gpu:
    name = _text(nvml.nvmlDeviceGetName(handle))
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        capability = "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle))
    except nvml.NVMLError:
        capability = ""
    bandwidth = _bandwidth(nvml, handle, name)
    return Gpu(name, memory.total, memory.free, bandwidth, capability, index, _holders(nvml, handle))


def _holders(nvml: Any, handle: Any) -> tuple[str, ...]:
    """Other processes on this GPU. The driver tells no sizes inside containers, and no names of others' processes."""
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


@dataclass(frozen=True)
class LlamaBuild:
    """llama.cpp as it is installed, and the GPUs that it sees itself. `idle`: why it uses none although it is built for some."""

    for_gpus: bool
    gpus: tuple[Gpu, ...] = ()
    idle: str = ""
    fault: str = ""  # it cannot be loaded, or fails its self-test on a GPU


def read_llama(driver_says: tuple[Gpu, ...]) -> LlamaBuild | None:
    """None if it is not installed. A GPU that is full by `driver_says` is not asked: asking opens a context on it, and where
    that fails llama.cpp ends the process."""
    try:
        from storyfi_lite.machine import devices, kernels
    except ImportError:
        return None
    except RuntimeError as error:  # llama_cpp's own, for a library that another one is missing for
        return LlamaBuild(False, fault=f"{error}; build it again:\n  {rebuild_command()}")
    backends, present = devices.gpu_backends(), devices.gpus()
    if not present:
        idle = "; ".join(f"{name}: {why}" for name, why in backends.items() if why)
        return LlamaBuild(bool(backends), idle=idle)
    full = [told.free_bytes < CONTEXT_ROOM_BYTES for told in driver_says]
    fault = "" if any(full) else selftest.fault("gpu")
    found: list[Gpu] = []
    for number, device in enumerate(present):
        told = driver_says[number] if number < len(driver_says) else None
        if told and told.free_bytes < CONTEXT_ROOM_BYTES:
            free_bytes, total_bytes = told.free_bytes, told.total_bytes
        else:
            free_bytes, total_bytes = device.memory_bytes()
        name, speed = device.description, bandwidth_of(device.description)
        if not (speed or told or fault):
            speed = kernels.memory_gb_s(device)
        found.append(Gpu(name, total_bytes, free_bytes, speed, index=number))
    return LlamaBuild(True, tuple(found), fault=fault)


def probe(models_root: Path | None = None, nvml: Any = None) -> Hardware:
    """This machine, now. `models_root`: where models live; by default the store's."""
    import psutil

    from storyfi_lite.models.store import Store

    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if nvml is None:
        import pynvml

        nvml = pynvml
    driver, gpus = read_gpus(nvml)
    llama = read_llama(gpus)
    seen = llama.gpus if llama else ()
    gpus = gpus or seen  # another maker's GPU: no NVML, but llama.cpp knows it
    memory = psutil.virtual_memory()
    return Hardware(
        gpus=gpus,
        ram_total_bytes=memory.total,
        ram_available_bytes=memory.available,
        physical_cores=psutil.cpu_count(logical=False) or 1,
        disk_free_bytes=shutil.disk_usage(files.nearest(models_root or Store().root)).free,
        driver=driver,
        llama_gpu_build=None if llama is None else llama.for_gpus,
        llama_devices=tuple(f"{gpu.name}, {gpu.free_bytes / 2**30:.1f} GiB free" for gpu in seen),
        fault=_fault(gpus, llama),
        hints=_hints(gpus, llama),
    )


def _fault(gpus: tuple[Gpu, ...], llama: LlamaBuild | None) -> str:
    """What keeps llama.cpp from these GPUs, with the command that mends it; empty if nothing does."""
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
    """Why a build for GPUs leaves the work to the CPU, and what could be built for other makers' cards."""
    if gpus or llama is None:
        return ()
    if llama.for_gpus:
        return (f"llama.cpp's GPU part is not in use, the CPU computes: {llama.idle}",)
    found = {path.read_text().strip() for path in Path("/sys/class/drm").glob("card*/device/vendor")}
    command = rebuild_command("-DGGML_VULKAN=on")
    return tuple(
        f"an {maker} GPU is here; with Vulkan's driver and headers, build for it: {command}"
        for vendor, maker in _VULKAN_VENDORS.items()
        if vendor in found
    )


# --- a machine that is described, not probed -------------------------------------------------------------------

_GPU_KEYS = {"name", "total_gb", "free_gb", "bandwidth_gb_s"}
_KEYS = {"gpus", "ram_gb", "cores", "cpu_bandwidth_gb_s", "disk_gb"}


def from_json(path: Path) -> Hardware:
    """A machine from a file such as {"gpus": [{"name": "RTX 3090", "total_gb": 24}], "ram_gb": 64, "cores": 8}; GB as vendors
    say it (a "24 GB" card has 24 GiB). Raises BadInput with the key that is wrong."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    machine = _checked(data, _KEYS, path, "the machine")
    gpus = machine.get("gpus", [])
    if not isinstance(gpus, list) or len(gpus) > 64:
        raise BadInput(f"{path}: gpus must be a list of at most 64")
    return Hardware(
        gpus=tuple(_described_gpu(gpu, i, path) for i, gpu in enumerate(gpus)),
        ram_total_bytes=_gib(machine, "ram_gb", path),
        ram_available_bytes=_gib(machine, "ram_gb", path),
        physical_cores=int(_positive(machine, "cores", path, 8)),
        disk_free_bytes=_gib(machine, "disk_gb", path, 1000),
        cpu_bandwidth_gb_s=_positive(
            machine, "cpu_bandwidth_gb_s", path, 40.0
        ),  # two channels of DDR4-3200, as measured by users
    )


def _checked(data: Any, keys: set[str], path: Path, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise BadInput(f"{path}: {what} must be a JSON object")
    if unknown := sorted(set(data) - keys):
        raise BadInput(f"{path}: {what} has no key {unknown[0]!r}; there are {', '.join(sorted(keys))}")
    return data


def _positive(data: dict[str, Any], key: str, path: Path, default: float | None = None) -> float:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise BadInput(f"{path}: {key} must be a number above 0, not {value!r}")
    return float(value)


def _gib(data: dict[str, Any], key: str, path: Path, default: float | None = None) -> int:
    return int(_positive(data, key, path, default) * 2**30)


def _described_gpu(data: Any, index: int, path: Path) -> Gpu:
    gpu = _checked(data, _GPU_KEYS, path, f"gpus[{index}]")
    name = gpu.get("name", "GPU")
    if not isinstance(name, str):
        raise BadInput(f"{path}: gpus[{index}].name must be text")
    total = _gib(gpu, "total_gb", path)
    free = _gib(gpu, "free_gb", path, gpu["total_gb"])
    if free > total:
        raise BadInput(f"{path}: gpus[{index}] has more memory free than in all")
    known = bandwidth_of(name)
    speed = _positive(gpu, "bandwidth_gb_s", path, known) if "bandwidth_gb_s" in gpu or known else None
    return Gpu(name, total, free, speed, index=index)
