"""Placement: predictions beside llama.cpp's own figures, the choice, the ladder, and the user pains it is there to end."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from click.testing import CliRunner

from storyfi_lite.cli import cli
from storyfi_lite.engine.model import Model
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import BadInput, DoesNotFit
from storyfi_lite.machine import devices
from storyfi_lite.machine.gpus import Gpu
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.listing import bits, finer_than
from storyfi_lite.models.registry import GGUFFile, ModelSpec, load_registry
from storyfi_lite.opening import loader as loading
from storyfi_lite.opening import local as local_opening
from storyfi_lite.options import ModelOptions
from storyfi_lite.placement import memory
from storyfi_lite.placement.catalog import Catalog
from storyfi_lite.placement.fit import GPU_MARGIN_BYTES
from storyfi_lite.placement.plan import LEAST_SCORE, MIN_CONTEXT, Placement, place, place_one
from storyfi_lite.placement.step_down import step_down

GIB = 2**30
REGISTRY = load_registry()
ROOT = Path(__file__).parent.parent


def machine(*gpus_gb: float, held_gb: float = 0, ram_gb: int = 64, names: tuple[str, ...] = ()) -> Hardware:
    gpus = tuple(
        Gpu(names[i] if names else "RTX 3090", int(gb * GIB), int((gb - held_gb) * GIB), 936.0 - i, index=i)
        for i, gb in enumerate(gpus_gb)
    )
    return Hardware(gpus, ram_gb * GIB, ram_gb * GIB, 8, 10**12, cpu_bandwidth_gb_s=40.0)


@cache
def placed(hardware: Hardware, **wish: object) -> Placement:
    return place(REGISTRY, hardware, ModelOptions(**wish), Catalog())  # type: ignore[arg-type]


# --- layers and devices --------------------------------------------------------------------------------------------


def test_one_gpu_layer_is_the_output_layer_alone() -> None:
    assert memory.layer_devices(4, 1, (), 1) == [-1, -1, -1, -1, 0]
    assert memory.layer_devices(4, 99, (3.0, 2.0), 2) == [0, 0, 0, 1, 1]
    assert memory.layer_devices(4, 0, (), 1) == [-1] * 5


@pytest.mark.parametrize(
    ("gb_s", "layers"),
    [
        pytest.param(0.05, 0, id="computed by the CPU itself"),
        pytest.param(10.0, 0, id="a quarter of the RAM's"),
        pytest.param(99.0, 31, id="a small card"),
        pytest.param(None, 31, id="not known"),
    ],
)
def test_a_gpu_that_is_slower_than_the_cpu_is_passed_over(gb_s: float | None, layers: int) -> None:
    """A driver that computes Vulkan on the CPU took all layers, and a blueprint half an hour."""
    slow = Gpu("llvmpipe", 8 * GIB, 8 * GIB, gb_s)
    best = placed(replace(machine(8), gpus=(slow,)), name="smollm2-135m", quant="Q4_1")
    assert best.n_on_gpu == layers
    told = [reason for reason in best.reasons if "which is faster here" in reason]
    assert told == ([] if layers else [f"on the CPU, which is faster here: llvmpipe reads {gb_s:.2g} GB/s"])


def test_where_all_are_too_slow_the_faster_of_gpu_and_cpu_counts() -> None:
    """Nothing is earned either way."""
    slow = Gpu("llvmpipe", 80 * GIB, 80 * GIB, 0.05)
    best = placed(replace(machine(80), gpus=(slow,)), name="llama-3-70b", quant="Q4_K_M")
    assert best.earnings.reward == 0 and best.n_on_gpu == 0


# --- the five pains --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gb", [4, 6, 8, 10, 12, 16, 24, 32, 48, 80])
def test_pain_1_out_of_memory_after_the_load(gb: int) -> None:
    """Every device's whole demand is inside what is free there."""
    hardware = machine(gb)
    best = placed(hardware)
    for gpu, need in zip(hardware.gpus, best.demands[:-1], strict=True):
        assert need.total_bytes + GPU_MARGIN_BYTES <= gpu.free_bytes
    assert best.demands[-1].total_bytes < hardware.ram_available_bytes


