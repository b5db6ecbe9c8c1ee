"""Which model this machine runs, and its loader, ready to answer. A path or name that the user gave, else the machine's best.

A GPU that llama.cpp can use: a local model. None, and an API key: that API, at half the reward. Neither: the small CPU
model, if it is fast enough. Else a refusal with the three ways out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from storyfi_lite.errors import BadInput, ConfigError, DoesNotFit, Unavailable
from storyfi_lite.hardware import Hardware, probe
from storyfi_lite.loaders.base import Loader
from storyfi_lite.placement.plan import Placement, Policy, Wish, place, place_unlisted
from storyfi_lite.placement.shelf import StoreShelf
from storyfi_lite.registry import ApiModel, GGUFFile, ModelSpec, Registry, load_registry
from storyfi_lite.store import Store

if TYPE_CHECKING:
    from storyfi_lite.loaders.local import LocalModel, LocalModelLoader

CPU_MODEL = "smollm2-135m"
UNLISTED_MULTIPLIER = 1.0  # the subnet's rule for a local model that the registry does not know


@dataclass(frozen=True)
class ModelChoice:
    """What the user asked for; None leaves it to the machine. `daily_*`: caps on what the APIs may cost."""

    name: str | None = None
    path: Path | None = None
    quant: str | None = None
    n_ctx: int | None = None
    n_threads: int | None = None


@dataclass(frozen=True)
class Notices:
    """Where progress and remarks go: the command line shows them, the miner logs them."""

    progress: Callable[[str, int, int], None]
    note: Callable[[str], None]


def choose_file(registry: Registry, store: Store, model: str | None, quant: str | None) -> tuple[ModelSpec, GGUFFile]:
    """The file to fetch. A model and a quantization that are both named are not argued with.

    Raises BadInput for an API model or an unknown name, DoesNotFit with every model's reason."""
    if model and quant:
        spec = registry.find(model)
        if isinstance(spec, ApiModel):
            raise BadInput(f"{spec.key} is an API model; there is nothing to fetch")
        return spec, spec.file(quant)
    found = place(registry, probe(store.root), Wish(model=model, quant=quant), StoreShelf(store))
    return found.spec, found.file


def open_loader(choice: ModelChoice, notices: Notices, warm_up: bool = False) -> tuple[Loader, Mapping[str, str]]:
    """A loader that is ready to answer, and what an operator wants to read about it. Fetches the file if it is missing.
    With `warm_up` its first real answer is as fast as the later ones.

    Raises BadInput, Unavailable, DoesNotFit, EngineError or ConfigError.
    """
    if choice.name and choice.path:
        raise BadInput("--model.name and --model.path exclude each other")
    named = load_registry().find(choice.name) if choice.name else None
    if isinstance(named, ApiModel):
        return _open_apis(named.provider, choice)
    if choice.fallback_api:
        return _open_with_fallback(choice, notices)
    hardware = probe()
    if not choice.is_explicit and (provider := choose_api(hardware, choice)):
        notices.note(f"no GPU that llama.cpp can use: answers come from the {provider} API, at half the reward")
        return _open_apis(provider, choice)
    return _open_local(choice, notices, hardware)


def choose_api(hardware: Hardware, choice: ModelChoice) -> str | None:
    """The API to use where there is no GPU, None if a local model it shall be. Raises ConfigError for a GPU that lies idle
    because of llama.cpp's build: half the reward should be nobody's surprise."""
    if hardware.fault:
        raise ConfigError(f"{hardware.fault}\n  or name what you want: --model.name, --model.path, --model.fallback_api")
    if hardware.usable_gpus:
        return None
    from storyfi_lite.secrets import load_key

    return next((p for p, variable in API_PROVIDERS.items() if load_key(variable, choice.api_key_file)), None)


# --- local -----------------------------------------------------------------------------------------------------


