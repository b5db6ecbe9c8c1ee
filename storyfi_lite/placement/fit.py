"""Finds the settings under which one model file fits one machine: which of them earns most is for plan.py to say.

For each type of keys and values and each number of slots: all on the GPU; else a mixture's experts to RAM, as few as need be;
else fewer layers on the GPU. Layers go to the GPUs by free memory; to the fastest one alone if it holds them all. Where
the weights may stay in the file, the batches are taken that have most tokens in one pass over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from storyfi_lite.engine import in_step
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.registry import Architecture
from storyfi_lite.options import KVType
from storyfi_lite.placement.memory import demand, kv_bytes
from storyfi_lite.placement.weights import Weights

GPU_MARGIN_BYTES = 128 << 20  # allocations fall on pages, and a desktop takes a little more at times
RAM_MARGIN_BYTES = 512 << 20
KV_TYPES: tuple[KVType, ...] = ("f16", "q8_0", "q4_0")
MAPPED_BATCHES = (8192, 4096, 2048, 1024, 768, 512, 384, 256)  # tokens
A_PASS_TOKENS = 32768  # 64 answers of the longest kind but chapters
UNFILLED_TOKENS = 256  # of a batch: the next answer would not fit
UNASKED_KV_TYPES = KV_TYPES[:2]  # q4_0 costs answers their quality, and is for step_down's last resort
MAX_SLOTS = 8
SLOW_GPU_GB_S = 100.0  # below it a CPU may read its RAM as fast: a GPU in software, a processor's own
_FILL = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)  # how full several GPUs are made: evenly first


def kv_types(arch: Architecture) -> tuple[KVType, ...]:
    """Return the types that keys and values can be stored as, the finest first. ggml quantizes in blocks of 32, so llama.cpp
    refuses quantized types for heads of other sizes."""
    return KV_TYPES if arch.key_length % 32 == arch.value_length % 32 == 0 else ("f16",)


def may_be_slow(hardware: Hardware) -> bool:
    """Return whether no GPU here is known to be faster than the CPU."""
    gpus = hardware.usable_gpus
    return bool(gpus) and all(gpu.bandwidth_gb_s and gpu.bandwidth_gb_s < SLOW_GPU_GB_S for gpu in gpus)


def room_bytes(hardware: Hardware) -> list[int]:
    """Return how many bytes may be taken of each usable GPU's free memory and, last, of the RAM."""
    gpus = [max(gpu.free_bytes - GPU_MARGIN_BYTES, 0) for gpu in hardware.usable_gpus]
    return [*gpus, hardware.ram_available_bytes - RAM_MARGIN_BYTES]