@pytest.mark.parametrize("gb", [10, 12, 16, 24, 32])
def test_pain_2_memory_left_idle(gb: int) -> None:
    """A model larger than the card fills it to within one more layer."""
    hardware = machine(gb)
    best = placed(hardware, name="llama-3-70b", quant="Q4_K_M")
    assert 0 < best.n_on_gpu < best.n_layers
    layer = best.file.size_bytes / best.n_layers
    idle = hardware.gpus[0].free_bytes - best.demands[0].total_bytes
    assert idle < layer * 1.1 + GPU_MARGIN_BYTES + best.file.size_bytes // 50


def test_pain_3_other_processes() -> None:
    alone, shared = placed(machine(24)), placed(machine(24, held_gb=14))
    assert shared.demands[0].total_bytes <= 10 * GIB < alone.demands[0].total_bytes
    gpu = replace(machine(8).gpus[0], free_bytes=GIB, holders=("other-miner (pid 7, 7.0 GiB)",))
    full = replace(machine(8, ram_gb=4), gpus=(gpu,))
    with pytest.raises(DoesNotFit, match="held by other-miner"):
        placed(full, name="llama-3-8b")


def test_pain_4_several_gpus_and_experts() -> None:
    two = placed(machine(24, 24), name="llama-3-70b", quant="IQ4_XS")
    assert two.n_on_gpu == two.n_layers
    assert all(need.weights_bytes > 12 * GIB for need in two.demands[:-1])
    fits_one = placed(machine(24, 12), name="llama-3-8b")
    assert [need.weights_bytes > 0 for need in fits_one.demands[:-1]] == [True, False]  # the faster card alone
    mixtral = placed(machine(12), name="mixtral-8x7b", quant="Q4_K_M")
    assert mixtral.n_on_gpu == mixtral.n_layers and mixtral.settings.experts_in_ram > 0


def test_a_gpu_that_holds_nothing_is_left_alone() -> None:
    """llama.cpp takes memory on every GPU that it sees, for its context and to help with prompts: a full one must stay hidden."""
    full = Gpu("RTX 3060", 12 * GIB, 200 << 20, 360.0, index=1)
    beside = replace(machine(24), gpus=(*machine(24).gpus, full))
    best = placed(beside, name="llama-3-8b")
    assert best.settings.used_gpus(2) == [0] and best.demands[1].total_bytes == 0
    alone = placed(replace(machine(12), gpus=(full,)), name="llama-3-8b")
    assert alone.n_on_gpu == 0 and alone.settings.used_gpus(1) == [] and alone.demands[0].total_bytes == 0


def test_only_gpus_with_a_share_are_used() -> None:
    assert EngineSettings(n_gpu_layers=9).used_gpus(3) == [0, 1, 2]
    assert EngineSettings(n_gpu_layers=9, tensor_split=(0.0, 4.0, 5.0)).used_gpus(3) == [1, 2]
    assert EngineSettings(n_gpu_layers=0, tensor_split=(1.0, 0.0)).used_gpus(2) == []


