"""Which loader opens on which machine, what it claims, and how a load that runs out of memory goes down step by step."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from storyfi_lite.cli import cli
from storyfi_lite.engine import dry_run
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import BadInput, ConfigError, DoesNotFit, LiteError, Unavailable
from storyfi_lite.loaders import local
from storyfi_lite.loaders.api import ApiLoader
from storyfi_lite.loaders.base import ModelClaim
from storyfi_lite.loaders.keys import API_KEYS
from storyfi_lite.machine.gpus import Gpu
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.gguf import Header
from storyfi_lite.models.registry import GGUFFile, ModelSpec, load_registry
from storyfi_lite.opening import local as local_opening
from storyfi_lite.opening.loader import open_loader
from storyfi_lite.opening.local import SILENT, LocalOpener, Notices, PlacedFile
from storyfi_lite.options import ApiOptions, ModelOptions
from storyfi_lite.placement.catalog import Catalog
from storyfi_lite.placement.plan import MIN_CONTEXT, Placement, place, place_file
from storyfi_lite.validator import proof

GIB = 2**30
REGISTRY = load_registry()


def machine(gpu_gb: float = 0, ram_gb: float = 64, cpu_gb_s: float = 40.0) -> Hardware:
    gpus = (Gpu("RTX 3090", int(gpu_gb * GIB), int(gpu_gb * GIB), 936.0),) if gpu_gb else ()
    return Hardware(gpus, int(ram_gb * GIB), int(ram_gb * GIB), 8, 10**12, cpu_bandwidth_gb_s=cpu_gb_s)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (*API_KEYS.values(), "MODEL_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # where the APIs' use is counted
    monkeypatch.setattr(ApiLoader, "look_up", lambda loader: None)  # no vendor is asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # nor the hub


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the file nor the machine is here: llama.cpp cannot be asked what they take."""
    monkeypatch.setattr(dry_run, "measure", lambda path, settings: None)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hardware], None]:
    def use(hardware: Hardware) -> None:
        monkeypatch.setattr(local_opening, "probe", lambda: hardware)

    return use


def opened(**wanted: object) -> tuple[ModelClaim, dict[str, str], list[str]]:
    """What the loader that was opened claims, says of itself, and what was noted on the way."""
    notes: list[str] = []
    api = {name: wanted.pop(name) for name in ("fallback", "model", "base_url") if name in wanted}
    options = ModelOptions(**wanted, api=ApiOptions(**api))  # type: ignore[arg-type]
    loader, facts = open_loader(options, Notices(lambda *_: None, notes.append))
    claim = loader.claim
    loader.close()
    return claim, dict(facts), notes


# --- the choice ------------------------------------------------------------------------------------------------


