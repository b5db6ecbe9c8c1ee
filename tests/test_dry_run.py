"""What llama.cpp says a layout takes is what it then takes; planning's formula is never much below, for any architecture."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storyfi_lite.engine import dry_run
from storyfi_lite.engine.dry_run import measure
from storyfi_lite.engine.model import Context, Model
from storyfi_lite.engine.settings import Demand, EngineSettings
from storyfi_lite.errors import BadInput, DoesNotFit
from storyfi_lite.machine.gpus import Gpu
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.gguf import Header, Tensor, architecture, read_local
from storyfi_lite.models.registry import load_registry
from storyfi_lite.opening.local import SILENT, LocalOpener, Notices
from storyfi_lite.options import ModelOptions
from storyfi_lite.placement import memory, weights
from storyfi_lite.placement.catalog import Catalog
from storyfi_lite.placement.plan import place

MIB, GIB = 2**20, 2**30
SCRIPTS = Path(__file__).parent.parent / "scripts"
ARCHITECTURES = ["llama", "mixtral", "qwen", "phi3", "gemma", "sliding", "qwen3", "qwen3moe", "gemma3", "gpt-oss"]
RAM_ONLY = Hardware((), 64 * GIB, 64 * GIB, 8, 10**12, cpu_bandwidth_gb_s=40.0)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("synthetic")
    subprocess.run([sys.executable, SCRIPTS / "make_gguf.py", directory], check=True, stdout=subprocess.DEVNULL)
    return directory


def measured(path: Path, settings: EngineSettings) -> Demand:
    told = measure(path, settings)
    assert told is not None
    return told[-1]


def reported_bytes(path: Path, settings: EngineSettings, caplog: pytest.LogCaptureFixture) -> float:
    """The sum of the buffers that llama.cpp's log names when it loads in earnest."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="storyfi_lite.llama"):
        model = Model(path, settings)
        Context(model, settings).close()
        model.close()
    sizes = re.findall(r"(?:model|KV|compute|output) buffer size =\s+([\d.]+) MiB", caplog.text)
    assert len(sizes) >= 4
    return sum(map(float, sizes)) * MIB


