"""Chooses which model file a machine should run, and how, with the reasons in words. It loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from storyfi_lite.engine.settings import Demand, EngineSettings
from storyfi_lite.errors import BadInput, DoesNotFit
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.gguf import Header, architecture
from storyfi_lite.models.registry import ApiModel, Architecture, GGUFFile, ModelSpec, Registry
from storyfi_lite.models.store import SPARE_BYTES
from storyfi_lite.options import MIN_QUANT, ModelOptions, PlacementPolicy
from storyfi_lite.placement import memory, speed, weights
from storyfi_lite.placement.catalog import Catalog
from storyfi_lite.placement.fit import Fitter, kv_types, room_bytes
from storyfi_lite.protocol.limits import AIM_S, FULL_MARKS_S

MIN_CONTEXT = 4096  # tokens a slot: the longest task's prompt and answer
# bits a weight, of the layers; orders quantizations from coarse to fine (llama-quantize's own table)
QUANT_BITS = {"IQ1_S": 1.6, "TQ1_0": 1.7, "IQ1_M": 1.8, "IQ2_XXS": 2.1, "TQ2_0": 2.1, "IQ2_XS": 2.3, "IQ2_S": 2.5, "Q2_K": 2.6,
              "IQ2_M": 2.7, "IQ3_XXS": 3.1, "IQ3_XS": 3.3, "IQ3_S": 3.4, "Q3_K_S": 3.5, "IQ3_M": 3.7, "Q3_K": 3.9, "Q3_K_M": 3.9,
              "Q3_K_L": 4.2, "MXFP4": 4.3, "IQ4_XS": 4.3, "IQ4_NL": 4.5, "NVFP4": 4.5, "Q4_0": 4.5, "Q4_K_S": 4.6, "Q4_K": 4.8,
              "Q4_K_M": 4.8, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_K_S": 5.5, "Q5_K": 5.7, "Q5_K_M": 5.7, "Q5_1": 6.0, "Q6_K": 6.6, "Q8_0": 8.5,
              "Q8_K": 8.6, "F16": 16.0, "BF16": 16.0, "F32": 32.0}  # fmt: skip
GIB = 2**30


@dataclass(frozen=True)
class Placement:
    """Holds a model file and the layout to run it with. `demands`: each usable GPU's bytes in llama.cpp's order, the host's last.
    `arch` and `loads` come from the file's header if it is known, else from models.yaml."""

    spec: ModelSpec
    file: GGUFFile
    arch: Architecture
    loads: weights.Weights
    settings: EngineSettings
    demands: tuple[Demand, ...]
    speed: speed.Speed
    reasons: tuple[str, ...] = ()

    def at(self, settings: EngineSettings, hardware: Hardware) -> Placement:
        """Return a placement of the same file with other settings; demands and speed are predicted anew."""
        demands = tuple(memory.demand(self.arch, self.loads, settings, len(hardware.usable_gpus)))
        predicted = speed.predict(self.arch, self.loads, settings, hardware)
        return replace(self, settings=settings, demands=demands, speed=predicted)

    def measured(self, buffers: tuple[Demand, ...] | None, hardware: Hardware) -> Placement:
        """Return this placement with the buffers that llama.cpp says it will take (engine/dry_run.py) in place of the prediction;
        unchanged if that is None. Raises DoesNotFit if the buffers are larger than what is free."""
        if buffers is None or len(buffers) != len(self.demands):
            return self
        demands = tuple(memory.with_context(buffers, self.settings))
        names = [*(f"GPU {number} ({gpu.name})" for number, gpu in enumerate(hardware.usable_gpus)), "the RAM"]
        for name, need, room in zip(names, demands, room_bytes(hardware), strict=True):
            if need.total_bytes > room:
                sizes = f"it takes {need.total_bytes / GIB:.2f} GiB of {name}, {max(room, 0) / GIB:.2f} may be used"
                raise DoesNotFit(f"{self.file.quant} does not fit: {sizes}")
        return replace(self, demands=demands)

    @property
    def n_layers(self) -> int:
        """Count the layers that can go to a GPU, the output layer included."""
        return self.arch.block_count + 1

    @property
    def n_on_gpu(self) -> int:
        return min(self.settings.n_gpu_layers, self.n_layers)

    @property
    def is_whole(self) -> bool:
        """Return whether all layers, with their experts, are on the GPU."""
        return self.n_on_gpu == self.n_layers and not self.settings.experts_in_ram

    @property
    def where(self) -> str:
        if not self.n_on_gpu:
            return "in the file, on the CPU" if self.settings.mapped else "in RAM, on the CPU"
        layers = "all" if self.n_on_gpu == self.n_layers else f"{self.n_on_gpu} of {self.n_layers}"
        experts = self.settings.experts_in_ram
        return f"{layers} layers on the GPU" + (f", the experts of {experts} layers in RAM" if experts else "")

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.spec.key, "quant": self.file.quant, "multiplier": self.spec.multiplier, "where": self.where,
            "layers": self.n_layers, "layers_on_gpu": self.n_on_gpu, "settings": asdict(self.settings),
            "predicted_bytes": [{**asdict(need), "total_bytes": need.total_bytes} for need in self.demands],
            "predicted_tokens_per_s": round(self.speed.tokens_per_s, 2),
            "predicted_blueprint_s": round(self.speed.blueprint_s, 1),
            "speed_from": self.speed.basis, "from_header": self.loads.exact, "reasons": list(self.reasons),
        }  # fmt: skip


