"""Predicts how fast an answer will be written: the bytes that a token reads, over the speed of reading them, by device.

The CPU's speed comes from a two-second measurement with ggml's own kernels (calibrate.py, kept per machine) for each type of
weights and for attention; a GPU's from its memory's clock and width, or from the table of machine/gpus.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.registry import Architecture
from storyfi_lite.placement.memory import kv_layer_bytes, layer_devices
from storyfi_lite.placement.weights import Weights

BLUEPRINT_TOKENS = 400  # the commonest task: a 135M model writes 260-280, larger ones more
PROMPT_TOKENS = 250
GPU_EFFICIENCY = 0.8  # of the data sheet's bandwidth, when decoding quantized weights
CPU_LAYER_S = 25e-6  # norms, rotations and waits, a layer and token: what is left over of two small models
GPU_LAYER_S = 40e-6  # launches and small kernels, a layer and token
UNKNOWN_GPU_GB_S = 200.0  # below any card that is not in the table
PROMPT_SPEED_UP = 8.0  # a prompt's tokens are computed together: at least so many times faster than one by one
MEAN_CELLS = PROMPT_TOKENS + BLUEPRINT_TOKENS // 2  # that a token attends to, on average


@dataclass(frozen=True)
class Speed:
    tokens_per_s: float
    basis: str  # in words

    @property
    def blueprint_s(self) -> float:
        return (BLUEPRINT_TOKENS + PROMPT_TOKENS / PROMPT_SPEED_UP) / self.tokens_per_s


def predict(arch: Architecture, weights: Weights, settings: EngineSettings, hardware: Hardware) -> Speed:
    """Predict tokens a second. Of a mixture's experts only the active ones are read."""
    gpus = hardware.usable_gpus
    devices = layer_devices(arch.block_count, settings.n_gpu_layers, settings.tensor_split, len(gpus))
    active = arch.expert_used_count / arch.expert_count if arch.expert_count else 0.0
    read = [0.0] * (len(gpus) + 1)  # bytes of weights a token, by device, the host last
    for number, layer in enumerate(weights.layers):
        read[devices[number]] += layer.dense_bytes
        read[-1 if number < settings.experts_in_ram else devices[number]] += layer.expert_bytes * active
    read[devices[-1]] += weights.output_bytes + weights.tied_bytes
    seconds, words = _cpu(arch, weights, settings, hardware, read[-1], devices)
    for number, gpu in enumerate(gpus):
        if read[number]:
            gb_s = (gpu.bandwidth_gb_s or UNKNOWN_GPU_GB_S) * GPU_EFFICIENCY
            in_cache = _cache_bytes(arch, settings, devices, number)
            seconds += (read[number] + in_cache) / (gb_s * 1e9) + devices.count(number) * GPU_LAYER_S
            assumed = "" if gpu.bandwidth_gb_s else ", assumed: its bandwidth is not known"
            words.append(f"{read[number] / 1e9:.2f} GB from {gpu.name} at {gb_s:.0f} GB/s{assumed}")
    return Speed(1 / max(seconds, 1e-6), "; ".join(words))


def _cpu(
    arch: Architecture, weights: Weights, settings: EngineSettings, hardware: Hardware, read: float, devices: list[int]
) -> tuple[float, list[str]]:
    """Return the CPU's seconds a token, and the reason in words: by the bandwidth that a description gives, else as measured."""
    if read < 1e6:
        return 0.0, []
    layers = devices[:-1].count(-1)
    if hardware.cpu_bandwidth_gb_s:
        gb_s = hardware.cpu_bandwidth_gb_s
        others_s = _cache_bytes(arch, settings, devices, -1) / (gb_s * 1e9)
    else:
        from storyfi_lite.placement.calibrate import cpu_speed

        measured = cpu_speed(settings.n_threads)
        slowest = min(measured.gb_s.values())
        gb_s = 1 / sum(share / measured.gb_s.get(kind, slowest) for kind, share in weights.mix)
        ns = measured.attention_ns["f16" if settings.kv_type == "f16" else "q8_0"]
        others_s = layers * (MEAN_CELLS * arch.attention_head_count * arch.key_length * ns * 1e-9 + CPU_LAYER_S)
        # rows of the matrices that a token is multiplied with: short ones cost more than their bytes
        keys_and_values = arch.attention_head_count_kv * (arch.key_length + arch.value_length)
        attention = arch.attention_head_count * arch.key_length + keys_and_values + arch.embedding_length
        width = arch.expert_feed_forward_length or arch.feed_forward_length
        feed_forward = (2 * width + arch.embedding_length) * max(1, arch.expert_used_count)
        rows = layers * (attention + feed_forward) + (arch.vocab_size if devices[-1] == -1 else 0)
        others_s += rows * measured.row_ns * 1e-9
    words = f"{read / 1e9:.2f} GB a token from RAM at {gb_s:.0f} GB/s"
    return read / (gb_s * 1e9) + others_s, [words]


def _cache_bytes(arch: Architecture, settings: EngineSettings, devices: list[int], device: int) -> float:
    """Return how many bytes of keys and values a token reads on one device."""
    on_it = (number for number, where in enumerate(devices[:-1]) if where == device)
    whole = sum(kv_layer_bytes(arch, settings, number) for number in on_it)
    return whole / settings.n_slots * min(1.0, MEAN_CELLS / settings.n_ctx)
