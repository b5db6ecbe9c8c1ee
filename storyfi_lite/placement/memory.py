"""Estimates how many bytes llama.cpp will take on each device, for planning before the file or the machine is there.

Weights and KV cache follow llama.cpp's rules (llama-model.cpp load_tensors, llama-kv-cache.cpp) and are exact:
  - `n_gpu_layers` counts from the end and the output layer first: 1 is the output layer alone
  - the token embedding stays in RAM; a tied output is a second copy on the GPU
  - a GPU without a share is hidden from llama.cpp (engine/model.py), so that nothing is taken there
  - a layer's KV cache lies with the layer; its cells are n_ctx rounded up to 256, for each slot; a
    sliding window saves nothing, because llama.cpp keeps the whole cache unless told not to (swa_full)
Working memory is an upper bound, the same for every architecture. What is about to be loaded is measured by llama.cpp itself
(engine/dry_run.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import replace

from storyfi_lite.engine.settings import Demand, EngineSettings
from storyfi_lite.models.registry import Architecture
from storyfi_lite.placement.weights import Weights

# bytes a KV value: f16, and ggml's blocks of 32
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
# of what crosses devices, where several GPUs work on several batches at once (GGML_SCHED_MAX_COPIES)
PIPELINE_COPIES = 4
SLACK_BYTES = 4 << 20  # a device: positions, row numbers, alignment
# the driver's context, cuBLAS and kernels, a device: 300-600 MB seen; llama.cpp does not report it
CUDA_CONTEXT_BYTES = 500 << 20
PROCESS_BYTES = 150 << 20  # Python and the libraries


def layer_devices(n_layers: int, n_gpu_layers: int, split: tuple[float, ...], n_gpus: int) -> list[int]:
    """Return the device of each layer and, last, of the output layer, by llama.cpp's own rule; -1 is the CPU."""
    count = min(n_gpu_layers, n_layers + 1) if n_gpus else 0
    start = n_layers + 1 - count
    shares = split if split and any(split) else (1.0,) * n_gpus
    edges = [sum(shares[: i + 1]) / sum(shares) for i in range(n_gpus)]
    return [-1] * start + [min(bisect_right(edges, i / count), n_gpus - 1) for i in range(count)]


def layers_on(devices: list[int], device: int) -> range:
    """Return the numbers of one device's layers, of what `layer_devices` returned."""
    last = len(devices) - 1  # the output layer is counted elsewhere
    return range(bisect_left(devices, device, hi=last), bisect_right(devices, device, hi=last))