def place_file(
    spec: ModelSpec, file: GGUFFile, hardware: Hardware, options: ModelOptions, header: Header | None
) -> Placement:
    """Find the best way to run one file, by its header or else by the registry's figures. Raises DoesNotFit."""
    arch = architecture(header, file.parts[0].path) if header else spec.architecture
    if options.n_ctx and options.n_ctx > arch.context_length:
        raise DoesNotFit(f"--ctx {options.n_ctx} is more than the {arch.context_length} tokens that it was made for")
    loads = weights.from_header(header, arch.block_count) if header else weights.from_registry(arch, file)
    n_ctx, n_threads = options.n_ctx or MIN_CONTEXT, options.n_threads or 0
    base = EngineSettings(n_ctx=n_ctx, n_threads=n_threads, mapped=options.mapped)
    settings = Fitter(arch, loads, hardware, options.kv_type).best(base)
    if settings is None:
        gpus, smallest = hardware.usable_gpus, replace(base, kv_type=kv_types(arch)[-1])
        need_bytes = sum(need.total_bytes for need in memory.demand(arch, loads, smallest, len(gpus)))
        free_bytes = hardware.ram_available_bytes + sum(gpu.free_bytes for gpu in gpus)
        reserve_bytes = free_bytes - sum(room_bytes(hardware))
        holders = ", ".join(holder for gpu in gpus for holder in gpu.holders)
        raise DoesNotFit(
            f"{file.quant} does not fit: it needs {need_bytes / GIB:.1f} GiB, {loads.file_bytes / GIB:.1f} of them for its weights; "
            f"{free_bytes / GIB:.1f} GiB of RAM{' and GPU memory' if gpus else ''} are free, "
            f"{reserve_bytes / GIB:.1f} of them kept for the system"
            + (f"; the GPU is also held by {holders}" if holders else "")
        )
    demands = tuple(memory.demand(arch, loads, settings, len(hardware.usable_gpus)))
    return Placement(spec, file, arch, loads, settings, demands, speed.predict(arch, loads, settings, hardware))


def place_one(spec: ModelSpec, hardware: Hardware, options: ModelOptions, catalog: Catalog) -> Placement:
    """Find the best way to run one model: its finest file that is fast enough, else its fastest. Raises DoesNotFit."""
    if options.quant and options.name:
        files = [spec.file(options.quant)]
    elif options.quant:
        files = [file for file in spec.files if file.quant.casefold() == options.quant.casefold()]
    else:
        files = [file for file in spec.files if finer_than(options.min_quant or MIN_QUANT, file)]
    placed: list[Placement] = []
    refused: list[str] = []
    for file in files:
        missing, free = catalog.missing_bytes(spec, file), hardware.disk_free_bytes
        try:
            if missing and missing + SPARE_BYTES > free:
                to_fetch = f"{missing / 1e9:.1f} GB to fetch, the disk has {free / 1e9:.1f} GB free"
                raise DoesNotFit(f"{file.quant} is {to_fetch}")
            placed.append(place_file(spec, file, hardware, options, catalog.header(spec, file)))
        except (DoesNotFit, BadInput) as error:
            if options.quant and isinstance(error, BadInput):
                raise
            refused.append(str(error))  # one damaged file does not stop the others
    if not placed:
        wanted = f"of {options.quant}" if options.quant else f"as fine as {options.min_quant or MIN_QUANT}"
        raise DoesNotFit(refused[0] if refused else f"it has no file {wanted}")
    in_time = [one for one in placed if one.speed.blueprint_s <= AIM_S]
    if options.policy == "fastest":
        return max(placed, key=lambda one: one.speed.tokens_per_s)
    if not in_time:  # no reason to fetch another one
        return max(placed, key=lambda one: (_at_hand(one, catalog), one.speed.tokens_per_s))
    return max(in_time, key=lambda one: _reward(one, catalog))


