"""Which model this machine runs, and its loader, ready to answer. A path or name that the user gave, else the machine's best.

A GPU that llama.cpp can use: a local model. None, and an API key: that API, at half the reward. Neither: the small CPU
model, if it is fast enough. Else a refusal with the three ways out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from storyfi_lite.errors import BadInput, ConfigError, DoesNotFit, Unavailable
from storyfi_lite.loaders.base import Loader
from storyfi_lite.machine.hardware import Hardware, probe
from storyfi_lite.models.gguf import Header, architecture, read_local
from storyfi_lite.models.registry import ApiModel, GGUFFile, ModelSpec, Part, Registry, load_registry
from storyfi_lite.models.store import Store
from storyfi_lite.placement.catalog import StoreCatalog
from storyfi_lite.placement.plan import Placement, PlacementPolicy, Wish, place, place_file, place_one
from storyfi_lite.placement.step_down import step_down

if TYPE_CHECKING:
    from storyfi_lite.loaders.local import LocalModelLoader

API_KEYS = {"gemini": "GEMINI_API_KEY", "openai": "OPENAI_API_KEY"}
UNLISTED = "unlisted"
UNLISTED_MULTIPLIER = 1.0  # the subnet's rule for a local model that the registry does not know
WAYS_OUT = (
    "three ways out:\n"
    "  a GPU that llama.cpp can use       storyfi-lite probe says what is missing\n"
    "  an API key, at half the reward     export GEMINI_API_KEY=… or OPENAI_API_KEY=…\n"
    "  a model of your choice, though slow   --model.name smollm2-135m"
)


@dataclass(frozen=True)
class ModelChoice:
    """What the user asked for; None leaves it to the machine. `daily_*`: caps on what the APIs may cost. `api_prices`:
    (model, prompt, completion), in US dollars for a million tokens."""

    name: str | None = None
    path: Path | None = None
    quant: str | None = None
    n_ctx: int | None = None
    n_threads: int | None = None
    policy: PlacementPolicy = "reward"
    min_quant: str | None = None
    fallback_api: str | None = None
    api_base_url: str | None = None
    api_key_file: Path | None = None
    daily_tokens: int | None = None
    api_prices: tuple[tuple[str, float, float], ...] = ()
    daily_usd: float | None = None

    @property
    def wish(self) -> Wish:
        min_quant = self.min_quant or Wish.min_quant
        return Wish(self.policy, self.name, self.quant, self.n_ctx, min_quant, self.n_threads)

    @property
    def is_explicit(self) -> bool:
        return bool(self.name or self.path or self.quant)


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
    found = place(registry, probe(store.root), Wish(model=model, quant=quant), StoreCatalog(store))
    return found.spec, found.file


def open_loader(choice: ModelChoice, notices: Notices, warm_up: bool = False) -> tuple[Loader, Mapping[str, str]]:
    """A loader that is ready to answer, and what an operator wants to read about it. Fetches the file if it is missing.
    With `warm_up` its first real answer is as fast as the later ones.

    Raises BadInput, Unavailable, DoesNotFit, EngineError or ConfigError.
    """
    _check(choice)
    from storyfi_lite.opening import api

    named = load_registry().find(choice.name) if choice.name else None
    if isinstance(named, ApiModel):
        if choice.quant:
            raise BadInput(f"{named.key} is an API model; it has no quantizations")
        return api.open_api_only(named.provider, choice)
    hardware = probe()

    def local() -> tuple[Loader, Mapping[str, str]]:
        if choice.api_base_url and not choice.fallback_api:
            raise BadInput(
                "--api.base-url is for OpenAI, and a local model answers here\n"
                "  --model.name gpt-4-turbo, or --model.fallback_api openai"
            )
        return _open_local(choice, notices, hardware, warm_up)

    if choice.fallback_api:
        return api.open_with_fallback(choice.fallback_api, choice, local)
    if not choice.is_explicit and (provider := choose_api(hardware, choice)):
        notices.note(f"no GPU that llama.cpp can use: answers come from the {provider} API, at half the reward")
        return api.open_api_only(provider, choice)
    return local()


def open_local(choice: ModelChoice, notices: Notices) -> tuple[LocalModelLoader, Mapping[str, str]]:
    """The same, warmed up, of a model on this machine and never an API. Raises BadInput for an API model."""
    _check(choice)
    return _open_local(choice, notices, probe(), warm_up=True)


def _check(choice: ModelChoice) -> None:
    if choice.path and (choice.name or choice.quant):
        raise BadInput("--model.path names one file: --model.name and --quant do not go with it")
    if choice.quant and not choice.name:
        known = {file.quant for spec in load_registry().local for file in spec.files}
        if choice.quant.upper() not in {quant.upper() for quant in known}:
            raise BadInput(f"no file has the quantization {choice.quant!r}; there are {', '.join(sorted(known))}")
    if choice.api_base_url is not None:
        _check_base_url(choice.api_base_url)


def _check_base_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        fine = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", url)
        )
    except ValueError:
        fine = False
    if not fine:
        raise BadInput("--api.base-url is no address of a server\n  --api.base-url http://127.0.0.1:8000/v1")


def choose_api(hardware: Hardware, choice: ModelChoice) -> str | None:
    """The API to use where there is no GPU, None if a local model it shall be. Raises ConfigError for a GPU that lies
    idle because of llama.cpp's build: half the reward should be nobody's surprise."""
    if hardware.fault:
        raise ConfigError(f"{hardware.fault}\n  or say what to run: --model.name, --model.path, --model.fallback_api")
    if hardware.usable_gpus:
        return None
    from storyfi_lite.loaders.keys import load_key

    return next((name for name, key in API_KEYS.items() if load_key(key, choice.api_key_file)), None)


# --- local -----------------------------------------------------------------------------------------------------


def _open_local(
    choice: ModelChoice, notices: Notices, hardware: Hardware, warm_up: bool
) -> tuple[LocalModelLoader, Mapping[str, str]]:
    """Places, fetches, places again by the file's own header, loads; steps down as long as memory is the trouble."""
    if hardware.fault:
        notices.note(hardware.fault)
    catalog = StoreCatalog(Store())
    if choice.path:
        placement, path = _place_path(choice.path, choice, hardware), choice.path
    else:
        placement, path = _fetch(choice, notices, hardware, catalog)
    loader, facts = _load(placement, path, hardware, catalog, notices)
    if warm_up:
        loader.warm_up()
    return loader, facts


