"""How fast an answer will be written: bytes that a token reads over memory bandwidth, device by device.

A prediction, not a promise. Bandwidth comes from a two-second measurement with ggml's own kernels (calibrate.py, kept per
machine), for a GPU elsewhere from the table of hardware.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.hardware import Hardware
from storyfi_lite.placement.memory import kv_layer_bytes, layer_devices
from storyfi_lite.placement.weights import Weights
from storyfi_lite.registry import Architecture

BLUEPRINT_TOKENS = 400  # the commonest task: a 135M model writes 260-280, larger ones more
PROMPT_TOKENS = 250
FULL_MARKS_S, TIMEOUT_S = 30.0, 60.0  # of the subnet's speed score
GPU_EFFICIENCY = 0.8  # of the data sheet's bandwidth, when decoding quantized weights
GPU_LAYER_S = 40e-6  # launches and small kernels, a layer and token
UNKNOWN_GPU_GB_S = 200.0  # below any card that is not in the table
PROMPT_SPEED_UP = 8.0  # a prompt's tokens are computed together: at least so many times faster than one by one
MEAN_CONTEXT = 0.25  # of n_ctx is read on average


@dataclass(frozen=True)
class Speed:
    tokens_per_s: float
    basis: str  # in words

    @property
    def blueprint_s(self) -> float:
        return (BLUEPRINT_TOKENS + PROMPT_TOKENS / PROMPT_SPEED_UP) / self.tokens_per_s


def predict(arch: Architecture, weights: Weights, settings: EngineSettings, hardware: Hardware) -> Speed:
    gpus = hardware.usable_gpus
    read = _bytes_read(arch, weights, settings, len(gpus))
    cpu_gb_s = hardware.cpu_bandwidth_gb_s or _measured_cpu_gb_s()
    seconds = read[-1] / (cpu_gb_s * 1e9)
    words = [f"{read[-1] / 1e9:.2f} GB a token from RAM at {cpu_gb_s:.0f} GB/s"] if read[-1] > 1e6 else []
    layers = layer_devices(arch.block_count, settings.n_gpu_layers, settings.tensor_split, len(gpus))
    for number, gpu in enumerate(gpus):
        if read[number]:
            gb_s = (gpu.bandwidth_gb_s or UNKNOWN_GPU_GB_S) * GPU_EFFICIENCY
            seconds += read[number] / (gb_s * 1e9) + layers.count(number) * GPU_LAYER_S
            words.append(f"{read[number] / 1e9:.2f} GB from {gpu.name} at {gb_s:.0f} GB/s")
    return Speed(1 / max(seconds, 1e-6), "; ".join(words))


def _bytes_read(arch: Architecture, weights: Weights, settings: EngineSettings, n_gpus: int) -> list[int]:
    """A token's, by device, the host last. Of a mixture's experts only the active ones are read."""
    devices = layer_devices(arch.block_count, settings.n_gpu_layers, settings.tensor_split, n_gpus)
    active = arch.expert_used_count / arch.expert_count if arch.expert_count else 0.0
    read = [0.0] * (n_gpus + 1)
    for number, layer in enumerate(weights.layers):
        device = devices[number]
        read[device] += layer.dense_bytes + kv_layer_bytes(arch, settings) / settings.n_slots * MEAN_CONTEXT
        read[-1 if number < settings.experts_in_ram else device] += layer.expert_bytes * active
    read[devices[-1]] += weights.output_bytes
    return [int(value) for value in read]


def _measured_cpu_gb_s() -> float:
    from storyfi_lite.placement.calibrate import cpu_bandwidth_gb_s

    return cpu_bandwidth_gb_s()