def place(registry: Registry, hardware: Hardware, options: ModelOptions, catalog: Catalog) -> Placement:
    """Place the named model, or the best of all by the policy, and say why. Raises DoesNotFit with every model's reason, or
    BadInput for an unknown or API model."""
    if options.name:
        return _place_named(registry, hardware, options, catalog)
    longest = max(registry.local, key=lambda spec: spec.architecture.context_length)
    if options.n_ctx and options.n_ctx > longest.architecture.context_length:
        most = f"{longest.architecture.context_length}, {longest.key}'s; {MIN_CONTEXT} are enough for every task"
        raise BadInput(f"--ctx {options.n_ctx}: no model has so many tokens of context, the most are {most}")
    found: list[Placement] = []
    refused: dict[str, str] = {}
    for spec in registry.local:
        try:
            found.append(place_one(spec, hardware, options, catalog))
        except DoesNotFit as error:
            refused[spec.key] = str(error)
    best_s = min((one.speed.blueprint_s for one in found), default=0.0)
    allowed_s = AIM_S if best_s <= AIM_S else FULL_MARKS_S  # without a reserve if no model leaves one
    for one in found:
        if one.speed.blueprint_s > allowed_s:
            refused[one.spec.key] = (
                f"{one.file.quant} would take {one.speed.blueprint_s:.0f} s ({one.where}); "
                f"the window is {FULL_MARKS_S:.0f} s, {allowed_s:.0f} s predicted are allowed"
            )
    found = [one for one in found if one.spec.key not in refused]
    if not found:
        reasons = "\n".join(f"  {key}: {why}" for key, why in refused.items())
        raise DoesNotFit(f"no local model fits here and is fast enough:\n{reasons}")
    ranks: dict[PlacementPolicy, Callable[[Placement], Any]] = {
        "reward": lambda one: _reward(one, catalog),
        "fastest": lambda one: one.speed.tokens_per_s,
        "largest": lambda one: one.file.size_bytes,
    }
    best = max(found, key=ranks[options.policy])
    better = [spec.key for spec in registry.local if spec.multiplier > best.spec.multiplier]
    why_not = tuple(f"not {key}: {refused.get(key, 'policy ' + options.policy)}" for key in better)
    return replace(best, reasons=(*_reasons(best, options), *why_not))


def _place_named(registry: Registry, hardware: Hardware, options: ModelOptions, catalog: Catalog) -> Placement:
    spec = registry.find(options.name or "")
    if isinstance(spec, ApiModel):
        raise BadInput(f"{spec.key} is an API model; it needs no place on this machine")
    best = place_one(spec, hardware, options, catalog)
    late = f"too slow for full marks: {best.speed.blueprint_s:.0f} s predicted, the window is {FULL_MARKS_S:.0f} s"
    too_late = (late,) if best.speed.blueprint_s > FULL_MARKS_S else ()
    return replace(best, reasons=("you named it", *_reasons(best, options), *too_late))


def finer_than(minimum: str, file: GGUFFile) -> bool:
    """Return whether the file is at least as fine as the quantization `minimum`. Raises BadInput if that is not known."""
    if minimum.upper() not in QUANT_BITS:
        raise BadInput(f"no quantization is named {minimum!r}; there are {', '.join(QUANT_BITS)}")
    return bits(file.quant, 99.0) >= QUANT_BITS[minimum.upper()]


def bits(quant: str, unknown: float) -> float:
    """Return a quantization's bits a weight; of a variant, such as UD-Q4_K_XL, those of what it varies."""
    plain = quant.upper().removeprefix("UD-")
    known = [name for name in QUANT_BITS if plain.startswith(name)]
    return QUANT_BITS[max(known, key=len)] if known else unknown


def _at_hand(one: Placement, catalog: Catalog) -> int:
    """Rank a file by how near it is: 2 on disk (the operator pulled it), 1 in a package, 0 on the hub only."""
    if not catalog.missing_bytes(one.spec, one.file):
        return 2
    return 1 if one.file.package else 0


def _reward(one: Placement, catalog: Catalog) -> tuple[float, ...]:
    """Rank by multiplier, then by nearness, fineness and speed."""
    return one.spec.multiplier, _at_hand(one, catalog), bits(one.file.quant, 0.0), one.speed.tokens_per_s


def _reasons(best: Placement, options: ModelOptions) -> tuple[str, ...]:
    source = "the file's header" if best.loads.exact else "models.yaml"
    return (
        f"policy {options.policy}: multiplier {best.spec.multiplier:g}, {best.file.quant}, {best.where}",
        f"sizes from {source}; speed from {best.speed.basis}",
    )
