"""Predicts how fast answers will be written: the bytes that a step reads, over the speed of reading them, by device.

The CPU's speed comes from a two-second measurement with ggml's own kernels (calibrate.py, kept per machine) for each type of
weights and for attention; a GPU's from its memory's clock and width, or from the table of machine/gpus.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.machine.gpus import in_words
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.registry import Architecture
from storyfi_lite.placement.memory import kv_bytes, layer_devices, layers_on
from storyfi_lite.placement.queue import Pace
from storyfi_lite.placement.weights import Weights

GPU_EFFICIENCY = 0.8  # of the data sheet's bandwidth, when decoding quantized weights
CPU_LAYER_S = 25e-6  # norms, rotations and waits, a layer and token: what is left over of two small models
GPU_LAYER_S = 40e-6  # launches and small kernels, a layer and step
UNKNOWN_GPU_GB_S = 200.0  # below any card that is not in the table
MEAN_CELLS = 900  # that a token attends to, on average: half of the mean answer, behind its prompt
# What one more token of a step, and one token of a prompt, costs: shares of reading the weights for one token. On a GPU from published
# figures of one card (RTX 3090, 8B Q4_0: 170, 303, 440 tokens/s at 2, 4 and 8 at once; prompts thirty times as fast as single
# tokens); on a CPU that is only described: two to three times as many tokens at four at once, prompts at least eight times as fast.
GPU_MORE_SHARE, GPU_PROMPT_SHARE = 0.07, 0.04
CPU_MORE_SHARE, CPU_PROMPT_SHARE = 0.3, 0.125
PCIE_GB_S, PROMPT_BATCH_TOKENS = 12.0, 256  # a GPU copies a layer from RAM once for each batch of a prompt


@dataclass(frozen=True)
class Speed:
    """Holds a predicted speed. `pace`: with as many answers at once as the layout has slots. `basis`: where it comes from, in words."""

    pace: Pace
    basis: str

    @property
    def tokens_per_s(self) -> float:
        """Return the tokens a second of one answer alone."""
        return 1 / self.pace.step_s


def predict(arch: Architecture, weights: Weights, settings: EngineSettings, hardware: Hardware) -> Speed:
    """Predict the seconds of a step and of a prompt's token. Of a mixture's experts a step reads those that its tokens choose."""
    gpus = hardware.usable_gpus
    devices = layer_devices(arch.block_count, settings.n_gpu_layers, settings.tensor_split, len(gpus))
    most = max(settings.n_slots, 2)
    one, several, whole = (_read_bytes(arch, weights, settings, devices, len(gpus), n) for n in (1, most, 10_000))
    cpu_s, cpu_more_share, words = _cpu(arch, weights, settings, hardware, one[-1], devices)
    step_s, more_s = cpu_s, cpu_s * cpu_more_share
    if one[-1] >= 1e6:
        more_s += cpu_s * (several[-1] / one[-1] - 1) / (most - 1)
    prompt_s = cpu_s * (CPU_PROMPT_SHARE if hardware.cpu_bandwidth_gb_s else max(cpu_more_share, GPU_PROMPT_SHARE))
    if any(one[:-1]):
        prompt_s = min(prompt_s, whole[-1] / (PCIE_GB_S * 1e9) / PROMPT_BATCH_TOKENS)
    for number, gpu in enumerate(gpus):
        if one[number]:
            gb_s = (gpu.bandwidth_gb_s or UNKNOWN_GPU_GB_S) * GPU_EFFICIENCY
            one_s, cache_s = one[number] / (gb_s * 1e9), _cache_bytes(arch, settings, devices, number) / (gb_s * 1e9)
            step_s += one_s + cache_s + devices.count(number) * GPU_LAYER_S
            more_s += cache_s + GPU_MORE_SHARE * one_s + (several[number] - one[number]) / (gb_s * 1e9) / (most - 1)
            prompt_s += GPU_PROMPT_SHARE * one_s
            assumed = "" if gpu.bandwidth_gb_s else ", assumed: its bandwidth is not known"
            words.append(f"{one[number] / 1e9:.2f} GB from {gpu.name} at {in_words(gb_s)}{assumed}")
    return Speed(Pace(max(step_s, 1e-6), more_s, max(prompt_s, 1e-6)), "; ".join(words))


def _read_bytes(
    arch: Architecture, weights: Weights, settings: EngineSettings, devices: list[int], n_gpus: int, tokens: int
) -> list[float]:
    """Return the bytes of weights that a step of so many tokens reads on each GPU and, last, on the host."""
    active = 1 - (1 - arch.expert_used_count / arch.expert_count) ** tokens if arch.expert_count else 0.0
    read = [0.0] * (n_gpus + 1)
    for number, layer in enumerate(weights.layers):
        read[devices[number]] += layer.dense_bytes
        read[-1 if number < settings.experts_in_ram else devices[number]] += layer.expert_bytes * active
    read[devices[-1]] += weights.output_bytes + weights.tied_bytes
    return read


def _cpu(
    arch: Architecture, weights: Weights, settings: EngineSettings, hardware: Hardware, read: float, devices: list[int]
) -> tuple[float, float, list[str]]:
    """Return the CPU's seconds a step of one token, the share of it that one more costs, and the reason in words: by the bandwidth
    that a description gives, else as measured."""
    if read < 1e6:
        return 0.0, 0.0, []
    layers = devices[:-1].count(-1)
    if hardware.cpu_bandwidth_gb_s:
        gb_s, more_share = hardware.cpu_bandwidth_gb_s, CPU_MORE_SHARE
        others_s = _cache_bytes(arch, settings, devices, -1) / (gb_s * 1e9)
    else:
        from storyfi_lite.placement.calibrate import cpu_speed

        measured = cpu_speed(settings.n_threads)
        slowest = min(measured.gb_s.values())
        gb_s = 1 / sum(share / measured.gb_s.get(kind, slowest) for kind, share in weights.mix)
        more_share = sum(share * measured.more_share.get(kind, 1.0) for kind, share in weights.mix)
        ns = measured.attention_ns["f16" if settings.kv_type == "f16" else "q8_0"]
        others_s = layers * (MEAN_CELLS * arch.attention_head_count * arch.key_length * ns * 1e-9 + CPU_LAYER_S)
        # rows of the matrices that a token is multiplied with: short ones cost more than their bytes
        keys_and_values = arch.attention_head_count_kv * (arch.key_length + arch.value_length)
        attention = arch.attention_head_count * arch.key_length + keys_and_values + arch.embedding_length
        width = arch.expert_feed_forward_length or arch.feed_forward_length
        feed_forward = (2 * width + arch.embedding_length) * max(1, arch.expert_used_count)
        rows = layers * (attention + feed_forward) + (arch.vocab_size if devices[-1] == -1 else 0)
        others_s += rows * measured.row_ns * 1e-9
    step_s = read / (gb_s * 1e9) + others_s
    more_s = read / (gb_s * 1e9) * more_share + others_s
    return step_s, more_s / step_s, [f"{read / 1e9:.2f} GB a token from RAM at {in_words(gb_s)}"]


def _cache_bytes(arch: Architecture, settings: EngineSettings, devices: list[int], device: int) -> float:
    """Return how many bytes of keys and values a token reads on one device."""
    whole = kv_bytes(arch, settings, layers_on(devices, device))
    return whole / settings.n_slots * min(1.0, MEAN_CELLS / settings.n_ctx)