def test_a_gpu_means_a_local_model_even_with_a_key(
    on: Callable[[Hardware], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(machine(gpu_gb=24))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    loader = SimpleNamespace(claim="local", close=lambda: None)
    monkeypatch.setattr(LocalOpener, "loader", lambda *_: (loader, {}))
    assert opened()[0] == "local"


@pytest.mark.parametrize(
    ("variable", "model"), [("OPENAI_API_KEY", "gpt-6-luna"), ("GEMINI_API_KEY", "gemini-3.5-flash-lite")]
)
def test_no_gpu_and_a_key_means_the_api_at_half_the_reward(
    on: Callable[[Hardware], None], monkeypatch: pytest.MonkeyPatch, variable: str, model: str
) -> None:
    on(machine())
    monkeypatch.setenv(variable, "A" * 39)
    claim, facts, notes = opened()
    assert (facts["model"], facts["multiplier"], claim.multiplier) == (model, "0.5", 0.5)
    assert claim.miner_mode == "APIFallbackLoader"
    assert len(notes) == 1 and "half the reward" in notes[0]


def test_neither_gpu_nor_key_means_the_cpu_tier(on: Callable[[Hardware], None], small_model_path: Path) -> None:
    on(machine())
    claim, facts, _ = opened()
    assert facts["model"] == claim.model_name == "smollm2-135m"
    assert claim.multiplier == 0.5 and claim.gpu_memory_gb == 0


@pytest.mark.parametrize(
    ("name", "claims"), [("My Tune.Q4_1", "my-tune.q4_1"), ("llama-3-70b", "unlisted-llama-3-70b")]
)
def test_any_gguf_file_can_be_run_and_claims_no_more_than_its_name(
    on: Callable[[Hardware], None], name: str, claims: str, small_model_path: Path, tmp_path: Path
) -> None:
    on(machine())
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(small_model_path.read_bytes().replace(b"Smollm2 135M", b"My Own Story", 1))
    claim, _, _ = opened(path=path)
    assert (claim.model_name, claim.model_info.provider) == (claims, "unlisted")
    assert claim.multiplier == 1.0  # the mission: a local model that the table does not list


def test_too_slow_for_the_cpu_tier_is_a_refusal_with_three_ways_out(on: Callable[[Hardware], None]) -> None:
    on(machine(cpu_gb_s=0.1))
    with pytest.raises(DoesNotFit) as refused:
        opened()
    ways = str(refused.value).split("three ways out:")[1]
    assert "storyfi-lite probe" in ways and "GEMINI_API_KEY" in ways and "--model.name" in ways


@pytest.mark.parametrize(
    "trouble", [Unavailable("no hub"), BadInput("it was uploaded again"), DoesNotFit("the disk is full")]
)
@pytest.mark.parametrize("name", [None, "smollm2-135m"])
def test_what_cannot_be_fetched_is_replaced_by_what_is_on_disk(
    on: Callable[[Hardware], None],
    monkeypatch: pytest.MonkeyPatch,
    small_model_path: Path,
    trouble: LiteError,
    name: str | None,
) -> None:
    on(machine(cpu_gb_s=1.2 if name else 40.0))  # named, it may also be too slow for a validator

    def pull(*_: object) -> Path:
        raise trouble

    monkeypatch.setattr(local_opening.Store, "pull", pull)
    claim, facts, notes = opened(name=name, n_threads=1)
    assert (claim.model_name, facts["quantization"]) == ("smollm2-135m", "Q4_1")
    assert any(str(trouble) in note for note in notes)
    with pytest.raises(type(trouble)):
        opened(name="smollm2-135m", quant="Q8_0", n_threads=1)


@pytest.mark.parametrize("url", ["localhost:18790/v1", "", "foo bar", "http://[::1", "ftp://host", "http://"])
def test_a_base_url_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(BadInput, match="no address of a server"):
        opened(name="gpt-4-turbo", base_url=url)


def test_a_base_url_is_never_silently_left_unused(on: Callable[[Hardware], None]) -> None:
    on(machine(gpu_gb=24))
    with pytest.raises(BadInput, match="a local model answers here"):
        opened(base_url="http://127.0.0.1:1/v1")


def test_a_quantization_that_no_file_has_is_wrong_use() -> None:
    with pytest.raises(BadInput, match="no file has the quantization 'FOO'"):
        opened(quant="FOO")


def test_a_gpu_that_lies_idle_is_never_silently_half_paid(
    on: Callable[[Hardware], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(replace(machine(gpu_gb=24), fault="built for the CPU only: GGML_CUDA=on"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with pytest.raises(ConfigError, match="GGML_CUDA"):
        opened()


def test_a_named_api_model_needs_no_gpu_and_has_no_file(
    on: Callable[[Hardware], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(machine(gpu_gb=24))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert opened(name="gpt-4-turbo")[0].multiplier == 0.5
    with pytest.raises(BadInput, match="no quantizations"):
        opened(name="gpt-4-turbo", quant="Q4_K_M")


def test_the_fallback_api_answers_where_the_named_model_does_not_fit(
    on: Callable[[Hardware], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on(machine(ram_gb=2))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with pytest.raises(DoesNotFit):
        opened(name="llama-3-8b")
    with caplog.at_level(logging.WARNING):
        claim, facts, _ = opened(name="llama-3-8b", fallback="openai")
    assert (facts["model"], claim.multiplier) == ("gpt-6-luna", 0.5)
    assert "does not fit" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "claimed"),
    [
        ({"model": "gpt-6-luna"}, ("gpt-6-luna", "openai")),
        ({"model": "some/model-of-mine:4b", "base_url": "http://127.0.0.1:9/v1"}, ("some/model-of-mine:4b", "openai")),
        ({"model": "gemini-9-pro"}, ("gemini-9-pro", "gemini")),
        ({"model": "gemini-2.5-flash", "fallback": "gemini", "name": "llama-3-8b"}, ("gemini-2.5-flash", "gemini")),
        ({"name": "gpt-6-luna"}, ("gpt-6-luna", "openai")),
    ],
)
def test_any_model_of_a_provider_can_be_named_and_is_the_one_that_answers(
    on: Callable[[Hardware], None],
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, str],
    claimed: tuple[str, str],
) -> None:
    on(machine(ram_gb=2))
    for variable in API_KEYS.values():
        monkeypatch.setenv(variable, "sk-test")
    claim, facts, _ = opened(**wanted)
    assert (claim.model_name, claim.model_info.provider) == claimed
    assert facts["model"] == claim.model_name and claim.multiplier == 0.5


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"model": "gpt-6-luna", "name": "gpt-4-turbo"}, "name one of them"),
        ({"model": "gpt-6-luna", "name": "llama-3-8b"}, "add --model.fallback_api"),
        ({"model": "gpt-6-luna", "fallback": "gemini"}, "no model of gemini"),
        ({"model": "gemini-9-pro", "base_url": "http://127.0.0.1:9/v1"}, "speak OpenAI's API"),
        ({"model": "a b"}, "no name of a model"),
    ],
)
def test_two_models_that_do_not_go_together_are_refused(wanted: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        opened(**wanted)


def test_the_fallback_api_stays_idle_while_the_local_model_runs(
    on: Callable[[Hardware], None], small_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(machine())
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    claim, facts, _ = opened(name="smollm2-135m", fallback="openai")
    assert facts["model"] == claim.model_name == "smollm2-135m"


def test_model_name_from_the_environment_yields_to_the_option(tmp_path: Path) -> None:
    described = tmp_path / "machine.json"
    described.write_text('{"gpus": [{"name": "RTX 3090", "total_gb": 24}], "ram_gb": 64, "cpu_bandwidth_gb_s": 40}')
    command = ["place", "--hardware", str(described), "--json"]

    def placed(*options: str) -> str:
        result = CliRunner().invoke(cli, [*command, *options], env={"MODEL_NAME": "llama-3-8b"})
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["model"]

    assert placed() == "llama-3-8b"
    assert placed("--model.name", "mistral-7b") == "mistral-7b"


# --- the net at loading ----------------------------------------------------------------------------------------


class TwoFiles(Catalog):
    """Of every model, its two coarsest files of the default order are here."""

    def __init__(self, spec: ModelSpec) -> None:
        self.here = spec.files[1:3]

    def header(self, spec: ModelSpec, file: GGUFFile) -> Header | None:
        return None

    def missing_bytes(self, spec: ModelSpec, file: GGUFFile) -> int:
        return 0 if file in self.here else file.size_bytes


@pytest.mark.usefixtures("described")
def test_a_load_goes_down_one_line_a_step_and_claims_what_it_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rung fails but the last, a coarser file that is here: never another model, never a crash."""
    spec = REGISTRY.find("llama-3-8b")
    assert isinstance(spec, ModelSpec)
    catalog = TwoFiles(spec)
    coarse, fine = catalog.here
    tried: list[tuple[str, EngineSettings]] = []

    class Cramped:
        def __init__(self, model: local.LocalModel, settings: EngineSettings, gpu_memory_gb: float, _: None) -> None:
            tried.append((model.path.name, settings))
            if model.quantization == fine.quant:
                raise DoesNotFit("another program took the memory")
            self.claim = SimpleNamespace(model_name=model.name, version=model.quantization, gb=gpu_memory_gb)

    monkeypatch.setattr(local, "LocalModelLoader", Cramped)
    hardware = machine(gpu_gb=24)
    notes: list[str] = []
    start = place(REGISTRY, hardware, ModelOptions(name="llama-3-8b", quant=fine.quant, n_ctx=8192), catalog)
    opener = LocalOpener(Notices(lambda *_: None, notes.append), REGISTRY, hardware)
    monkeypatch.setattr(opener, "_catalog", catalog)
    placed = PlacedFile(start, Path(fine.parts[0].path))
    monkeypatch.setattr(opener, "find", lambda options: placed)
    loader, facts = opener.loader(ModelOptions(name="llama-3-8b", n_ctx=8192), warm_up=False)

    assert all("\n" not in note and note.startswith("another program took the memory; trying again") for note in notes)
    steps = [note.split(" with ")[1] for note in notes]
    assert steps[:3] == ["one request at a time", "keys and values as q8_0", "keys and values as q4_0"]
    assert steps[-2:] == [f"{MIN_CONTEXT} tokens of context", f"the coarser file {coarse.quant}"]
    assert all("layers on the GPU" in step for step in steps[3:-2]) and len(steps[3:-2]) > 1
    layers = [settings.n_gpu_layers for _, settings in tried[: len(steps)]]
    assert layers == sorted(layers, reverse=True) and layers[-1] == 0
    assert len(tried) == len(notes) + 1 and tried[-1][0] == coarse.parts[0].path
    assert (loader.claim.model_name, loader.claim.version) == ("llama-3-8b", coarse.quant)  # type: ignore[attr-defined]
    assert (facts["model"], facts["quantization"]) == ("llama-3-8b", coarse.quant)


@pytest.mark.usefixtures("described")
def test_with_no_rung_left_the_reason_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DoesNotFit("another program took the memory")

    monkeypatch.setattr(local, "LocalModelLoader", refuse)
    hardware = machine(gpu_gb=24)
    start = place(REGISTRY, hardware, ModelOptions(name="llama-3-8b"), Catalog())
    opener = LocalOpener(SILENT, REGISTRY, hardware)
    monkeypatch.setattr(opener, "_catalog", Catalog())
    monkeypatch.setattr(opener, "find", lambda options: PlacedFile(start, Path("x.gguf")))
    with pytest.raises(DoesNotFit, match="another program"):
        opener.loader(ModelOptions(), warm_up=False)


# --- provers ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("described")
@pytest.mark.parametrize(
    ("gpus_gb", "model", "quant"), [((24,), "mixtral-8x7b", "Q4_K_M"), ((24, 24), "llama-3-70b", "IQ4_XS")]
)
def test_a_prover_gets_the_whole_layout(
    monkeypatch: pytest.MonkeyPatch, gpus_gb: tuple[int, ...], model: str, quant: str
) -> None:
    """Also experts in RAM and the split between cards: a layout cut down to a number of layers needs more than there is."""
    given: list[EngineSettings] = []
    monkeypatch.setattr(proof, "Prover", lambda path, settings, template: given.append(settings))
    monkeypatch.setattr(local_opening, "read_local", lambda path: None)  # planned by the registry's figures
    gpus = tuple(Gpu("RTX 3090", gb << 30, gb << 30, 936.0, index=at) for at, gb in enumerate(gpus_gb))
    hardware = replace(machine(), gpus=gpus)
    spec = REGISTRY.find(model)
    assert isinstance(spec, ModelSpec)
    LocalOpener(SILENT, REGISTRY, hardware).prover_of(spec, spec.file(quant), Path("x.gguf"))
    planned = place_file(spec, spec.file(quant), hardware, ModelOptions(kv_type="f16"), None)
    assert isinstance(planned, Placement) and given == [planned.settings]
    assert (given[0].experts_in_ram > 0) == (model == "mixtral-8x7b") and len(given[0].tensor_split) in (0, len(gpus))
    room = [*(gpu.free_bytes for gpu in gpus), hardware.ram_available_bytes]
    assert all(need.total_bytes < free for need, free in zip(planned.demands, room, strict=True))


@pytest.mark.usefixtures("described")
@pytest.mark.parametrize(("gpu_gb", "ram_gb", "layers"), [(0, 8, 0), (24, 4, 40)])
def test_a_prover_without_memory_for_a_file_leaves_the_weights_in_it(
    monkeypatch: pytest.MonkeyPatch, gpu_gb: float, ram_gb: float, layers: int
) -> None:
    """What the GPU holds it holds; no miner is given such a layout, which reads the whole file for each token."""
    given: list[EngineSettings] = []
    notes: list[str] = []
    monkeypatch.setattr(proof, "Prover", lambda path, settings, template: given.append(settings))
    monkeypatch.setattr(local_opening, "read_local", lambda path: None)
    spec = REGISTRY.find("llama-3-70b")
    assert isinstance(spec, ModelSpec)
    hardware = machine(gpu_gb, ram_gb)
    with pytest.raises(DoesNotFit):
        place_file(spec, spec.file("IQ4_XS"), hardware, ModelOptions(), None)
    opener = LocalOpener(Notices(lambda *_: None, notes.append), REGISTRY, hardware)
    opener.prover_of(spec, spec.file("IQ4_XS"), Path("x.gguf"))
    assert given[0].mapped and given[0].n_ubatch == given[0].n_batch >= 1024 and given[0].n_gpu_layers >= layers
    assert bool(gpu_gb) == (given[0].n_contexts == 1)  # several batches share one reading of the file
    assert "the weights stay in the file" in notes[0]


@pytest.mark.usefixtures("described")
def test_a_prover_never_steps_down_to_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DoesNotFit("another program took the memory")

    monkeypatch.setattr(proof, "Prover", refuse)
    monkeypatch.setattr(local_opening, "read_local", lambda path: None)
    spec = REGISTRY.find("llama-3-8b")
    assert isinstance(spec, ModelSpec)
    notes: list[str] = []
    opener = LocalOpener(Notices(lambda *_: None, notes.append), REGISTRY, machine(gpu_gb=24))
    monkeypatch.setattr(opener, "_catalog", TwoFiles(spec))
    with pytest.raises(DoesNotFit, match="another program"):
        opener.prover_of(spec, TwoFiles(spec).here[1], Path("x.gguf"))
    assert notes and not any("coarser" in note or "keys and values" in note for note in notes)
