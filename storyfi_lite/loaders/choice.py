"""Which model this machine runs, and its loader: a file or name that the user gave, else the machine's best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storyfi_lite.errors import BadInput
from storyfi_lite.loaders.base import Loader
from storyfi_lite.registry import ApiModel, GGUFFile, ModelSpec, Registry, load_registry
from storyfi_lite.store import Store

if TYPE_CHECKING:
    from storyfi_lite.loaders.local import LocalModel, LocalModelLoader

CPU_MODEL = "smollm2-135m"
UNLISTED_MULTIPLIER = 1.0  # the subnet's rule for a local model that the registry does not know


@dataclass(frozen=True)
class ModelChoice:
    """What the user asked for; None leaves it to the machine."""

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
    """The file to fetch or load. Raises BadInput for an API model or an unknown name."""
    spec = registry.find(model or CPU_MODEL)
    if isinstance(spec, ApiModel):
        raise BadInput(f"{spec.key} is an API model; there is nothing to fetch")
    if quant:
        return spec, spec.file(quant)
    here = [file for file in spec.files if store.is_complete(spec, file)]
    if here:
        return spec, here[-1]
    return spec, next((f for q in ("Q4_1", "Q4_K_M") for f in spec.files if f.quant == q), spec.files[-1])


def open_loader(choice: ModelChoice, notices: Notices, warm_up: bool = False) -> tuple[Loader, Mapping[str, str]]:
    """A loader that is ready to answer, and what an operator wants to read about it. Fetches the file if it is missing.
    With `warm_up` its first real answer is as fast as the later ones.

    Raises BadInput, Unavailable, DoesNotFit, EngineError or ConfigError.
    """
    if choice.name and choice.path:
        raise BadInput("--model.name and --model.path exclude each other")
    from storyfi_lite.loaders.local import LocalModel

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

    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    sha256 = file_sha256(path)
    for spec in load_registry().local:
        for file in spec.files:
            if [part.sha256 for part in file.parts] == [sha256]:
                return LocalModel(path, spec.key, file.quant, spec.repository, spec.multiplier, spec.chat_template)
    return LocalModel(path, path.stem, "unknown", "unlisted", UNLISTED_MULTIPLIER)


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
    return loader, facts
