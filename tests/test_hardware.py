"""The probe: a fake NVML stands for the driver; a described machine is checked at the edge."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from storyfi_lite.errors import BadInput
from storyfi_lite.machine import cards, devices, gpus, hardware
from storyfi_lite.machine.build import rebuild_command

GIB = 2**30


class FakeNvml:
    """As much of pynvml as the probe reads."""

    class NVMLError(Exception):
        value = 3  # NVML_ERROR_NOT_SUPPORTED

    def __init__(self, *cards: tuple[str, int, int], driver: bool = True) -> None:
        self.cards, self.driver = cards, driver

    def nvmlInit(self) -> None:
        if not self.driver:
            error = self.NVMLError("Driver Not Loaded")
            error.value = 9
            raise error

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, index: int) -> str:
        return f"GPU-{index}{index}{index}"

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlDeviceGetName(self, index: int) -> str:
        return self.cards[index][0]

    def nvmlDeviceGetMemoryInfo(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(total=self.cards[index][1] * GIB, free=self.cards[index][2] * GIB)

    NVML_CLOCK_MEM = 2

    def nvmlDeviceGetMemoryBusWidth(self, index: int) -> int:
        if "A40" in self.cards[index][0]:
            raise self.NVMLError("Not Supported")
        return 384

    def nvmlDeviceGetMaxClockInfo(self, index: int, kind: int) -> int:
        assert kind == self.NVML_CLOCK_MEM
        return 9751 if "3090" in self.cards[index][0] else 10501

    def nvmlDeviceGetCudaComputeCapability(self, index: int) -> tuple[int, int]:
        return 8, 9

    def nvmlDeviceGetComputeRunningProcesses(self, index: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=4242, usedGpuMemory=3 * GIB)]

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        return "/usr/bin/other-miner"


TWO = FakeNvml(("NVIDIA GeForce RTX 4090", 24, 20), ("NVIDIA GeForce RTX 3090", 24, 12))


def test_no_driver_is_an_ordinary_case() -> None:
    assert gpus.read_driver(FakeNvml(driver=False)) == gpus.Driver()


def test_what_the_driver_says_and_who_else_is_there() -> None:
    driver = gpus.read_driver(TWO, {})
    assert driver.version == "570.1"
    assert [(gpu.free_bytes // GIB, gpu.bandwidth_gb_s, gpu.compute_capability) for gpu in driver.gpus] == [
        (20, 1008.1, "8.9"),
        (12, 936.1, "8.9"),
    ]
    assert driver.gpus[0].holders == ("other-miner (pid 4242, 3.0 GiB)",)


@pytest.mark.parametrize(
    ("name", "gb_s"),
    [
        ("NVIDIA GeForce RTX 3090", 936), ("NVIDIA GeForce RTX 3090 Ti", 1008), ("NVIDIA RTX A4000", 448), ("NVIDIA A40", 696),
        ("NVIDIA RTX A1000", 192), ("Quadro P1000", None), ("NVIDIA T400 4GB", 80), ("Tesla T4", 320), ("NVIDIA L40S", 864),
        ("NVIDIA A100-SXM4-80GB", 2039), ("NVIDIA A100 80GB PCIe", 1935), ("NVIDIA A100-PCIE-40GB", 1555),
        ("NVIDIA GH200 480GB", 4000), ("NVIDIA H100 80GB HBM3", 3361), ("GPU", None),
        ("NVIDIA GeForce RTX 4060", 272), ("NVIDIA GeForce RTX 4060 Ti", 288), ("NVIDIA GeForce RTX 4060 Laptop GPU", 256),
        ("NVIDIA GeForce RTX 2080 SUPER", 496), ("RTX 3080 12GB", 912), ("NVIDIA GeForce RTX 4090 Laptop GPU", 576),
        ("NVIDIA GeForce RTX 2080 with Max-Q Design", 384), ("NVIDIA RTX A4000 Laptop GPU", 384),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 1792), ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 1792),
        ("RTX 2060 SUPER", 448), ("GTX 1660 SUPER", 336), ("GTX 1660 Ti", 288), ("RTX 5050", 320), ("RTX PRO 4000", 672),
        ("RTX PRO 5000", 1344), ("H20", 4000), ("B300", 8000), ("NVIDIA GeForce RTX 3050 Ti Laptop GPU", 192),
        ("NVIDIA RTX 2000 Ada Generation Laptop GPU", 256), ("AMD Radeon RX 7800M", 432), ("RTX 5070 SUPER", None), ("Apple M5 Pro", None),
        ("NVIDIA RTX 4000 SFF Ada Generation", 280), ("AMD Radeon RX 7900 XTX (RADV NAVI31)", 960), ("AMD Radeon RX 6800S", 256),
        ("Intel(R) Arc(TM) A770M Graphics", 512), ("Intel(R) Arc(TM) Pro A40 Graphics", 192), ("Apple M2", 100), ("Apple M2 Max", 400),
    ],
)  # fmt: skip
def test_a_card_is_known_by_whole_words_of_its_name(name: str, gb_s: float | None) -> None:
    assert cards.bandwidth_of(name) == gb_s


@pytest.mark.parametrize(
    ("name", "gib", "gb_s"),
    [
        ("NVIDIA GeForce RTX 3060", 12, 360), ("NVIDIA GeForce RTX 3060", 8, 240), ("NVIDIA GeForce RTX 3050", 5.8, 168),
        ("NVIDIA GeForce RTX 3080", 12, 912), ("A100", 79.3, 1935), ("Apple M4 Max", 36, 410), ("Apple M4 Max", 64, 546),
        ("NVIDIA GeForce RTX 3060", 24, 360),
    ],
)  # fmt: skip
def test_its_memory_tells_cards_of_one_name_apart(name: str, gib: float, gb_s: float) -> None:
    assert cards.bandwidth_of(name, int(gib * GIB)) == gb_s


def test_every_row_of_the_table_has_its_page() -> None:
    rows = [line.split("\t") for line in cards.TABLE.read_text().splitlines()[1:]]
    assert len(rows) > 300 and all(page.startswith("https://") and float(gb_s) > 60 for *_, gb_s, page in rows)


def test_where_the_driver_does_not_say_the_table_does() -> None:
    assert gpus.read_driver(FakeNvml(("NVIDIA A40", 48, 48)), {}).gpus[0].bandwidth_gb_s == 696


@pytest.mark.parametrize(
    ("setting", "want"),
    [(None, [0, 1]), ("", []), ("-1", []), ("1", [1]), ("1,0", [1, 0]), ("GPU-111", [1]), ("0,7,1", [0]), ("0,0", [0])],
)
def test_cuda_visible_devices_as_cuda_reads_it(setting: str | None, want: list[int]) -> None:
    environment = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    assert [gpu.index for gpu in gpus.read_driver(TWO, environment).gpus] == want


def test_a_gpu_with_a_cpu_build_is_a_fault_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "read_llama", lambda _: hardware.LlamaBuild(for_gpus=False))
    machine = hardware.probe(tmp_path, TWO)
    assert machine.usable_gpus == ()
    assert "built for the CPU only" in machine.fault and rebuild_command() in machine.fault


def test_a_full_gpu_is_not_asked_by_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would open a context there, and end this process if it can't."""
    asked: list[int] = []

    class Card(devices.Device):
        def memory_bytes(self) -> tuple[int, int]:
            asked.append(self.handle)
            return 19 * GIB, 24 * GIB

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "gpus", lambda: [Card(1, "RTX 4090"), Card(2, "RTX 3060")])
    machine = hardware.probe(tmp_path, FakeNvml(("RTX 4090", 24, 20), ("RTX 3060", 12, 0)))
    assert asked == [1]
    assert machine.llama_devices == ("RTX 4090, 19.0 GiB free", "RTX 3060, 0.0 GiB free") and not machine.fault


