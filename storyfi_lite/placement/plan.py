"""Chooses which model file a machine should run, and how, by what it is expected to earn, with the reasons in words. It loads
nothing."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from storyfi_lite.engine.settings import Demand, EngineSettings
from storyfi_lite.errors import BadInput, DoesNotFit
from storyfi_lite.machine.gpus import in_words
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.gguf import Header, architecture
from storyfi_lite.models.listing import QUANT_BITS, bits, finer_than
from storyfi_lite.models.registry import ApiModel, Architecture, GGUFFile, ModelSpec, Registry
from storyfi_lite.models.store import SPARE_BYTES
from storyfi_lite.options import MIN_QUANT, ModelOptions
from storyfi_lite.placement import lengths, memory, speed, traffic, weights
from storyfi_lite.placement.catalog import Catalog
from storyfi_lite.placement.fit import Fitter, kv_types, may_be_slow, room_bytes
from storyfi_lite.placement.reward import Earnings
from storyfi_lite.placement.simulate import expected
from storyfi_lite.placement.traffic import Traffic
from storyfi_lite.protocol.limits import FULL_MARKS_S

MIN_CONTEXT = 4096  # tokens a slot: the longest task's prompt and answer
FINE_BITS = QUANT_BITS["Q5_K_M"]  # finer ones are not told apart
TIE = 0.995  # who earns this share of the best earns as much: predictions are no better
GOOD_SCORE = 0.98  # of all points: nothing is cut that costs any
LEAST_SCORE = 0.25  # of all points: a machine that has fewer answers hardly anybody in time
POLICY_SHARE = 0.8  # of the best reward, that the fastest and the largest must earn too
WORTH_SAYING = 0.02  # of the reward
MORE_BYTES = (1 << 30, 1 << 29, 1 << 28)  # of GPU memory, to see what is missing: the least that earns more is said
SHORT_CONTEXT = 3072  # tokens a slot, that all but the longest prompts leave room in
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
    earnings: Earnings
    a_char: lengths.TokensAChar
    traffic: Traffic
    reasons: tuple[str, ...] = ()

    def at(self, settings: EngineSettings, hardware: Hardware) -> Placement:
        """Return a placement of the same file with other settings; demands, speed and earnings are predicted anew."""
        return _placement(self.spec, self.file, self.arch, self.loads, settings, hardware, self.a_char, self.traffic)

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
    def room_bytes(self) -> int:
        """Return the bytes that it takes of GPUs and RAM, below zero: the greater, the more is left."""
        return -sum(need.total_bytes for need in self.demands)

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
            "expected_reward": round(self.earnings.reward, 4), "expected_score": round(self.earnings.score, 4),
            "late_share": round(self.earnings.late, 4),
            "p95_s": None if math.isinf(self.earnings.p95_s) else round(self.earnings.p95_s, 1),
            "predicted_blueprint_s": round(self.earnings.seconds_of("blueprint"), 1),
            "speed_from": self.speed.basis, "from_header": self.loads.exact, "reasons": list(self.reasons),
        }  # fmt: skip


def _placement(
    spec: ModelSpec,
    file: GGUFFile,
    arch: Architecture,
    loads: weights.Weights,
    settings: EngineSettings,
    hardware: Hardware,
    a_char: lengths.TokensAChar,
    asked: Traffic,
) -> Placement:
    demands = tuple(memory.demand(arch, loads, settings, len(hardware.usable_gpus)))
    predicted = speed.predict(arch, loads, settings, hardware)
    earns = expected(predicted.pace, settings.n_slots, settings.n_ctx, spec.multiplier, asked, a_char)
    return Placement(spec, file, arch, loads, settings, demands, predicted, earns, a_char, asked)


def place_file(
    spec: ModelSpec,
    file: GGUFFile,
    hardware: Hardware,
    options: ModelOptions,
    header: Header | None,
    a_char: lengths.TokensAChar | None = None,
) -> Placement:
    """Find the best way to run one file, by its header or else by the registry's figures. `a_char`: its tokens a character, if they
    are known. Raises DoesNotFit."""
    arch = architecture(header, file.parts[0].path) if header else spec.architecture
    if options.n_ctx and options.n_ctx > arch.context_length:
        raise DoesNotFit(f"--ctx {options.n_ctx} is more than the {arch.context_length} tokens that it was made for")
    loads = weights.from_header(header, arch.block_count) if header else weights.from_registry(arch, file)
    n_ctx, n_threads = options.n_ctx or MIN_CONTEXT, options.n_threads or 0
    base = EngineSettings(n_ctx=n_ctx, n_threads=n_threads, mapped=options.mapped)
    asked = traffic_of(options)
    a_char = a_char or lengths.tokens_a_char(arch.vocab_size)
    most_at_once = max(asked.together)
    slots = 1 if options.kv_type else 2 * most_at_once  # a replay is one at a time; else two groups may meet
    where = (False, True) if may_be_slow(hardware) else (False,)
    fitters = [Fitter(arch, loads, hardware, options.kv_type, slots, on_cpu) for on_cpu in where]
    found: list[Placement] = []
    for n_ctx in [options.n_ctx] if options.n_ctx else _contexts(arch, asked, a_char):
        for fitter in fitters:
            for one in fitter.layouts(replace(base, n_ctx=n_ctx)):
                found.append(_placement(spec, file, arch, loads, one, hardware, a_char, asked))
                if found[-1].earnings.score < LEAST_SCORE:
                    break  # too slow for one answer: more at once are no faster
        if found and max(one.earnings.score for one in found) > GOOD_SCORE:
            break  # more context earns nothing
    if not found:
        raise DoesNotFit(_too_large(file, arch, loads, base, hardware))
    most = _most(found)

    def rank(one: Placement) -> tuple[float, ...]:
        same = one.earnings.reward >= TIE * most
        layout = one.settings
        on_gpus = one.n_on_gpu - layout.experts_in_ram
        # a CPU shares its time, and has other uses for the RAM
        at_once = min(layout.n_slots, most_at_once) if on_gpus else 1
        return (
            same,
            same or one.earnings.reward,
            most > 0 or one.speed.tokens_per_s,  # all too slow: who is nearest to be in time
            on_gpus,
            layout.kv_type == "f16",
            at_once,
            one.room_bytes,
        )

    return max(found, key=rank)


def _contexts(arch: Architecture, asked: Traffic, a_char: lengths.TokensAChar) -> list[int]:
    """Return the tokens of context that are worth a try: the least, and what the longest task needs."""
    works = [lengths.work(kind, a_char) for kind in asked.kinds]
    longest = max(one.opening + one.bridges + one.whole for one in works)
    needed = min(-(-longest // 512) * 512, arch.context_length)
    return sorted({MIN_CONTEXT, max(MIN_CONTEXT, needed)})


def _too_large(
    file: GGUFFile, arch: Architecture, loads: weights.Weights, base: EngineSettings, hardware: Hardware
) -> str:
    gpus, smallest = hardware.usable_gpus, replace(base, kv_type=kv_types(arch)[-1])
    need_bytes = sum(need.total_bytes for need in memory.demand(arch, loads, smallest, len(gpus)))
    free_bytes = hardware.ram_available_bytes + sum(gpu.free_bytes for gpu in gpus)
    reserve_bytes = free_bytes - sum(room_bytes(hardware))
    holders = ", ".join(holder for gpu in gpus for holder in gpu.holders)
    return (
        f"{file.quant} does not fit: it needs {need_bytes / GIB:.1f} GiB, {loads.file_bytes / GIB:.1f} of them for its weights; "
        f"{free_bytes / GIB:.1f} GiB of RAM{' and GPU memory' if gpus else ''} are free, "
        f"{reserve_bytes / GIB:.1f} of them kept for the system"
        + (f"; the GPU is also held by {holders}" if holders else "")
    )


def _most(found: list[Placement]) -> float:
    return max(one.earnings.reward for one in found)


_read_traffic = lru_cache(traffic.read)


def traffic_of(options: ModelOptions) -> Traffic:
    """Return the traffic to plan for. Raises BadInput."""
    return _read_traffic(options.traffic or traffic.NETWORK)


def place_files(spec: ModelSpec, hardware: Hardware, options: ModelOptions, catalog: Catalog) -> list[Placement]:
    """Find the best way to run each file of one model that the options allow. Raises DoesNotFit if there is none."""
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
            header = catalog.header(spec, file)
            placed.append(place_file(spec, file, hardware, options, header, catalog.tokens_a_char(spec, file)))
        except (DoesNotFit, BadInput) as error:
            if options.quant and isinstance(error, BadInput):
                raise
            refused.append(str(error))  # one damaged file does not stop the others
    if not placed:
        wanted = f"of {options.quant}" if options.quant else f"as fine as {options.min_quant or MIN_QUANT}"
        raise DoesNotFit(refused[0] if refused else f"it has no file {wanted}")
    return placed


def choose(placed: list[Placement], options: ModelOptions, catalog: Catalog) -> Placement:
    """Choose by the policy. Who earns as much as the best, nearly, is told apart by how near the file is, how fine, and by the memory
    that is left."""
    most = _most(placed)

    def rank(one: Placement) -> tuple[float, ...]:
        if not most:  # all too slow: who is nearest to be in time
            return _at_hand(one, catalog), one.speed.tokens_per_s
        fine = min(FINE_BITS, bits(one.file.quant, 0.0))
        return (
            one.earnings.reward >= TIE * most,
            _at_hand(one, catalog),
            fine,
            min(one.settings.n_slots, max(one.traffic.together)),
            one.room_bytes,
        )

    earning = [one for one in placed if one.earnings.reward >= POLICY_SHARE * most]
    if options.policy == "fastest":
        return max(earning, key=lambda one: one.speed.tokens_per_s)
    if options.policy == "largest":
        return max(earning, key=lambda one: one.file.size_bytes)
    return max(placed, key=rank)


def place_one(spec: ModelSpec, hardware: Hardware, options: ModelOptions, catalog: Catalog) -> Placement:
    """Find the best way to run one model. Raises DoesNotFit."""
    return choose(place_files(spec, hardware, options, catalog), options, catalog)


def place(registry: Registry, hardware: Hardware, options: ModelOptions, catalog: Catalog) -> Placement:
    """Place the named model, or the best of all by the policy, and say why. Raises DoesNotFit with every model's reason, or
    BadInput for an unknown or API model, or a file of traffic that is none."""
    traffic_of(options)  # or each model would be refused for it
    if options.name:
        spec = registry.find(options.name)
        if isinstance(spec, ApiModel):
            raise BadInput(f"{spec.key} is an API model; it needs no place on this machine")
        best = place_one(spec, hardware, options, catalog)
        blueprint_s = best.earnings.seconds_of("blueprint")
        late = f"too slow for full marks: a blueprint takes {blueprint_s:.0f} s, the window is {FULL_MARKS_S:.0f} s"
        too_late = (late,) if blueprint_s > FULL_MARKS_S else ()
        return replace(best, reasons=("you named it", *_reasons(best, options, hardware), *too_late))
    share = TIE if options.policy == "reward" else POLICY_SHARE
    found, refused = _place_each(registry, hardware, options, catalog, share)
    usable = [one for one in found if one.earnings.score >= LEAST_SCORE]
    owns = {spec.key: [one for one in found if one.spec == spec] for spec in registry.local}
    refused |= {key: _in_words(choose(own, options, catalog)) for key, own in owns.items() if own}
    if not usable:
        reasons = "\n".join(f"  {key}: {why}" for key, why in refused.items())
        raise DoesNotFit(f"no local model fits here and is fast enough:\n{reasons}")
    best = choose(usable, options, catalog)
    others = [spec for spec in registry.local if spec.multiplier >= best.spec.multiplier and spec != best.spec]
    why_not = tuple(f"not {spec.key}: {refused[spec.key]}" for spec in others)
    return replace(best, reasons=(*_reasons(best, options, hardware), *why_not))


def place_all(registry: Registry, hardware: Hardware, options: ModelOptions, catalog: Catalog) -> list[Placement]:
    """Place every model that fits, what `place` chooses first, then by expected reward. Raises what `place` raises."""
    best = place(registry, hardware, options, catalog)
    found, _ = _place_each(registry, hardware, replace(options, name=None, quant=None), catalog, 0.0)
    others = {one.spec.key for one in found} - {best.spec.key}
    rest = [choose([one for one in found if one.spec.key == key], options, catalog) for key in others]
    return [best, *sorted(rest, key=lambda one: (-one.earnings.reward, one.spec.key))]


def near_misses(
    registry: Registry, hardware: Hardware, options: ModelOptions, catalog: Catalog, best: Placement
) -> tuple[str, ...]:
    """Say what would earn more than `best` if one thing were otherwise: a coarser file, a shorter context, some more memory."""

    def earns_more(words: str, machine: Hardware, wanted: ModelOptions) -> str:
        with suppress(DoesNotFit):
            one = place(registry, machine, wanted, catalog)
            gain = one.earnings.reward / max(best.earnings.reward, 1e-9) - 1
            if gain >= WORTH_SAYING:
                at_once = f"{one.settings.n_slots} at once"
                return f"{words}: {one.spec.key} {one.file.quant}, {one.where}, {at_once}: {gain:+.0%}"
        return ""

    found = []
    if not options.quant:
        coarser = max((name for name in QUANT_BITS if QUANT_BITS[name] < QUANT_BITS[(options.min_quant or MIN_QUANT).upper()]),
                      key=lambda name: QUANT_BITS[name])  # fmt: skip
        found.append(earns_more(f"--min-quant {coarser}", hardware, replace(options, min_quant=coarser)))
    if best.settings.n_ctx > SHORT_CONTEXT:
        found.append(earns_more(f"--ctx {SHORT_CONTEXT}", hardware, replace(options, n_ctx=SHORT_CONTEXT)))
    enough = ""
    for more_bytes in MORE_BYTES if hardware.usable_gpus else ():
        more = tuple(replace(gpu, free_bytes=gpu.free_bytes + more_bytes) for gpu in hardware.gpus)
        words = f"{more_bytes >> 20} MiB more of GPU memory"
        said = earns_more(words, replace(hardware, gpus=more), options)
        if not said:
            break
        enough = said
    return tuple(filter(None, (*found, enough)))


def _place_each(
    registry: Registry, hardware: Hardware, options: ModelOptions, catalog: Catalog, share: float
) -> tuple[list[Placement], dict[str, str]]:
    """Place the files of all models that may earn `share` of the best reward; returns them, and why the others do not fit."""
    longest = max(registry.local, key=lambda spec: spec.architecture.context_length)
    if options.n_ctx and options.n_ctx > longest.architecture.context_length:
        most = f"{longest.architecture.context_length}, {longest.key}'s; {MIN_CONTEXT} are enough for every task"
        raise BadInput(f"--ctx {options.n_ctx}: no model has so many tokens of context, the most are {most}")
    found: list[Placement] = []
    refused: dict[str, str] = {}
    for spec in sorted(registry.local, key=lambda spec: -spec.multiplier):
        if found and spec.multiplier < share * _most(found):
            break  # nor can any after it earn as much
        try:
            found += place_files(spec, hardware, options, catalog)
        except DoesNotFit as error:
            refused[spec.key] = str(error)
    return found, refused


def _in_words(one: Placement) -> str:
    earns = one.earnings
    late = f", {earns.late:.0%} of the requests late" if earns.late >= 0.005 else ""
    return (
        f"{one.file.quant} would earn {earns.reward:.2f} ({one.where}, {one.settings.n_slots} at once, "
        f"{earns.seconds_of('blueprint'):.0f} s a blueprint{late})"
    )


def _at_hand(one: Placement, catalog: Catalog) -> int:
    """Rank a file by how near it is: 2 on disk (the operator pulled it), 1 in a package, 0 on the hub only."""
    if not catalog.missing_bytes(one.spec, one.file):
        return 2
    return 1 if one.file.package else 0


def _reasons(best: Placement, options: ModelOptions, hardware: Hardware) -> tuple[str, ...]:
    passed_over: tuple[str, ...] = ()
    if not best.n_on_gpu and may_be_slow(hardware) and best.loads.products.isdisjoint(hardware.broken):
        speeds = ", ".join(f"{gpu.name} reads {in_words(gpu.bandwidth_gb_s or 0.0)}" for gpu in hardware.usable_gpus)
        passed_over = (f"on the CPU, which is faster here: {speeds}",)
    source, earns = "the file's header" if best.loads.exact else "models.yaml", best.earnings
    return (
        f"policy {options.policy}: expected reward {earns.reward:.2f}, which is the multiplier {best.spec.multiplier:g} times "
        f"{earns.score:.0%} of the points",
        f"sizes from {source}; speed from {best.speed.basis}",
        *passed_over,
    )