def test_without_layers_on_it_a_gpu_is_hidden_from_llama_cpp(
    small_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    load = llama_cpp.llama_model_load_from_file

    def looked_at(path: bytes, params: Any) -> Any:
        asked.append(ctypes.cast(params.devices, ctypes.POINTER(ctypes.c_size_t))[0])
        return load(path, params)

    monkeypatch.setattr(devices, "gpus", lambda: [devices.Device(0xBAD, "a full GPU")])
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", looked_at)
    Model(small_model_path, EngineSettings(n_gpu_layers=0)).close()
    assert asked == [0]  # a list that ends at once, and not the null that means all


def test_pain_5_an_answer_before_the_download_with_reasons() -> None:
    best = placed(machine(24))
    assert not best.loads.exact and best.spec.multiplier > 1
    for spec in REGISTRY.local:
        if spec.multiplier > best.spec.multiplier:
            assert any(reason.startswith(f"not {spec.key}:") for reason in best.reasons)


# --- the choice ------------------------------------------------------------------------------------------------


def test_keys_and_values_are_quantized_before_layers_are_dropped() -> None:
    for tenth in range(60, 120):
        best = placed(machine(tenth / 10), name="llama-3-8b", quant="Q6_K")
        if best.n_on_gpu < best.n_layers:
            assert best.settings.kv_type != "f16"
        assert best.settings.n_ctx >= MIN_CONTEXT


def test_keys_that_cannot_be_quantized_are_not() -> None:
    """llama.cpp makes no context with q8_0 keys for heads of 80."""
    spec = REGISTRY.find("llama-3-8b")
    assert isinstance(spec, ModelSpec)
    odd = spec.model_copy(update={"architecture": spec.architecture.model_copy(update={"key_length": 80})})
    hardware = machine(6)
    best = place_one(odd, hardware, ModelOptions(quant="Q6_K"), Catalog())
    assert 0 < best.n_on_gpu < best.n_layers and best.settings.kv_type == "f16"
    while step := step_down(best, ModelOptions(), hardware, Catalog()):
        best = step[0]
        assert best.settings.kv_type == "f16"


class OneFile(Catalog):
    """Only the coarsest file of each model that is fine enough is here."""

    def missing_bytes(self, spec: ModelSpec, file: GGUFFile) -> int:
        here = next(one for one in spec.files if finer_than("Q3_K_M", one))
        return 0 if file is here else file.size_bytes


def test_what_is_here_is_run_whether_it_is_in_time_or_not() -> None:
    for gb, in_time in ((8, False), (80, True)):
        best = place(REGISTRY, machine(gb), ModelOptions(name="llama-3-70b"), OneFile())
        assert OneFile().missing_bytes(best.spec, best.file) == 0
        assert (best.earnings.score > 0.7) == in_time


@pytest.mark.parametrize("ram_gb", [8, 12, 64])
def test_little_ram_is_no_reason_to_move_more_experts_there(ram_gb: int) -> None:
    """The experts of a few layers need a few gigabytes; more layers' do not fit, and need not."""
    best = placed(machine(24, held_gb=0.3, ram_gb=ram_gb), name="mixtral-8x7b", quant="Q4_K_M", n_ctx=4096)
    assert best.n_on_gpu == best.n_layers and 0 < best.settings.experts_in_ram < 10


def test_a_second_and_slower_card_slows_nothing() -> None:
    fast, slow = Gpu("RTX 3080", 10 * GIB, 10 * GIB, 760.0), Gpu("P40", 24 * GIB, 24 * GIB, 347.0, index=1)
    alone = placed(replace(machine(10), gpus=(fast,)), name="mistral-7b", quant="Q8_0", n_ctx=4096, kv_type="f16")
    both = placed(replace(machine(10), gpus=(fast, slow)), name="mistral-7b", quant="Q8_0", n_ctx=4096, kv_type="f16")
    assert both.speed.tokens_per_s == alone.speed.tokens_per_s and both.settings.tensor_split[1] == 0


class Pulled(Catalog):
    """llama-3-8b Q4_K_M is on disk, nothing else."""

    def missing_bytes(self, spec: ModelSpec, file: GGUFFile) -> int:
        return 0 if (spec.key, file.quant) == ("llama-3-8b", "Q4_K_M") else file.size_bytes


def test_of_equally_paid_models_the_one_on_disk_is_run() -> None:
    fresh = placed(machine(8))
    assert (fresh.spec.key, fresh.file.quant) == ("llama-3-8b", "Q5_K_M")
    best = place(REGISTRY, machine(8), ModelOptions(), Pulled())
    assert (best.spec.key, best.file.quant) == ("llama-3-8b", "Q4_K_M")
    dearer = place(REGISTRY, machine(24, 24), ModelOptions(), Pulled())
    assert dearer.spec.multiplier > 1.2  # paid better: worth a download


class Damaged(Catalog):
    def header(self, spec: ModelSpec, file: GGUFFile) -> None:
        if spec.key == "mistral-7b":
            raise BadInput(f"{file.quant} is cut off")


def test_a_damaged_file_is_left_out_and_stops_nothing() -> None:
    best = place(REGISTRY, machine(12), ModelOptions(), Damaged())
    assert best.spec.key == "llama-3-8b"
    with pytest.raises(DoesNotFit, match="cut off"):
        place(REGISTRY, machine(12), ModelOptions(name="mistral-7b"), Damaged())
    with pytest.raises(BadInput, match="cut off"):
        place(REGISTRY, machine(12), ModelOptions(name="mistral-7b", quant="Q8_0"), Damaged())


def test_where_hardly_an_answer_is_in_time_nothing_is_run() -> None:
    """The slower the memory, the less a CPU earns, until placement refuses with every model's reason."""
    fast, slow = (replace(machine(), cpu_bandwidth_gb_s=gb_s) for gb_s in (40.0, 4.0))
    assert placed(fast).earnings.reward > placed(slow).earnings.reward >= 0.5 * LEAST_SCORE
    with pytest.raises(DoesNotFit, match=r"fast enough:\n.*llama-3-70b: .* requests late"):
        placed(replace(machine(), cpu_bandwidth_gb_s=0.4))


def test_policies_and_limits() -> None:
    assert placed(machine(24)).earnings.late < 0.01
    assert placed(machine(24), policy="fastest").speed.tokens_per_s >= placed(machine(24)).speed.tokens_per_s
    assert placed(machine(24), policy="largest").file.size_bytes >= placed(machine(24)).file.size_bytes
    assert placed(machine(24), name="llama-3-8b", n_ctx=8192).settings.n_ctx == 8192
    with pytest.raises(BadInput, match="no model has so many tokens of context"):
        placed(machine(24), n_ctx=100_000)
    with pytest.raises(DoesNotFit, match="4096 tokens that it was made for"):
        placed(machine(80), name="yi-34b", n_ctx=32_768)
    with pytest.raises(BadInput, match="API model"):
        placed(machine(24), name="gpt-4-turbo")
    with pytest.raises(BadInput, match="did you mean"):
        placed(machine(24), name="llama-3-8")
    with pytest.raises(BadInput, match="no quantization"):
        placed(machine(24), min_quant="Q9")


def test_the_ladder_goes_down_and_ends() -> None:
    hardware = machine(12)
    current = placed(hardware, name="llama-3-8b", n_ctx=8192)
    words = []
    while step := step_down(current, ModelOptions(), hardware, Catalog()):
        assert step[0].speed.tokens_per_s <= current.speed.tokens_per_s * 1.1  # told anew, not kept from above
        current, said = step
        words.append(said)
        assert current.spec.key == "llama-3-8b" and len(words) < 30
    assert words[:3] == ["one request at a time", "keys and values as q8_0", "keys and values as q4_0"]
    assert current.settings.n_gpu_layers == 0 and current.settings.n_ctx == MIN_CONTEXT
    assert current.demands[0].total_bytes == 0 and current.speed.tokens_per_s < 10


def test_a_mixture_steps_down_by_its_experts_first() -> None:
    hardware = machine(24)
    current = placed(hardware, name="mixtral-8x7b", quant="Q4_K_M")
    in_ram = current.settings.experts_in_ram
    while step := step_down(current, ModelOptions(), hardware, Catalog()):
        lower, said = step
        if "experts" in said:
            assert lower.settings.experts_in_ram > current.settings.experts_in_ram
            assert lower.demands[0].total_bytes < current.demands[0].total_bytes
        if "of 33 layers" in said:
            assert current.settings.experts_in_ram == 32 > in_ram
        current = lower
    assert current.settings.n_gpu_layers == 0


# --- what it earns ----------------------------------------------------------------------------------------------


def test_keys_and_values_are_never_q4_0_unasked() -> None:
    for gb in (6, 8, 12, 24, 48):
        assert placed(machine(gb)).settings.kv_type != "q4_0"
    assert placed(machine(24), name="yi-34b", kv_type="q4_0").settings.kv_type == "q4_0"


def test_several_at_once_are_worth_more_than_a_finer_file() -> None:
    """An 8 GB card: Q8_0 with layers in RAM and one slot against a coarser file that is whole and answers four."""
    card = replace(machine(8), gpus=(Gpu("RTX 4060", 8 * GIB, 8 * GIB - (300 << 20), 272.0),))
    best, fine = placed(card), placed(card, name="llama-3-8b", quant="Q8_0")
    assert best.is_whole and best.settings.n_slots == 4 and not fine.is_whole
    assert best.earnings.reward > fine.earnings.reward and finer_than("Q4_K_M", best.file)


def test_the_vocabulary_counts() -> None:
    """Chinese takes llama-2's vocabulary twice the tokens: on a slow card the other model of the same multiplier earns more, and
    the choice says so."""
    card = replace(machine(6), gpus=(Gpu("RTX 3050", 6 * GIB, 6 * GIB - (300 << 20), 168.0),))
    assert placed(card, name="llama-3-8b").earnings.reward > placed(card, name="mistral-7b").earnings.reward
    best = placed(card)
    assert best.spec.key == "llama-3-8b" and any(why.startswith("not mistral-7b: ") for why in best.reasons)


@pytest.mark.parametrize(
    ("free_gb", "says"),
    [
        (17.2, "256 MiB more of GPU memory: yi-34b Q3_K_M, all layers on the GPU, 2 at once: +13%"),
        (16.6, "512 MiB more of GPU memory: yi-34b"),
        (19.0, ""),
    ],
)
def test_a_near_miss_is_said_with_what_would_mend_it(tmp_path: Path, free_gb: float, says: str) -> None:
    card = {"name": "RTX 3090", "total_gb": 24, "free_gb": free_gb}
    (tmp_path / "card.json").write_text(json.dumps({"gpus": [card], "ram_gb": 64}))
    done = CliRunner().invoke(cli, ["place", "--json", "--hardware", str(tmp_path / "card.json")])
    reasons = "\n".join(json.loads(done.stdout)["reasons"])
    assert (says or "not ") in reasons and ("more of GPU memory" in reasons) == bool(says)


def test_the_fastest_is_none_that_earns_half() -> None:
    best, fastest = placed(machine(8)), placed(machine(8), policy="fastest")
    assert fastest.spec.key != "smollm2-135m" and fastest.earnings.reward >= 0.8 * best.earnings.reward


# --- loading ---------------------------------------------------------------------------------------------------


def test_a_load_that_fails_for_memory_steps_down_and_the_claim_is_true(
    small_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storyfi_lite.loaders import local

    class Cramped(local.LocalModelLoader):
        def __init__(self, model: local.LocalModel, settings: EngineSettings, *more: Any) -> None:
            if settings.kv_type == "f16":
                raise DoesNotFit("another program took the memory")
            super().__init__(model, settings, *more)

    monkeypatch.setattr(local, "LocalModelLoader", Cramped)
    monkeypatch.setattr(local_opening, "probe", machine)
    notes: list[str] = []
    wanted = ModelOptions(name="smollm2-135m")
    loader, facts = loading.open_loader(wanted, local_opening.Notices(lambda *_: None, notes.append))
    try:
        taken = "another program took the memory; trying again with"
        assert notes == [f"{taken} keys and values as q8_0"]
        assert loader.claim.model_name == facts["model"] == "smollm2-135m"
        assert "q8_0" in facts["context"] and loader.claim.gpu_memory_gb == 0
    finally:
        loader.close()


def test_gpu_memory_of_the_claim_is_that_of_the_gpus_used() -> None:
    hardware = machine(24, 12)
    best = placed(hardware, name="llama-3-8b")
    assert local_opening.gpu_memory_gb(best, hardware) == 24.0


def test_quantizations_of_any_repository_are_ordered_by_their_bits() -> None:
    names = ["IQ1_S", "IQ2_M", "Q3_K_S", "Q4_K_S", "UD-Q4_K_XL", "Q5_K_L", "Q6_K_L", "Q8_0", "bf16"]
    found = [bits(name, 0.0) for name in names]
    assert found == sorted(found) and len(set(found)) == len(found)
    assert (bits("unknown", 0.0), bits("unknown", 99.0)) == (0.0, 99.0)
