"""Finds the best settings under which one model file fits one machine.

Where the weights may stay in the file, the widest batch that fits comes first: it is what one pass over the file serves. Then
the order is: all on the GPU with f16 keys and values, then with quantized ones; a mixture's experts to RAM, as few as need be;
then fewer layers on the GPU. Layers go to the GPUs by free memory; to the fastest one alone if it holds them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from storyfi_lite.engine.settings import EngineSettings, KVType
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.registry import Architecture
from storyfi_lite.placement.memory import demand, kv_layer_bytes
from storyfi_lite.placement.weights import Weights

GPU_MARGIN_BYTES = 128 << 20  # allocations fall on pages, and a desktop takes a little more at times
RAM_MARGIN_BYTES = 512 << 20
KV_TYPES: tuple[KVType, ...] = ("f16", "q8_0", "q4_0")
GPU_SLOTS = (4, 2)  # requests at once where memory is left over
MAPPED_BATCHES = (8192, 4096, 2048, 1024, 512, 256)  # tokens
_FILL = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)  # how full several GPUs are made: evenly first


def kv_types(arch: Architecture) -> tuple[KVType, ...]:
    """Return the types that keys and values can be stored as, the finest first. ggml quantizes in blocks of 32, so llama.cpp
    refuses quantized types for heads of other sizes."""
    return KV_TYPES if arch.key_length % 32 == arch.value_length % 32 == 0 else ("f16",)


def room_bytes(hardware: Hardware) -> list[int]:
    """Return how many bytes may be taken of each usable GPU's free memory and, last, of the RAM."""
    gpus = [max(gpu.free_bytes - GPU_MARGIN_BYTES, 0) for gpu in hardware.usable_gpus]
    return [*gpus, hardware.ram_available_bytes - RAM_MARGIN_BYTES]


class Fitter:
    """Finds the settings for one model on one machine, by memory.demand. `kv_type` None tries several."""

    def __init__(self, arch: Architecture, weights: Weights, hardware: Hardware, kv_type: KVType | None = None) -> None:
        self.arch, self.weights = arch, weights
        self._kv_types = (kv_type,) if kv_type else kv_types(arch)
        self._kv_where_tight = self._kv_types[:2][-1]
        self._gpus = hardware.usable_gpus
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

    def best(self, base: EngineSettings) -> EngineSettings | None:
        """Return the best settings that fit; None if none do."""
        if not base.mapped:
            return self._best(base)
        for width in MAPPED_BATCHES:
            wide = replace(base, n_batch=width, n_ubatch=width, n_ctx=max(width, base.n_ctx))
            if fit := self._best(wide):
                return fit
        return None

    def _best(self, base: EngineSettings) -> EngineSettings | None:
        layers = self.arch.block_count
        if not self._gpus:
            return self._first(replace(base, kv_type=kv) for kv in self._kv_types)
        tight = replace(base, kv_type=self._kv_where_tight)
        # one by one, not by halving: more in RAM may not fit either
        experts = (replace(tight, experts_in_ram=n) for n in range(1, layers + 1) if self.arch.expert_count)
        tries = [*((moved, layers + 1) for moved in experts), *((tight, n) for n in range(layers, -1, -1))]
        return self._whole(base) or next((fit for one in tries if (fit := self._with_layers(*one))), None)

    def _first(self, tries: Iterable[EngineSettings]) -> EngineSettings | None:
        return next((fit for settings in tries if (fit := self.check(settings))), None)

    def _whole(self, base: EngineSettings) -> EngineSettings | None:
        """Put all layers on the GPUs. More slots are tried on the same GPUs only, since one slower GPU more would slow every answer,
        and only with f16: if keys and values must be quantized to fit, no second slot fits."""
        for kv in self._kv_types:
            fit = self._with_layers(replace(base, kv_type=kv), self.arch.block_count + 1)
            if fit:
                slots = GPU_SLOTS if kv == "f16" else ()
                return self._first(replace(fit, n_slots=n) for n in slots) or fit
        return None

    def _with_layers(self, settings: EngineSettings, n_gpu_layers: int) -> EngineSettings | None:
        """Put `n_gpu_layers` layers on the GPUs, by the first split that fits."""
        settings = replace(settings, n_gpu_layers=n_gpu_layers)
        if len(self._gpus) < 2:
            return self.check(replace(settings, tensor_split=()))
        speed = [gpu.bandwidth_gb_s or 0.0 for gpu in self._gpus]
        alone = sorted(range(len(speed)), key=lambda i: (-speed[i], i))
        splits = [tuple(float(i == one) * max(n_gpu_layers, 1) for i in range(len(speed))) for one in alone]
        fit = self._first(replace(settings, tensor_split=split) for split in splits)
        return fit or self._first(replace(settings, tensor_split=self._split(settings, fill)) for fill in _FILL)

    def _split(self, settings: EngineSettings, fill: float) -> tuple[float, ...]:
        """Share out whole layers: fill each GPU in turn to `fill` of its room; the rest goes to the last."""
        count = settings.n_gpu_layers
        layers = self.weights.layers
        sizes = [
            layer.dense_bytes
            + layer.expert_bytes * (i >= settings.experts_in_ram)
            + kv_layer_bytes(self.arch, settings, i)
            for i, layer in enumerate(layers)
        ]
        sizes = [*sizes, self.weights.output_bytes + self.weights.tied_bytes][len(layers) + 1 - count :]
        shares = [0] * len(self._gpus)
        even = replace(settings, tensor_split=(1.0,) * len(shares))
        fixed = [need.compute_bytes + need.context_bytes for need in demand(self.arch, self.weights, even, len(shares))]
        device, used = 0, 0
        for size in sizes:
            while device < len(shares) - 1 and used + size > (self.gpu_room[device] - fixed[device]) * fill:
                device, used = device + 1, 0
            shares[device] += 1
            used += size
        return tuple(float(share) for share in shares)
