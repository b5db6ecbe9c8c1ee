"""Opens a model file on this machine: options -> placement -> file -> loader or prover, with the whole layout.

A loader that answers and a prover that replays are opened alike, so that both run the layout that was planned. Calls no API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from storyfi_lite.errors import BadInput, ConfigError, DoesNotFit, Unavailable
from storyfi_lite.machine import selftest
from storyfi_lite.machine.hardware import Hardware, broken_hint, from_json, probe
from storyfi_lite.models.digest import file_sha256
from storyfi_lite.models.gguf import architecture, read_local
from storyfi_lite.models.registry import ApiModel, GGUFFile, ModelSpec, Part, Registry, load_registry, unlisted_model
from storyfi_lite.models.resolve import Resolved, resolve
from storyfi_lite.models.store import Store
from storyfi_lite.options import ModelOptions
from storyfi_lite.placement.catalog import Catalog, StoreCatalog
from storyfi_lite.placement.plan import Placement, place, place_file, place_one
from storyfi_lite.placement.step_down import step_down

if TYPE_CHECKING:
    from storyfi_lite.loaders.local import LocalModelLoader
    from storyfi_lite.validator.proof import Prover

T = TypeVar("T")

UNLISTED = "unlisted"
WAYS_OUT = (
    "three ways out:\n"
    "  a GPU that llama.cpp can use       storyfi-lite probe says what is missing\n"
    "  an API key, at half the reward     export GEMINI_API_KEY=… or OPENAI_API_KEY=…\n"
    "  a model of your choice, though slow   --model.name smollm2-135m"
)


@dataclass(frozen=True)
class Notices:
    """Receives progress and remarks: the command line shows them, the miner logs them."""

    progress: Callable[[str, int, int], None]
    note: Callable[[str], None]


SILENT = Notices(lambda name, done, total: None, lambda note: None)


def every_tenth(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """Return a progress that says a line every ten percent of a download."""
    tenths: dict[str, int] = {}

    def progress(name: str, done: int, total: int) -> None:
        if (tenth := done * 10 // total) != tenths.get(name):
            tenths[name] = tenth
            say(f"{name}: {tenth * 10} % of {total / 1e6:,.0f} MB")

    return progress


@dataclass(frozen=True)
class PlacedFile:
    """Pairs a model file on disk with the layout to load it with."""

    placement: Placement
    path: Path


class LocalOpener:
    """Opens model files. It keeps the registry, the machine's description and the store, so that each is read once."""

    def __init__(self, notices: Notices, registry: Registry | None = None, hardware: Hardware | None = None) -> None:
        self.registry = registry or load_registry()
        # in a repository that the hub was asked for; pinned before the first download
        self._found: Resolved | None = None
        self._given_hardware = hardware
        self._notices = notices
        self.store = Store()
        self._catalog = StoreCatalog(self.store)

    @cached_property
    def hardware(self) -> Hardware:
        return self._given_hardware or probe()

    @classmethod
    def for_planning(cls, described: Path | None) -> tuple[LocalOpener, Catalog]:
        """Return an opener that plans for this machine, or for one that a file describes, with what is known of the files there:
        of a machine that is only described, nothing. Raises BadInput for a wrong description."""
        if described is None:
            opener = cls(SILENT)
            return opener, opener._catalog
        return cls(SILENT, hardware=from_json(described)), Catalog()

    def resolve(self, options: ModelOptions) -> ModelOptions:
        """Return the options with a key of the registry, or a path, in the place of any other name. May ask the hub; raises what
        models.resolve.resolve raises."""
        resolved = resolve(options, self.registry)
        if resolved.fresh:
            self._found = resolved
        self.registry = resolved.registry
        return resolved.options

    def loader(self, options: ModelOptions, warm_up: bool) -> tuple[LocalModelLoader, Mapping[str, str]]:
        """Open a loader that is ready to answer; returns it with facts for the operator. With `warm_up` its first real answer
        is as fast as the later ones. Raises BadInput, Unavailable, DoesNotFit or EngineError."""
        from storyfi_lite.loaders.local import LocalModel, LocalModelLoader

        options = self.resolve(options)
        concerns_gpus = self.hardware.llama_gpu_build or self.hardware.gpus
        for said in filter(None, (self.hardware.fault, *(self.hardware.hints if concerns_gpus else ()))):
            self._notices.note(said)

        def make(placed: PlacedFile) -> LocalModelLoader:
            spec, file = placed.placement.spec, placed.placement.file
            model = LocalModel(
                path=placed.path,
                name=spec.key,
                quantization=file.quant,
                provider=spec.repository,
                multiplier=spec.multiplier,
                chat_template=spec.chat_template,
            )
            memory_gb = gpu_memory_gb(placed.placement, self.hardware)
            return LocalModelLoader(model, placed.placement.settings, memory_gb, options.think_tokens)

        placed = self.find(options)
        if warm_up:
            self._notices.note(f"loading {placed.path.name}, {placed.placement.where}")
        placed, loader = self.load(placed, options, make)
        if warm_up:
            self._notices.note("measuring how fast it writes here")
            loader.warm_up()
        return loader, _facts(placed)

    def prover(self, options: ModelOptions) -> Prover:
        """Load the file that the options name, for replays; where there is no memory for it, leave the weights in the file. Raises
        what `loader` raises."""
        wanted = self.resolve(replace(options, kv_type=options.kv_type or "f16"))
        return self._or_mapped(wanted, lambda options: self._prover(self.find(options), options))

    def prover_of(self, spec: ModelSpec, file: GGUFFile, path: Path, n_threads: int | None = None) -> Prover:
        """Load a file for replays that the caller knows to be `file` of `spec`. Raises what `loader` raises."""
        header = read_local(path) if len(file.parts) == 1 else None

        def load(options: ModelOptions) -> Prover:
            placed = self._sound(lambda: PlacedFile(place_file(spec, file, self.hardware, options, header), path))
            return self._prover(placed, options)

        wanted = ModelOptions(name=spec.key, quant=file.quant, kv_type="f16", n_threads=n_threads)
        return self._or_mapped(wanted, load)

    def _or_mapped(self, options: ModelOptions, load: Callable[[ModelOptions], Prover]) -> Prover:
        try:
            return load(options)
        except DoesNotFit as error:
            try:
                prover = load(replace(options, mapped=True))
            except DoesNotFit:
                raise error from None
            self._notices.note(f"{error}; the weights stay in the file and are read once a batch")
            return prover

    def _prover(self, placed: PlacedFile, options: ModelOptions) -> Prover:
        from storyfi_lite.validator.proof import Prover

        def make(one: PlacedFile) -> Prover:
            return Prover(one.path, one.placement.settings, one.placement.spec.chat_template)

        spec, file = placed.placement.spec, placed.placement.file
        only_this = options if options.path else replace(options, name=spec.key, quant=file.quant)
        return self.load(placed, only_this, make)[1]

    # --- which file -------------------------------------------------------------------------------------------------

    def find(self, options: ModelOptions) -> PlacedFile:
        """Find the file that the options ask for, fetch it if it is missing, and place it by its own header."""
        return self._sound(lambda: self._find(options))

    def _sound(self, place: Callable[[], PlacedFile]) -> PlacedFile:
        """Place until the GPU is sound in all that the file needs: where it is not, such files are for the CPU."""
        while True:
            placed = place()
            needs = placed.placement.loads.products if placed.placement.settings.n_gpu_layers else ()
            if untested := selftest.untested("gpu", needs):
                self._notices.note(f"testing llama.cpp on the GPU, once: {', '.join(untested)}")
            wrong = selftest.wrong("gpu", needs)
            if not wrong:
                return placed
            for part, why in wrong.items():
                self._notices.note(broken_hint(part, why))
            self.hardware = replace(self.hardware, broken=(*self.hardware.broken, *wrong))

    def _find(self, options: ModelOptions) -> PlacedFile:
        known = {file.quant for spec in self.registry.local for file in spec.files}
        if options.quant and not options.name and options.quant.upper() not in {quant.upper() for quant in known}:
            raise BadInput(f"no file has the quantization {options.quant!r}; there are {', '.join(sorted(known))}")
        if options.path:
            return PlacedFile(self.place_path(options.path, options), options.path)
        placement = self._place(options)
        if self._catalog.ask_hub(placement.spec, placement.file):
            placement = self._place(options)
        if self._found:
            self._found.keep()
            self._found = None
        try:
            path = self.store.pull(placement.spec, placement.file, self._notices.progress, self._notices.note)
        except (Unavailable, BadInput, DoesNotFit, ConfigError) as error:  # no hub, another file than we know, no place
            here = None if options.quant else self._best_here(options)
            if here is None:
                raise
            self._notices.note(f"{error}; taking what is here already")
            placement, path = here, self.store.path(here.spec, here.file)
        exact = replace(options, name=placement.spec.key, quant=placement.file.quant)
        return PlacedFile(replace(self._place(exact), reasons=placement.reasons), path)

    def _place(self, options: ModelOptions, registry: Registry | None = None) -> Placement:
        try:
            return place(registry or self.registry, self.hardware, options, self._catalog)
        except DoesNotFit as error:
            ways_out = "leave out --ctx: every task has room without it" if options.n_ctx else WAYS_OUT
            raise error if options.name else DoesNotFit(f"{error}\n{ways_out}") from None

    def _best_here(self, options: ModelOptions) -> Placement | None:
        """Choose among the files on disk, of the named model only if one is named; None if there are none."""
        wanted = [self.registry.find(options.name)] if options.name else self.registry.local
        whole = [(spec, tuple(file for file in spec.files if self.store.is_complete(spec, file)))
                 for spec in wanted if isinstance(spec, ModelSpec)]  # fmt: skip
        here = [spec.model_copy(update={"files": files}) for spec, files in whole if files]
        if not here:
            return None
        if options.name:
            return place_one(here[0], self.hardware, options, self._catalog)
        return self._place(options, Registry(local=tuple(here), api=self.registry.api))

    def place_path(self, path: Path, options: ModelOptions) -> Placement:
        """Place a file that the user points at. A file that is, byte for byte, one of the registry's counts as that model."""
        if not path.is_file():
            raise BadInput(f"there is no file {path}")
        header = read_local(path)
        sha256 = file_sha256(path)
        for spec in self.registry.local:
            for file in spec.files:
                if [part.sha256 for part in file.parts] == [sha256]:
                    return place_file(spec, file, self.hardware, options, header)
        key = re.sub(r"[^a-z0-9._-]", "-", path.stem.lower()).strip("._-") or UNLISTED
        if self.registry.get(key) is not None:
            key = f"{UNLISTED}-{key}"
        part = Part(path=f"{key}.gguf", size_bytes=path.stat().st_size, exact=True)
        file = GGUFFile(quant="unknown", parts=(part,), hub=None)
        spec = unlisted_model(key, UNLISTED, "unknown", architecture(header, path.name), (file,))
        return place_file(spec, file, self.hardware, options, header)

    # --- loading ----------------------------------------------------------------------------------------------------

    def load(self, placed: PlacedFile, options: ModelOptions, make: Callable[[PlacedFile], T]) -> tuple[PlacedFile, T]:
        """Load the file with `make`. If a layout does not fit by llama.cpp's own figures, or runs out of memory, the next smaller
        one is tried. A file that the shipped registry does not list is opened by a child process first. Raises what `make` raises
        when there is no smaller layout left."""
        from storyfi_lite.engine.dry_run import measure, refuse_if_it_crashes

        if placed.placement.spec.tier == "own":
            refuse_if_it_crashes(placed.path)
        while True:
            try:
                told = measure(placed.path, placed.placement.settings)
                placed = replace(placed, placement=placed.placement.measured(told, self.hardware))
                made = make(placed)
                spec, file = placed.placement.spec, placed.placement.file
                if placed.path == self.store.path(spec, file):
                    self.store.mark_used(spec, file)
                return placed, made
            except DoesNotFit as error:
                lower = step_down(placed.placement, options, self.hardware, self._catalog)
                if lower is None:
                    raise
                placement, words = lower
                same = placement.file == placed.placement.file
                path = placed.path if same else self.store.path(placement.spec, placement.file)
                placed = PlacedFile(placement, path)
                self._notices.note(f"{error}; trying again with {words}")


