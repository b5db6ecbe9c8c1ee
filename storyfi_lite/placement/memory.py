"""How many bytes llama.cpp will take on each device for given weights and settings. Arithmetic only.

The rules are llama.cpp's (src/llama-model.cpp load_tensors, llama-kv-cache.cpp, llama-context.cpp), as in the release that
llama-cpp-python 0.3.36 ships:
  - `n_gpu_layers` counts from the end and the output layer first: 1 is the output layer alone
  - the token embedding stays in RAM; a tied output is a second copy on the GPU
  - a GPU without a share is hidden from llama.cpp (engine/model.py), so that nothing is taken there
  - a layer's KV cache lies with the layer; its cells are n_ctx rounded up to 256, for each slot; a
    sliding window saves nothing, because llama.cpp keeps the whole cache unless told not to (swa_full)
  - the host keeps one row of logits a slot; the graph's working memory is graph.py's business
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.models.registry import Architecture
from storyfi_lite.placement.graph import KV_BYTES, Largest, compute_bytes
from storyfi_lite.placement.weights import Weights

CUDA_CONTEXT_BYTES = (
    500 << 20
)  # driver context, cuBLAS and kernels, a device: 300-600 MB seen; llama.cpp does not report it
PROCESS_BYTES = 150 << 20  # Python and the libraries


@dataclass(frozen=True)
class Demand:
    """Bytes on one device, as llama.cpp's log names them. `context_bytes` is the driver's, outside that log."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    output_bytes: int = 0
    context_bytes: int = 0

    @property
    def buffer_bytes(self) -> int:
        """What llama.cpp itself reports."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.output_bytes

    @property
    def total_bytes(self) -> int:
        return self.buffer_bytes + self.context_bytes


def layer_devices(n_layers: int, n_gpu_layers: int, split: tuple[float, ...], n_gpus: int) -> list[int]:
    """The device of each layer and, last, of the output layer: -1 is the CPU. llama.cpp's own rule, float and all."""
    count = min(n_gpu_layers, n_layers + 1) if n_gpus else 0
    start = n_layers + 1 - count
    shares = split if split and any(split) else (1.0,) * n_gpus
    edges = [sum(shares[: i + 1]) / sum(shares) for i in range(n_gpus)]
    devices = [-1] * start
    for i in range(count):
        devices.append(next((d for d, edge in enumerate(edges) if i / count < edge), n_gpus - 1))
    return devices


def kv_layer_bytes(arch: Architecture, settings: EngineSettings) -> int:
    """Keys and values of one layer, all slots."""
    cells = pad256(pad256(settings.n_ctx * settings.n_slots) // settings.n_slots)
    values = arch.attention_head_count_kv * (arch.key_length + arch.value_length)
    return int(values * KV_BYTES[settings.kv_type]) * cells * settings.n_slots


def pad256(cells: int) -> int:
    return -(-cells // 256) * 256


def demand(arch: Architecture, weights: Weights, settings: EngineSettings, n_gpus: int) -> list[Demand]:
    """For each GPU in llama.cpp's order, and last for the host."""
    devices = layer_devices(arch.block_count, settings.n_gpu_layers, settings.tensor_split, n_gpus)
    largest = Largest(weights.largest_dense_bytes, weights.largest_expert_bytes)
    used = settings.used_gpus(n_gpus)
    seen = tuple(used.index(device) if device >= 0 else -1 for device in devices)  # as llama.cpp numbers them
    *on_gpus, on_host = compute_bytes(arch, settings, seen, len(used), largest)
    work = {**dict(zip(used, on_gpus, strict=True)), n_gpus: on_host}
    still = stored(arch, weights, settings, n_gpus)
    return [replace(need, compute_bytes=work.get(number, 0)) for number, need in enumerate(still)]


def stored(arch: Architecture, weights: Weights, settings: EngineSettings, n_gpus: int) -> list[Demand]:
    """The same without working memory, which takes a thousand times as long to find out."""
    devices = layer_devices(arch.block_count, settings.n_gpu_layers, settings.tensor_split, n_gpus)
    weight, kv = [0] * (n_gpus + 1), [0] * (n_gpus + 1)
    for number, (layer, device) in enumerate(zip(weights.layers, devices[:-1], strict=True)):
        weight[device] += layer.dense_bytes
        weight[-1 if number < settings.experts_in_ram else device] += layer.expert_bytes
        kv[device] += kv_layer_bytes(arch, settings)
    weight[-1] += weights.embedding_bytes
    if devices[-1] >= 0 or not weights.tied:
        weight[devices[-1]] += weights.output_bytes
    output = 4 * arch.vocab_size * settings.n_slots
    used = settings.used_gpus(n_gpus)
    gpus = [Demand(weight[i], kv[i], 0, 0, CUDA_CONTEXT_BYTES if i in used else 0) for i in range(n_gpus)]
    return [*gpus, Demand(weight[-1], kv[-1], 0, output, PROCESS_BYTES)]
