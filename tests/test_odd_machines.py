"""Drivers that fail in part and machines that lend a part of themselves: what can be used is used, and the rest is named.

The driver is NVIDIA's own Python binding over a library made of nvml_fake.c; control groups are files."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pynvml
import pytest

from storyfi_lite.errors import ConfigError
from storyfi_lite.machine import devices, hardware, limits
from storyfi_lite.machine.hardware import Hardware, LlamaBuild, probe
from storyfi_lite.opening.loader import api_without_gpu
from storyfi_lite.options import ModelOptions

GIB = 2**30


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml_fake.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    return ctypes.CDLL(str(library))


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def machine_with(fault: str, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    monkeypatch.setenv("FAKE_NVML", fault)
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return probe()


def with_llama_gpus(monkeypatch: pytest.MonkeyPatch, *cards: tuple[str, int, int]) -> None:
    """As if llama.cpp were built for GPUs and saw these: name, free and total GiB."""

    class Card(devices.Device):
        def memory_bytes(self) -> tuple[int, int]:
            _, free, total = cards[self.handle]
            return free * GIB, total * GIB

    monkeypatch.setattr(devices, "gpus", lambda: [Card(number, name) for number, (name, _, _) in enumerate(cards)])
    monkeypatch.setattr(hardware.selftest, "fault", lambda where: "")


def test_a_driver_and_a_library_that_differ_are_named_and_never_cost_half_the_reward_in_silence(
    fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_with("mismatch", fake_driver, monkeypatch)
    assert "driver and its library differ" in machine.fault and "reboot" in machine.fault
    with pytest.raises(ConfigError, match="reboot"):
        api_without_gpu(machine, ModelOptions())


@pytest.mark.parametrize("fault", ["nodriver", "nokernel"])
def test_no_driver_is_ordinary_and_a_driver_that_fails_is_not(
    fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    machine = machine_with(fault, fake_driver, monkeypatch)
    assert machine.gpus == ()
    assert bool(machine.fault) == (fault == "nokernel")


def test_a_card_that_fell_off_the_bus_leaves_the_other(
    fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_llama_gpus(monkeypatch, ("NVIDIA GeForce RTX 3060", 11, 12))
    machine = machine_with("lost", fake_driver, monkeypatch)
    assert [(gpu.name, gpu.index, gpu.total_bytes // GIB) for gpu in machine.usable_gpus] == [
        ("NVIDIA GeForce RTX 3060", 0, 12)
    ]
    assert [hint for hint in machine.hints if "GPU 1" in hint and "GPU is lost" in hint] and not machine.fault


def test_a_slice_whose_memory_the_driver_hides_has_what_llama_cpp_sees(
    fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_llama_gpus(monkeypatch, ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9, 10))
    machine = machine_with("mig", fake_driver, monkeypatch)
    assert [(gpu.free_bytes // GIB, gpu.total_bytes // GIB) for gpu in machine.usable_gpus] == [(9, 10)]
    assert "Insufficient Permissions" in machine.hints[0] and not machine.fault


def test_a_slice_that_nobody_tells_of_is_no_traceback(
    fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "read_llama", lambda _: LlamaBuild(for_gpus=False))
    machine = machine_with("mig", fake_driver, monkeypatch)
    assert machine.gpus[0].total_bytes == 0 and "CPU only" in machine.fault


def test_memory_that_gpu_and_cpu_share_is_counted_once(
    fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: (128 * GIB, 120 * GIB))
    with_llama_gpus(monkeypatch, ("NVIDIA GB10", 118, 120))
    machine = machine_with("gb10", fake_driver, monkeypatch)
    assert [(gpu.free_bytes // GIB, gpu.total_bytes // GIB) for gpu in machine.usable_gpus] == [(114, 120)]
    assert machine.usable_gpus[0].free_bytes + machine.ram_available_bytes <= 120 * GIB


def test_shared_memory_with_a_build_for_the_cpu_is_ram(
    fake_driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: (128 * GIB, 120 * GIB))
    monkeypatch.setattr(hardware, "read_llama", lambda _: LlamaBuild(for_gpus=False))
    machine = machine_with("gb10", fake_driver, monkeypatch)
    assert machine.gpus[0].total_bytes == 128 * GIB and machine.ram_available_bytes == 120 * GIB
    assert "GB10 lies idle" in machine.fault


# --- limits -----------------------------------------------------------------------------------------------------


def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, **files: str) -> None:
    """`files`: by path, with __ for /."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(limits, "GROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN_GROUPS", tmp_path / "own")


def test_a_container_counts_as_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = f"anon 5\nactive_file {GIB // 4}\ninactive_file {GIB // 4}"
    (tmp_path / "memory.max").write_text(str(2 * GIB))
    (tmp_path / "memory.current").write_text(str(GIB))
    (tmp_path / "memory.stat").write_text(stat)
    (tmp_path / "cpu.max").write_text("150000 100000")
    groups(tmp_path, monkeypatch, "0::/\n")
    assert limits.memory_bytes() == (2 * GIB, 3 * GIB // 2)
    assert limits.cores() == 1


def test_the_tightest_group_above_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "0::/machine.slice/ours\n")
    for name, limit in (("machine.slice", str(GIB)), ("machine.slice/ours", "max")):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "memory.max").write_text(limit)
        (tmp_path / name / "memory.current").write_text("0")
    assert limits.memory_bytes() == (GIB, GIB)


def test_the_first_version_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a container whose group has the host's name, which is not there inside."""
    groups(
        tmp_path,
        monkeypatch,
        "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n1:name=systemd:/docker/0123\n",
        **{
            "memory__memory.limit_in_bytes": str(2 * GIB),
            "memory__memory.usage_in_bytes": str(GIB),
            "cpu,cpuacct__cpu.cfs_quota_us": "100000",
            "cpu,cpuacct__cpu.cfs_period_us": "100000",
        },
    )
    assert limits.memory_bytes() == (2 * GIB, GIB)
    assert limits.cores() == 1


def test_without_limits_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "0::/\n", **{"memory.max": "max", "cpu.max": "max 100000"})
    assert limits.memory_bytes()[0] == psutil.virtual_memory().total


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_taskset_leaves_the_cores_that_it_names() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert limits.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