def cells_per_slot(settings: EngineSettings) -> int:
    """Return the cells of the KV cache, one a token, that llama.cpp makes for each slot."""
    cells = -(-settings.n_ctx * settings.n_slots // 256) * 256
    return -(-cells // settings.n_slots // 256) * 256


def kv_bytes(arch: Architecture, settings: EngineSettings, layers: range) -> int:
    """Return the bytes of these layers' keys and values for all slots."""
    if arch.kv_heads_by_layer:
        return sum(_kv_bytes(arch, settings, arch.kv_heads_by_layer[layer]) for layer in layers)
    return len(layers) * _kv_bytes(arch, settings, arch.attention_head_count_kv)


def _kv_bytes(arch: Architecture, settings: EngineSettings, heads: int) -> int:
    values = heads * (arch.key_length + arch.value_length)
    cells = cells_per_slot(settings) * settings.n_slots * settings.n_contexts
    return int(values * KV_BYTES[settings.kv_type]) * cells


def demand(arch: Architecture, weights: Weights, settings: EngineSettings, n_gpus: int) -> list[Demand]:
    """Estimate the demand on each GPU, in llama.cpp's order, and last on the host."""
    devices = layer_devices(arch.block_count, settings.n_gpu_layers, settings.tensor_split, n_gpus)
    weight, kv = [0] * (n_gpus + 1), [0] * (n_gpus + 1)
    for device in range(-1, n_gpus):
        layers = layers_on(devices, device)
        whole_from = min(max(layers.start, settings.experts_in_ram), layers.stop)
        weight[device] += weights.dense_bytes(layers) + weights.expert_bytes(range(whole_from, layers.stop))
        weight[-1] += weights.expert_bytes(range(layers.start, whole_from))
        kv[device] = kv_bytes(arch, settings, layers)
    weight[-1] += weights.embedding_bytes
    weight[devices[-1]] += weights.output_bytes + (weights.tied_bytes if devices[-1] >= 0 else 0)
    if settings.mapped:
        weight[-1] = 0
    work = [_compute_bytes(arch, weights, settings, devices, device) for device in (*range(n_gpus), -1)]
    output = [0] * n_gpus + [4 * arch.vocab_size * settings.logit_rows]
    return with_context(map(Demand, weight, kv, work, output), settings)


def with_context(buffers: Iterable[Demand], settings: EngineSettings) -> list[Demand]:
    """Add to llama.cpp's buffers, each GPU's and the host's, what the driver and Python take."""
    *gpus, host = buffers
    used = settings.used_gpus(len(gpus))
    taken = [
        replace(need, context_bytes=need.context_bytes + CUDA_CONTEXT_BYTES) if number in used else need
        for number, need in enumerate(gpus)
    ]
    return [*taken, replace(host, context_bytes=host.context_bytes + PROCESS_BYTES)]


def _compute_bytes(
    arch: Architecture, weights: Weights, settings: EngineSettings, devices: list[int], device: int
) -> int:
    """Bound llama.cpp's working memory on one device in the worst case: a full batch of prompt, with logits for each token.

    It is the sum of what lasts (masks, activations that go from device to device) and the larger of what one layer holds at once
    and the logits. The first GPU also computes layers that lie in RAM: it holds copies of a matrix and of a layer's keys and values.
    Contexts that go through the layers in step all hold what a layer takes, and one at a time the logits.
    """
    used = sorted(set(devices) - {-1})
    if device >= 0 and device not in used:
        return 0
    row = 4 * min(settings.n_ubatch, settings.n_batch)  # bytes of one f32 for each token of the batch
    hidden = row * arch.embedding_length
    in_ram = -1 in devices
    helps = bool(used) and device == used[0] and (in_ram or settings.experts_in_ram > 0)
    has_layers = device in devices[:-1] or helps
    lasting = 0
    if (
        has_layers or device == -1
    ):  # the attention mask; without flash attention also the values' cell numbers; twice with windows
        tokens = min(settings.n_ubatch, settings.n_batch)
        mask = 2 * cells_per_slot(settings) * tokens
        if not settings.flash_attn:
            mask = 2 * mask + 8 * tokens * arch.attention_head_count_kv * arch.value_length
        lasting = mask * (2 if arch.sliding_window else 1)
    phase = layer = _layer_bytes(arch, settings, device >= 0) if has_layers else 0
    if device == devices[-1]:
        phase = max(phase, row * arch.vocab_size + hidden * (3 if helps else 1))
    if helps:
        # experts whose layer lies on another GPU come in pairs
        largest_kv = _kv_bytes(arch, settings, arch.attention_head_count_kv)
        copied = weights.largest_expert_bytes * (2 if settings.experts_in_ram and len(used) > 1 else 1)
        phase += max(copied, weights.largest_dense_bytes) + largest_kv if in_ram else copied
    lasting += hidden * (1 + (device == -1) + (len(set(devices)) > 1 or settings.experts_in_ram > 0))
    pipelined = len(used) > 1 and not in_ram and not settings.experts_in_ram
    others = (settings.n_contexts - 1) * (lasting + layer + SLACK_BYTES)
    return lasting * (PIPELINE_COPIES if pipelined else 1) + phase + SLACK_BYTES + others


def _layer_bytes(arch: Architecture, settings: EngineSettings, on_gpu: bool) -> int:
    """Return the most bytes that one layer's operations hold at once, beside its input: attention or feed-forward."""
    row = 4 * min(settings.n_ubatch, settings.n_batch)
    heads, kv_heads = arch.attention_head_count, arch.attention_head_count_kv
    query, key, value = heads * arch.key_length, kv_heads * arch.key_length, kv_heads * arch.value_length
    cells = cells_per_slot(settings)
    attention = row * (2 * arch.embedding_length + 2 * (query + key + value))
    if not settings.flash_attn:
        attention += 2 * row * heads * cells
    elif on_gpu and settings.kv_type != "f16":  # turned into f16 first (ggml_cuda_flash_attn_ext_get_alloc_size)
        attention += 2 * (key + value) * cells * settings.n_slots
    experts = (arch.expert_feed_forward_length or arch.feed_forward_length) * arch.expert_used_count
    wide = max(arch.feed_forward_length, experts)
    narrow = arch.embedding_length * (2 + max(1, arch.expert_used_count))
    return max(attention, row * (3 * wide + narrow))