def _place_path(path: Path, choice: ModelChoice, hardware: Hardware) -> Placement:
    """A file that the user points at. If it is one of the registry's, byte for byte, it is that model."""
    from storyfi_lite.models.digest import file_sha256

    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    header = read_local(path)
    sha256 = file_sha256(path)
    known = ((spec, file) for spec in load_registry().local for file in spec.files)
    found = next(((spec, file) for spec, file in known if [part.sha256 for part in file.parts] == [sha256]), None)
    spec, file = found or _unlisted(path, header)
    placement = place_file(spec, file, hardware, choice.wish, header)
    if isinstance(placement, DoesNotFit):
        raise placement
    return placement


def _unlisted(path: Path, header: Header) -> tuple[ModelSpec, GGUFFile]:
    part = Part(path=f"{path.stem}.gguf", size_bytes=path.stat().st_size, exact=True)
    file = GGUFFile(quant="unknown", parts=(part,), hub=None)
    spec = ModelSpec(
        key=_unlisted_key(path.stem),
        repository=UNLISTED,
        aliases=(),
        tier="cpu",
        multiplier=UNLISTED_MULTIPLIER,
        licence="unknown",
        architecture=architecture(header, path.name),
        files=(file,),
    )
    return spec, file


def _unlisted_key(stem: str) -> str:
    """The file's own name, spelled as keys are. A file that is merely called like a listed model must not claim to be it."""
    key = re.sub(r"[^a-z0-9._-]", "-", stem.lower()).strip("._-") or UNLISTED
    try:
        load_registry().find(key)
    except BadInput:
        return key
    return f"{UNLISTED}-{key}"