@pytest.mark.parametrize(
    "settings",
    [
        EngineSettings(),
        EngineSettings(n_ctx=1000, n_slots=4, kv_type="q4_0"),
        EngineSettings(n_batch=2048, n_ubatch=1024),
        EngineSettings(flash_attn=False),
    ],
    ids=str,
)
def test_the_real_model_takes_what_the_dry_run_says(
    small_model_path: Path, settings: EngineSettings, caplog: pytest.LogCaptureFixture
) -> None:
    told = measured(small_model_path, settings).buffer_bytes
    assert told == pytest.approx(reported_bytes(small_model_path, settings, caplog), abs=0.1 * MIB)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_takes_what_the_dry_run_says(
    synthetic: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, settings = synthetic / f"{name}-small.gguf", EngineSettings(n_ctx=1000, n_slots=4)
    told = measured(path, settings).buffer_bytes
    assert told == pytest.approx(reported_bytes(path, settings, caplog), abs=0.1 * MIB)


def test_no_weight_is_read(small_model_path: Path, tmp_path: Path) -> None:
    """The header's megabytes and the right size will do."""
    hollow = tmp_path / "hollow.gguf"
    size = small_model_path.stat().st_size
    with small_model_path.open("rb") as whole, hollow.open("wb") as out:
        weights_bytes = sum(tensor.size_bytes for tensor in read_local(small_model_path).tensors)
        out.write(whole.read(size - weights_bytes))
        out.truncate(size)
    assert measure(hollow, EngineSettings()) == measure(small_model_path, EngineSettings())


def test_weights_that_stay_in_the_file_take_no_memory(small_model_path: Path) -> None:
    """As a replay holds them: neither copied nor repacked, and the logits of a whole batch instead of one token's."""
    held = measure(small_model_path, EngineSettings(n_threads=1))
    mapped = measure(small_model_path, EngineSettings(n_threads=1, mapped=True))
    assert held and mapped
    assert held[-1].weights_bytes > 80e6 and mapped[-1].weights_bytes == 0
    assert mapped[-1].output_bytes == 512 * held[-1].output_bytes and mapped[-1].kv_bytes == held[-1].kv_bytes


def test_of_batches_in_step_one_at_a_time_holds_logits(small_model_path: Path) -> None:
    """llama.cpp's own figures, and the formula that plans by them."""
    one = EngineSettings(n_ctx=1024, n_batch=1024, n_ubatch=1024, n_threads=1, mapped=True)
    alone, ten = (measured(small_model_path, replace(one, n_contexts=count)) for count in (1, 10))
    assert ten.kv_bytes == 10 * alone.kv_bytes and ten.output_bytes == alone.output_bytes == 1024 * 49152 * 4
    assert ten.compute_bytes < 3 * alone.compute_bytes
    header = read_local(small_model_path)
    arch = architecture(header, "small.gguf")
    loads = weights.from_header(header, arch.block_count)
    planned = memory.demand(arch, loads, replace(one, n_contexts=10), 0)[-1]
    assert 0 <= planned.buffer_bytes - ten.buffer_bytes < 160 * MIB


def test_a_damaged_file_is_refused_before_it_is_loaded(small_model_path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(small_model_path.read_bytes()[: 40 << 20])
    with pytest.raises(BadInput, match="damaged"):
        measure(cut, EngineSettings())


def test_without_the_figure_the_prediction_has_to_do(small_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "_BREAKDOWN", "of another version")
    assert measure(small_model_path, EngineSettings()) is None
    best = place(load_registry(), RAM_ONLY, ModelOptions(name="smollm2-135m"), Catalog())
    assert best.measured(None, RAM_ONLY) == best


# --- the formula -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_gpus", [0, 1, 2])
def test_the_formula_is_not_below_llama_cpp_for_any_layout(synthetic: Path, n_gpus: int) -> None:
    """All, some and one of the layers on the GPUs, keys and values of each kind, slots, experts in RAM: hundreds of layouts."""
    if n_gpus and not shutil.which("cc"):
        pytest.skip("the GPUs that stand in need a C compiler")
    names = [["llama", "gemma3"], ["qwen", "gpt-oss"], ["mixtral"]][n_gpus]
    command = [
        sys.executable,
        str(SCRIPTS / "bench_placement.py"),
        "formula",
        *(str(synthetic / f"{name}-small.gguf") for name in names),
    ]
    done = subprocess.run(
        [*command, "--fake-gpus", str(n_gpus)], check=True, capture_output=True, text=True, timeout=300
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert {row["file"] for row in rows} == {f"{name}-small" for name in names}
    assert len({row["device"] for row in rows}) == 2 * (n_gpus + 1)  # with flash attention and without
    for row in rows:
        assert row["lowest"] > -0.01, row
        assert row["highest_mib"] < 160, row  # of megabytes: what a full-size model has no gigabyte of


def test_keys_and_values_are_counted_layer_by_layer_where_their_heads_differ() -> None:
    """gpustack/gguf-parser-go#31: llama.cpp takes 2.25 MiB here; with the largest layer's heads everywhere it would be 4."""
    figures = {
        "block_count": 4,
        "embedding_length": 64,
        "feed_forward_length": (64, 128, 256, 128),
        "context_length": 4096,
    }
    heads = {"attention.head_count": (4, 4, 4, 4), "attention.head_count_kv": (1, 2, 4, 2), "vocab_size": 49152}
    metadata: dict[str, Any] = {f"deci.{key}": value for key, value in (figures | heads).items()}
    layers = tuple(Tensor(f"blk.{number}.attn_q.weight", (1,), "F32", 0, 0) for number in range(4))
    header = Header({"general.architecture": "deci", **metadata}, {}, layers)
    arch = architecture(header, "kv_heads_by_layer.gguf")
    needs = memory.demand(arch, weights.from_header(header, 4), EngineSettings(), 0)
    assert needs[-1].kv_bytes == 2.25 * MIB


def test_tables_that_rows_are_looked_up_in_stay_in_ram() -> None:
    """gemma3n has one for each layer, larger than its layers together; a tied output is copied to the GPU."""
    sizes = {
        "token_embd.weight": 100,
        "per_layer_token_embd.weight": 1000,
        "output_norm.weight": 1,
        "blk.0.ffn_up.weight": 10,
    }
    loads = weights.from_header(Header({}, {}, tuple(Tensor(name, (1,), "Q8_0", sizes[name], 0) for name in sizes)), 1)
    arch = load_registry().local[0].architecture.model_copy(update={"block_count": 1})
    for layers, expected in ((0, [0, 1111]), (1, [101, 1110]), (2, [111, 1100])):
        needs = memory.demand(arch, loads, EngineSettings(n_gpu_layers=layers), 1)
        assert [need.weights_bytes for need in needs] == expected
    assert loads.file_bytes == 1111


# --- before loading --------------------------------------------------------------------------------------------


def test_what_does_not_fit_by_llama_cpp_s_own_figures_is_said_by_device() -> None:
    hardware = replace(RAM_ONLY, gpus=(Gpu("RTX 3090", 24 * GIB, 24 * GIB, 936.0),))
    best = place(load_registry(), hardware, ModelOptions(name="llama-3-8b"), Catalog())
    fits = (Demand(10 * GIB, GIB), Demand(GIB))
    told = best.measured(fits, hardware)
    assert [need.buffer_bytes for need in told.demands] == [11 * GIB, GIB]
    assert told.demands[0].context_bytes == best.demands[0].context_bytes > 0
    with pytest.raises(DoesNotFit, match=r"24.49 GiB of GPU 0 \(RTX 3090\), 23.88 may be used"):
        best.measured((Demand(24 * GIB), Demand(GIB)), hardware)


def test_a_layout_that_does_not_fit_gives_way_before_it_is_loaded(
    small_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here f16 keys and values take more than planning thought: they go, and nothing is loaded with them."""

    def told(path: Path, settings: EngineSettings) -> tuple[Demand, ...] | None:
        return (Demand(kv_bytes=65 * GIB),) if settings.kv_type == "f16" else measure(path, settings)

    monkeypatch.setattr(dry_run, "measure", told)
    notes: list[str] = []
    opener = LocalOpener(Notices(SILENT.progress, notes.append), hardware=RAM_ONLY)
    tried: list[EngineSettings] = []
    wanted = ModelOptions(path=small_model_path)
    placed, _ = opener.load(opener.find(wanted), wanted, lambda one: tried.append(one.placement.settings))
    assert [settings.kv_type for settings in tried] == ["q8_0"]
    assert notes == [
        "Q4_1 does not fit: it takes 65.15 GiB of the RAM, 63.50 may be used; trying again with keys and values as q8_0"
    ]
    assert placed.placement.demands[-1].buffer_bytes == measured(small_model_path, tried[0]).buffer_bytes