def gpu_memory_gb(placement: Placement, hardware: Hardware) -> float:
    """Add up the total memory of the GPUs that are used, in GiB, which NVIDIA calls GB; 0 on the CPU."""
    if not placement.settings.n_gpu_layers:
        return 0.0
    used = zip(hardware.usable_gpus, placement.demands[:-1], strict=True)
    return round(sum(gpu.total_bytes for gpu, need in used if need.total_bytes) / 2**30, 1)


def file_to_pull(registry: Registry, store: Store, options: ModelOptions) -> tuple[ModelSpec, GGUFFile]:
    """Choose the file to fetch, of options that were resolved. If model and quantization are both named, that file is fetched
    whether it fits or not.

    Raises BadInput for an API model or an unknown name, DoesNotFit with every model's reason."""
    if options.path:
        raise BadInput(f"{options.path} is here already; there is nothing to fetch")
    if options.name and options.quant:
        spec = registry.find(options.name)
        if isinstance(spec, ApiModel):
            raise BadInput(f"{spec.key} is an API model; there is nothing to fetch")
        return spec, spec.file(options.quant)
    found = place(registry, probe(store.root), options, StoreCatalog(store))
    return found.spec, found.file


def _facts(placed: PlacedFile) -> Mapping[str, str]:
    placement, settings = placed.placement, placed.placement.settings
    return {
        "model": placement.spec.key,
        "file": placed.path.name,
        "quantization": placement.file.quant,
        "multiplier": f"{placement.spec.multiplier:g}",
        "context": f"{settings.n_ctx} tokens, {settings.n_slots} slot(s), {settings.kv_type} keys and values",
        "placed": placement.where,
        "predicted": f"{placement.speed.tokens_per_s:.0f} tokens/s; {placement.earnings.seconds_in_words}; "
        f"expected reward {placement.earnings.reward:.2f}",
    }