def test_this_machine(tmp_path: Path) -> None:
    machine = hardware.probe(tmp_path / "not" / "there", FakeNvml(driver=False))
    assert 0 < machine.ram_available_bytes <= machine.ram_total_bytes
    assert machine.physical_cores > 0 and machine.disk_free_bytes > 0 and not machine.fault


def described(tmp_path: Path, machine: object) -> Path:
    path = tmp_path / "machine.json"
    path.write_text(machine if isinstance(machine, str) else json.dumps(machine))
    return path


def test_a_described_machine(tmp_path: Path) -> None:
    path = described(tmp_path, {"gpus": [{"name": "RTX 3090", "total_gb": 24}], "ram_gb": 64, "cores": 8})
    machine = hardware.from_json(path)
    assert machine.gpus[0].free_bytes == 24 * GIB and machine.gpus[0].bandwidth_gb_s == 936
    assert machine.usable_gpus == machine.gpus


@pytest.mark.parametrize(("total_gb", "free_gib"), [(64, 60), (48, 48)])
def test_a_described_macs_memory_counts_once(tmp_path: Path, total_gb: int, free_gib: int) -> None:
    path = described(tmp_path, {"gpus": [{"name": "Apple M2 Max", "total_gb": total_gb}], "ram_gb": 64})
    machine = hardware.from_json(path)
    assert (machine.gpus[0].free_bytes, machine.ram_available_bytes) == (free_gib * GIB, 4 * GIB)