def _open_local(choice: ModelChoice, notices: Notices, hardware: Hardware) -> tuple[Loader, Mapping[str, str]]:
    """Places, fetches, places again by the file's own header, loads; steps down as long as memory is the trouble."""
    if hardware.fault:
        notices.note(hardware.fault)
    shelf = StoreShelf(Store())
    if choice.path:
        model = _unlisted(choice.path)
    else:
        store = Store()
        spec, file = choose_file(load_registry(), store, choice.name, choice.quant)
        path = store.pull(spec, file, notices.progress, notices.note)
        model = LocalModel(path, spec.key, file.quant, spec.repository, spec.multiplier, spec.chat_template)
    loader, facts = _open_local(model, choice)
    if warm_up:
        loader.warm_up()
    return loader, facts


def _unlisted(path: Path) -> LocalModel:
    """A file that the user points at. If it is one of the registry's, byte for byte, it is that model."""
    from storyfi_lite.digest import file_sha256
    from storyfi_lite.loaders.local import LocalModel

    spec = placement.spec
    return LocalModel(path, spec.key, placement.file.quant, spec.repository, spec.multiplier, spec.chat_template)


def _open_local(model: LocalModel, choice: ModelChoice) -> tuple[LocalModelLoader, Mapping[str, str]]:
    import llama_cpp

    from storyfi_lite.engine.settings import EngineSettings
    from storyfi_lite.loaders.local import LocalModelLoader

    settings = EngineSettings(
        n_ctx=choice.n_ctx or EngineSettings.n_ctx,
        n_threads=choice.n_threads or EngineSettings.n_threads,
        n_gpu_layers=999 if llama_cpp.llama_supports_gpu_offload() else 0,
    )
    loader = LocalModelLoader(model, settings)
    facts = {
        "model": model.name,
        "file": model.path.name,
        "quantization": model.quantization,
        "multiplier": f"{model.multiplier:g}",
        "context": f"{settings.n_ctx} tokens, {settings.n_slots} slot(s)",
    }


# --- APIs ------------------------------------------------------------------------------------------------------


def _api_choices(provider: str, choice: ModelChoice) -> list["object"]:
    import platformdirs

    from storyfi_lite.loaders.api import ApiSettings
    from storyfi_lite.loaders.fallback import api_choices
    from storyfi_lite.loaders.meter import Caps, Meter

    models = {model.provider: model for model in load_registry().api}
    settings = {
        name: ApiSettings(model.key, model.multiplier, choice.api_base_url if name == "openai" else None)
        for name, model in models.items()
    }
    meter = Meter(Path(platformdirs.user_state_dir("storyfi-lite")) / "api-usage.json", Caps(tokens=choice.daily_tokens))
    return list(api_choices(provider, settings, meter, choice.api_key_file))


def _open_apis(provider: str, choice: ModelChoice) -> tuple[Loader, Mapping[str, str]]:
    from storyfi_lite.loaders.fallback import FallbackLoader

    loader = FallbackLoader(_api_choices(provider, choice), while_running=choice.fallback_api is not None)  # type: ignore[arg-type]
    return loader, _api_facts(loader)


def _open_with_fallback(choice: ModelChoice, notices: Notices) -> tuple[Loader, Mapping[str, str]]:
    """The local model, and the named API when it cannot run or dies."""
    from storyfi_lite.loaders.fallback import Choice, FallbackLoader

    facts: dict[str, str] = {}

    def open_local() -> Loader:
        loader, card = _open_local(choice, notices, probe())
        facts.update(card)
        return loader

    choices = [Choice("local model", open_local), *_api_choices(choice.fallback_api or "", choice)]
    loader = FallbackLoader(choices, while_running=True)  # type: ignore[arg-type]
    return loader, facts or _api_facts(loader)


def _api_facts(loader: Loader) -> Mapping[str, str]:
    claim = loader.claim
    return {"model": claim.model_name, "quantization": "API", "multiplier": f"{claim.multiplier:g}", "provider": claim.model_info.provider}