def _fetch(choice: ModelChoice, notices: Notices, hardware: Hardware, catalog: StoreCatalog) -> tuple[Placement, Path]:
    registry, store = load_registry(), Store()
    placement = _place(registry, hardware, choice, catalog)
    if catalog.ask_hub(placement.spec, placement.file):
        placement = _place(registry, hardware, choice, catalog)
    try:
        path = store.pull(placement.spec, placement.file, notices.progress, notices.note)
    except (Unavailable, BadInput, DoesNotFit) as error:  # no hub, another file there than we know, no disk
        here = None if choice.quant else _best_here(registry, hardware, choice, catalog)
        if here is None:
            raise
        notices.note(f"{error}; taking what is here already")
        placement, path = here, store.path(here.spec, here.file)
    exact = replace(choice, name=placement.spec.key, quant=placement.file.quant)
    return replace(_place(registry, hardware, exact, catalog), reasons=placement.reasons), path


def _place(registry: Registry, hardware: Hardware, choice: ModelChoice, catalog: StoreCatalog) -> Placement:
    try:
        return place(registry, hardware, choice.wish, catalog)
    except DoesNotFit as error:
        raise error if choice.name else DoesNotFit(f"{error}\n{WAYS_OUT}") from None


def _best_here(registry: Registry, hardware: Hardware, choice: ModelChoice, catalog: StoreCatalog) -> Placement | None:
    """Of the files that are on disk, of the named model if one is named; None without any."""
    store = Store()
    wanted = [registry.find(choice.name)] if choice.name else registry.local
    whole = [(spec, tuple(file for file in spec.files if store.is_complete(spec, file)))
             for spec in wanted if isinstance(spec, ModelSpec)]  # fmt: skip
    here = [spec.model_copy(update={"files": files}) for spec, files in whole if files]
    if not here:
        return None
    if choice.name:
        return place_one(here[0], hardware, choice.wish, catalog)
    return _place(Registry(local=tuple(here), api=registry.api), hardware, choice, catalog)


def _load(
    placement: Placement, path: Path, hardware: Hardware, catalog: StoreCatalog, notices: Notices
) -> tuple[LocalModelLoader, Mapping[str, str]]:
    from storyfi_lite.loaders.local import LocalModel, LocalModelLoader

    while True:
        spec, file = placement.spec, placement.file
        model = LocalModel(path, spec.key, file.quant, spec.repository, spec.multiplier, spec.chat_template)
        try:
            loader = LocalModelLoader(model, placement.settings, gpu_memory_gb(placement, hardware))
            return loader, _facts(placement, path)
        except DoesNotFit as error:
            lower = step_down(placement, hardware, catalog)
            if lower is None:
                raise
            placement, words = lower
            path = path if placement.file == file else Store().path(spec, placement.file)
            notices.note(f"{error}; trying again with {words}")


def gpu_memory_gb(placement: Placement, hardware: Hardware) -> float:
    """All memory of the GPUs that hold a layer, in GB as NVIDIA counts them; 0 on the CPU."""
    used = zip(hardware.usable_gpus, placement.demands[:-1], strict=True) if placement.settings.n_gpu_layers else ()
    return round(sum(gpu.total_bytes for gpu, need in used if need.total_bytes) / 2**30, 1)


def _facts(placement: Placement, path: Path) -> Mapping[str, str]:
    settings = placement.settings
    return {
        "model": placement.spec.key,
        "file": path.name,
        "quantization": placement.file.quant,
        "multiplier": f"{placement.spec.multiplier:g}",
        "context": f"{settings.n_ctx} tokens, {settings.n_slots} slot(s), {settings.kv_type} keys and values",
        "placed": placement.where,
        "predicted": f"{placement.speed.tokens_per_s:.0f} tokens/s, {placement.speed.blueprint_s:.0f} s for a blueprint",
    }