def test_this_macs_memory_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metal = gpus.Gpu("Apple M2 Max", 48 * GIB, 48 * GIB)
    monkeypatch.setattr(hardware, "read_llama", lambda _: hardware.LlamaBuild(True, (metal,)))
    monkeypatch.setattr(hardware.limits, "memory_bytes", lambda: (64 * GIB, 40 * GIB))
    machine = hardware.probe(tmp_path, FakeNvml(driver=False))
    assert (machine.gpus[0].free_bytes, machine.ram_available_bytes) == (36 * GIB, 4 * GIB)


@pytest.mark.parametrize(("gb_s", "shown"), [(0.046, "0.046"), (3.94, "3.9"), (40.0, "40"), (1008.0, "1008")])
def test_the_speed_of_a_gpu_in_software_is_no_zero(tmp_path: Path, gb_s: float, shown: str) -> None:
    from storyfi_lite.cli.probe import _rows

    gpu = {"name": "llvmpipe", "total_gb": 2, "bandwidth_gb_s": gb_s}
    machine = hardware.from_json(described(tmp_path, {"gpus": [gpu], "ram_gb": 64}))
    assert _rows(machine)[0][1].endswith(f", {shown} GB/s")


@pytest.mark.parametrize(
    ("machine", "word"),
    [
        ("{", "Invalid JSON"),
        ([], "the machine: Input should be an object"),
        ({"ram_gb": -1}, "ram_gb"),
        ({"ram_gb": True}, "ram_gb"),
        ({"ram_gb": "64"}, "ram_gb"),
        ({"gpus": []}, "ram_gb"),
        ({"ram_gb": 64, "vram": 3}, "vram: there is no such key"),
        ({"ram_gb": 64, "gpus": [{"total_gb": -24}]}, "total_gb"),
        ({"ram_gb": 64, "gpus": [{"total_gb": 8, "free_gb": 9}]}, "more memory free"),
        ({"ram_gb": 64, "gpus": {}}, "gpus: Input should be a valid array"),
        ('{"ram_gb": NaN}', "ram_gb"),
    ],
)
def test_a_described_machine_that_cannot_be(tmp_path: Path, machine: object, word: str) -> None:
    with pytest.raises(BadInput) as caught:
        hardware.from_json(described(tmp_path, machine))
    assert word in str(caught.value) and "\n" not in str(caught.value)