class Fitter:
    """Finds the settings for one model on one machine, by memory.demand. `kv_type` None tries several. `at_once`: as many slots at most
    are worth their memory. `on_cpu`: nothing goes to a GPU."""

    def __init__(
        self,
        arch: Architecture,
        weights: Weights,
        hardware: Hardware,
        kv_type: KVType | None = None,
        at_once: int = 4,
        on_cpu: bool = False,
    ) -> None:
        self.arch, self.weights = arch, weights
        unasked = tuple(kv for kv in kv_types(arch) if kv in UNASKED_KV_TYPES)
        self._kv_types = (kv_type,) if kv_type else unasked
        most = min(at_once, MAX_SLOTS)
        self._slots = sorted({1, most, *(2**power for power in range(most.bit_length()))})
        self._gpus = hardware.usable_gpus
        self._on_cpu = on_cpu or not self._gpus or not weights.products.isdisjoint(hardware.broken)
        *gpu_room, self.host_room = room_bytes(hardware)
        # figures from models.yaml are good to a percent or two; those of a header to the byte
        spare = 0 if weights.exact else weights.file_bytes // 50
        self.gpu_room = [max(room - spare // len(self._gpus), 0) for room in gpu_room]

    def check(self, settings: EngineSettings) -> EngineSettings | None:
        """Return the settings if they fit, else None."""
        demands = demand(self.arch, self.weights, settings, len(self._gpus))
        rooms = [*self.gpu_room, self.host_room]
        fits = all(need.total_bytes <= room for need, room in zip(demands, rooms, strict=True))
        return settings if fits else None

    def layouts(self, base: EngineSettings) -> Iterator[EngineSettings]:
        """Yield the settings that fit and may be the best: with each number of slots, one first, and each type of keys and values, as
        much as fits on the GPUs. Whole with f16, the same with q8_0 is no better."""
        for wide in self._mapped(base) if base.mapped else [base]:
            fits = [fit for n_slots in self._slots for fit in self._with_slots(replace(wide, n_slots=n_slots))]
            yield from fits
            if fits:
                return

    def _mapped(self, base: EngineSettings) -> Iterator[EngineSettings]:
        """Yield the batches that may share one reading of the file, those that hold most answers first; several in step where the
        CPU computes all."""
        alone = not self._on_cpu or not in_step.IS_POSSIBLE
        shapes = [
            (width, count) for width in MAPPED_BATCHES for count in range(1, 2 if alone else 1 + A_PASS_TOKENS // width)
        ]
        for width, count in sorted(shapes, key=lambda shape: ((UNFILLED_TOKENS - shape[0]) * shape[1], -shape[0])):
            n_ctx = max(width, base.n_ctx // count)
            yield replace(base, n_batch=width, n_ubatch=width, n_ctx=n_ctx, n_contexts=count)

    def _with_slots(self, base: EngineSettings) -> Iterator[EngineSettings]:
        for kv in self._kv_types:
            if self.arch.name == "phi3" and kv != "f16" and base.n_slots > 1:
                continue  # llama.cpp aborts
            fit = self.most(replace(base, kv_type=kv))
            if fit:
                yield fit
                if fit.n_gpu_layers > self.arch.block_count and not fit.experts_in_ram:
                    return

    def most(self, settings: EngineSettings) -> EngineSettings | None:
        """Return these settings with as much on the GPUs as fits: all; all but some layers' experts; some layers. None if nothing
        fits."""
        layers = self.arch.block_count
        if self._on_cpu:
            return self.check(settings)
        whole = replace(settings, n_gpu_layers=layers + 1)
        tries = [[whole], [replace(whole, n_gpu_layers=n) for n in range(layers, -1, -1)]]
        if self.arch.expert_count:
            tries.insert(1, [replace(whole, experts_in_ram=n) for n in range(1, layers + 1)])
        return next((fit for one in tries if (fit := self._first(one))), None)

    def _first(self, tries: list[EngineSettings]) -> EngineSettings | None:
        """Find the first of `tries`, each of which takes less of the GPUs than the one before, that fits there; None if it does
        not fit into the RAM: those after it take more of that."""
        low, high = 0, len(tries)
        while low < high:
            middle = (low + high) // 2
            if self._on_gpus(tries[middle]):
                high = middle
            else:
                low = middle + 1
        # near the edge of what fits, a layer fewer may take a little more: a copy of what is then in RAM
        near = range(max(0, low - 2), min(len(tries), low + 3))
        return next((fit for at in near if (one := self._on_gpus(tries[at])) and (fit := self.check(one))), None)

    def _on_gpus(self, settings: EngineSettings) -> EngineSettings | None:
        """Return the settings with the first split of the layers under which every GPU's part fits; None if there is none."""
        for split in self._splits(settings) if len(self._gpus) > 1 else [()]:
            one = replace(settings, tensor_split=split)
            demands = demand(self.arch, self.weights, one, len(self._gpus))
            if all(need.total_bytes <= room for need, room in zip(demands, self.gpu_room, strict=False)):
                return one
        return None

    def _splits(self, settings: EngineSettings) -> Iterator[tuple[float, ...]]:
        """Yield ways to share out the layers: all to one GPU, the fastest first; else whole layers, each GPU in turn filled to a part
        of its room, and the rest to the last."""
        count, n_gpus = settings.n_gpu_layers, len(self._gpus)
        speed = [gpu.bandwidth_gb_s or 0.0 for gpu in self._gpus]
        for one in sorted(range(n_gpus), key=lambda i: (-speed[i], i)):
            yield tuple(float(i == one) * max(count, 1) for i in range(n_gpus))
        sizes = [
            layer.dense_bytes
            + layer.expert_bytes * (i >= settings.experts_in_ram)
            + kv_bytes(self.arch, settings, range(i, i + 1))
            for i, layer in enumerate(self.weights.layers)
        ]
        sizes.append(self.weights.output_bytes + self.weights.tied_bytes)
        even = replace(settings, tensor_split=(1.0,) * n_gpus)
        fixed = [need.compute_bytes + need.context_bytes for need in demand(self.arch, self.weights, even, n_gpus)]
        for fill in _FILL:
            shares = [0] * n_gpus
            device, used = 0, 0
            for size in sizes[len(sizes) - count :]:
                while device < n_gpus - 1 and used + size > (self.gpu_room[device] - fixed[device]) * fill:
                    device, used = device + 1, 0
                shares[device] += 1
                used += size
            yield tuple(float(share) for share in shares)
