"""llama.cpp's working memory ("compute buffers"): the model's graph as llama.cpp builds it, for allocator.py to replay.

What is built is the worst case that llama.cpp reserves (llama_context::sched_reserve): a full prompt batch, logits for each
of its tokens. The order of the operations is that of src/models/{llama,qwen,phi3,gemma,gemma2,gemma3}.cpp and of build_attn
and build_moe_ffn in src/llama-graph.cpp.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.models.registry import Architecture
from storyfi_lite.placement.allocator import HOST, Graph, Node, peaks

PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES
OFFLOADED_BATCH = (
    32  # tokens from which a GPU computes with weights that lie in RAM (ggml_backend_cuda_device_offload_op)
)
# bytes a KV value: f16, and ggml's blocks of 32
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
FUSED_QKV = {"qwen", "phi3"}
FUSED_GATE_UP = {"phi3"}
SCALED_EMBEDDING = {"gemma", "gemma2", "gemma3"}
POST_NORMS = {"gemma2", "gemma3"}
QUERY_KEY_NORMS = {"gemma3"}
SOFT_CAP = {"gemma2"}
WINDOW_PERIOD = {"gemma2": 2, "gemma3": 6}  # all but the last of so many layers are windowed; llama.cpp ignores phi3's
SCALED_QUERY = {"gemma", "gemma2", "gemma3", "phi3"}


class Cache(NamedTuple):
    """What the layers of one kind, windowed or not, read beside the activations."""

    key_turn: Node | None
    value_turn: Node | None
    key_rows: Node
    value_rows: Node
    mask: Node


class Largest(NamedTuple):
    """Bytes of a layer's largest matrices; what a GPU copies in when it helps with a layer in RAM."""

    dense_bytes: int
    expert_bytes: int


class Builder:
    """A decoder's graph. `layers` says where each layer lies, and where its experts."""

    def __init__(
        self, arch: Architecture, settings: EngineSettings, layers: list[tuple[int, int]], output: int, largest: Largest
    ) -> None:
        self.arch, self.settings, self.layers, self.output = arch, settings, layers, output
        self.graph = Graph()
        self.tokens = min(settings.n_ubatch, settings.n_batch)
        self.hidden = 4 * arch.embedding_length * self.tokens
        self.query = 4 * arch.attention_head_count * arch.key_length * self.tokens
        self.key = 4 * arch.attention_head_count_kv * arch.key_length * self.tokens
        self.value = 4 * arch.attention_head_count_kv * arch.value_length * self.tokens
        cells = -(-settings.n_ctx * settings.n_slots // 256) * 256
        self.cells = -(-cells // settings.n_slots // 256) * 256
        self.norm_insists = HOST not in (output, *(device for device, _ in layers))  # llama_context::graph_get_cb
        self.dense_bytes = largest.dense_bytes / _largest_dense_elements(arch)
        self.expert_bytes = largest.expert_bytes
        self._inputs()

    def _inputs(self) -> None:
        """In the order of their first readers. Windowed layers (build_attn_inp_kv_iswa) have caches and masks of their own."""
        self.token_ids = self.graph.input(4 * self.tokens)
        self.graph.input(self.hidden)  # for embeddings in place of tokens; never used, never freed
        self.positions: Node | None = None
        self.period = WINDOW_PERIOD.get(self.arch.name, 1) if self.arch.sliding_window else 1
        kinds = {number % self.period < self.period - 1: None for number in range(len(self.layers))}
        self.caches = {windowed: self._cache() for windowed in kinds}
        self.out_ids = self.graph.input(4 * self.tokens)

    def _cache(self) -> Cache:
        graph, tokens, flash = self.graph, self.tokens, self.settings.flash_attn
        quantized = self.settings.kv_type != "f16"  # then llama.cpp turns keys and values by Hadamard matrices
        key, value = self.arch.key_length, self.arch.value_length
        side = next(64 << i for i in range(20) if key % (128 << i))
        key_turn = graph.input(4 * side * side) if quantized and key % 64 == 0 else None
        self.positions = self.positions or graph.input(4 * tokens)
        value_turn = graph.input(4 * 64 * 64) if quantized and value % 64 == 0 else None
        key_rows = graph.input(8 * tokens)
        value_rows = graph.input(8 * tokens * (1 if flash else self.arch.attention_head_count_kv * value))
        mask = graph.input(self.cells * tokens * (2 if flash else 4))
        return Cache(key_turn, value_turn, key_rows, value_rows, mask)

    def _matrix(self, inner: int, outer: int, device: int) -> Node:
        return self.graph.stored(int(inner * outer * self.dense_bytes), device)

    def norm(self, source: Node, device: int, size: int = 0, *, insists: bool = True) -> Node:
        size = size or source.size
        forced = device if insists and self.norm_insists else None
        scaled = self.graph.op(size, source, reuse=(source,), device=forced)
        weight = self.graph.stored(size // self.tokens, device)
        return self.graph.op(size, scaled, weight=weight, reuse=(scaled,))

    def layer(self, residual: Node, number: int) -> Node:
        graph, arch = self.graph, self.arch
        device, experts = self.layers[number]
        attended = self._attention(self.norm(residual, device), number, device)
        query_width = arch.attention_head_count * arch.key_length
        out = graph.op(self.hidden, attended, weight=self._matrix(query_width, arch.embedding_length, device))
        if number == len(self.layers) - 1:
            out = graph.op(self.hidden, out, self.out_ids)
            residual = graph.op(self.hidden, residual, self.out_ids)
        if arch.name in POST_NORMS:
            out = self.norm(out, device)
        middle = graph.op(self.hidden, out, residual, reuse=(out, residual))
        normed = self.norm(middle, device)
        down = self._experts(normed, device, experts) if arch.expert_count else self._feed_forward(normed, device)
        if arch.name in POST_NORMS:
            down = self.norm(down, device, insists=False)
        terms = (middle, down) if arch.name == "phi3" else (down, middle)
        return graph.op(self.hidden, *terms, reuse=terms)

    def _attention(self, normed: Node, number: int, device: int) -> Node:
        graph, arch = self.graph, self.arch
        cache = self.caches[number % self.period < self.period - 1]
        per_cell = KV_BYTES[self.settings.kv_type] * arch.attention_head_count_kv
        keys, values = (
            graph.stored(int(per_cell * length) * self.cells * self.settings.n_slots, device)
            for length in (arch.key_length, arch.value_length)
        )
        fused = arch.name in FUSED_QKV
        if fused:
            size = self.query + self.key + self.value
            weight = self._matrix(arch.embedding_length, size // (4 * self.tokens), device)
            normed = graph.op(size, normed, weight=weight)
            if arch.name == "qwen":
                bias = graph.stored(size // self.tokens, device)
                normed = graph.op(size, normed, weight=bias, reuse=(normed,))
        query = self._rotated(normed, self.query, device)
        if arch.name in SCALED_QUERY:
            query = graph.op(self.query, query, reuse=(query,))
        query = self._turned(query, cache.key_turn)
        if len(self.caches) > 1:  # with windows the key comes first
            key = self._turned(self._rotated(normed, self.key, device), cache.key_turn)
            value = self._value(normed, cache, device)
        else:
            value = self._value(normed, cache, device)
            key = self._turned(self._rotated(normed, self.key, device), cache.key_turn)
        graph.store(keys, graph.view(key), cache.key_rows)
        scattered = fused and not self.settings.flash_attn
        rows = graph.op(self.value, value) if scattered else graph.view(value)
        graph.store(values, rows, cache.value_rows)
        return self._attended(graph.view(graph.view(query)), graph.view(keys), graph.view(values), cache)

    def _attended(self, query: Node, keys: Node, values: Node, cache: Cache) -> Node:
        graph, arch = self.graph, self.arch
        if self.settings.flash_attn:
            # ggml_cuda_flash_attn_ext_get_alloc_size: a GPU turns quantized keys and values into f16 first
            heads = arch.attention_head_count_kv * (arch.key_length + arch.value_length)
            extra = 2 * heads * self.cells * self.settings.n_slots if self.settings.kv_type != "f16" else 0
            found = graph.view(graph.op(self.query, query, keys, values, cache.mask, gpu_extra=extra))
            return self._turned(found, cache.value_turn)
        scores = graph.op(4 * self.cells * self.tokens * arch.attention_head_count, keys, query)
        if arch.name in SOFT_CAP:
            for _ in range(3):
                scores = graph.op(scores.size, scores, reuse=(scores,))
        scores = graph.op(scores.size, scores, cache.mask, reuse=(scores,))
        summed = graph.op(self.query, values, scores)
        return graph.op(self.query, graph.view(summed))

    def _projected(self, normed: Node, size: int, device: int) -> Node:
        """A part of the fused product, or a product of its own."""
        if self.arch.name in FUSED_QKV:
            return self.graph.view(normed)
        weight = self._matrix(self.arch.embedding_length, size // (4 * self.tokens), device)
        return self.graph.view(self.graph.op(size, normed, weight=weight))

    def _rotated(self, normed: Node, size: int, device: int) -> Node:
        """A query or key at its position."""
        assert self.positions is not None
        projected = self._projected(normed, size, device)
        if self.arch.name in QUERY_KEY_NORMS:
            projected = self.norm(projected, device, size)
        return self.graph.op(size, projected, self.positions, reuse=(projected,))

    def _value(self, normed: Node, cache: Cache, device: int) -> Node:
        value = self._projected(normed, self.value, device)
        if cache.value_turn and self.arch.name in FUSED_QKV:  # a part of a row has gaps (llama_mul_mat_hadamard)
            value = self.graph.op(self.value, value)
        return self._turned(value, cache.value_turn)

    def _turned(self, source: Node, matrix: Node | None) -> Node:
        if matrix is None:
            return source
        size = (source.root or source).size
        return self.graph.view(self.graph.op(size, matrix, self.graph.view(source)))

    def _feed_forward(self, normed: Node, device: int) -> Node:
        graph, arch, width = self.graph, self.arch, 4 * self.arch.feed_forward_length * self.tokens
        inner, outer = arch.embedding_length, arch.feed_forward_length
        if arch.name in FUSED_GATE_UP:
            gated = graph.op(width, graph.op(2 * width, normed, weight=self._matrix(inner, 2 * outer, device)))
        else:
            gate = graph.op(width, normed, weight=self._matrix(inner, outer, device))
            gated = graph.op(width, gate, graph.op(width, normed, weight=self._matrix(inner, outer, device)))
        return graph.op(self.hidden, gated, weight=self._matrix(inner, outer, device))

    def _experts(self, normed: Node, device: int, experts: int) -> Node:
        graph, arch = self.graph, self.arch
        used, few = arch.expert_used_count, 4 * arch.expert_count * self.tokens
        logits = graph.op(few, normed, weight=graph.stored(4 * arch.expert_count * arch.embedding_length, device))
        probabilities = graph.op(few, logits, reuse=(logits,))
        chosen = graph.view(graph.op(few, probabilities))
        weights = graph.op(4 * used * self.tokens, graph.view(probabilities), chosen)
        shaped = graph.view(weights)
        total = graph.op(4 * self.tokens, shaped)
        total = graph.op(4 * self.tokens, total, reuse=(total,))
        share = graph.view(graph.op(weights.size, shaped, total, reuse=(shaped,)))
        rows, width = graph.view(normed), 4 * arch.feed_forward_length * self.tokens * used
        matrices = [graph.stored(self.expert_bytes, experts) for _ in range(3)]
        up = graph.op(width, rows, chosen, weight=matrices[0])
        gated = graph.op(width, graph.op(width, rows, chosen, weight=matrices[1]), up)
        down = graph.op(self.hidden * used, gated, chosen, weight=matrices[2])
        weighted = graph.op(down.size, down, share, reuse=(down,))
        views = [graph.view(weighted) for _ in range(used)]
        out = views[0]
        for view in views[1:]:
            out = graph.op(self.hidden, out, view)
        graph.keep(down, share)  # ggml_backend_cuda_graph_optimize
        return out

    def _typical(self) -> list[int]:
        """Layers between two like ones add nothing to a peak: a few stand for all, where all are of one kind."""
        last = len(self.layers) - 1
        if len(self.caches) > 1:
            return list(range(last + 1))
        return [i for i in range(last + 1) if min(i, last - i) < 4 or len(set(self.layers[i - 3 : i + 3])) > 1]

    def build(self) -> Graph:
        graph = self.graph
        current = graph.op(self.hidden, self.token_ids, device=HOST)  # the embedding's rows
        if self.arch.name in SCALED_EMBEDDING:
            current = graph.op(self.hidden, current, reuse=(current,))
        for number in self._typical():
            current = self.layer(current, number)
        normed = self.norm(current, self.output, insists=False)
        table = self._matrix(self.arch.embedding_length, self.arch.vocab_size, self.output)
        logits = graph.op(4 * self.arch.vocab_size * self.tokens, normed, weight=table)
        if self.arch.name in SOFT_CAP:
            for _ in range(3):
                logits = graph.op(logits.size, logits, reuse=(logits,))
        return graph


def _largest_dense_elements(arch: Architecture) -> int:
    """Of the matrices outside the experts."""
    query, both = (heads * arch.key_length for heads in (arch.attention_head_count, 2 * arch.attention_head_count_kv))
    widest = query + both if arch.name in FUSED_QKV else query
    if not arch.expert_count:
        widest = max(widest, arch.feed_forward_length * (2 if arch.name in FUSED_GATE_UP else 1))
    return arch.embedding_length * widest


@lru_cache(maxsize=4096)
def compute_bytes(
    arch: Architecture, settings: EngineSettings, devices: tuple[int, ...], n_gpus: int, largest: Largest
) -> list[int]:
    """For each GPU, and last for the host. `devices`: each layer's, then the output layer's."""
    layers = [(device, HOST if i < settings.experts_in_ram else device) for i, device in enumerate(devices[:-1])]
    builder = Builder(arch, settings, layers, devices[-1], largest)
    # llama_context: several GPUs visible, everything on them, no tensor overrides: then GPUs work on several batches at once
    pipelined = n_gpus > 1 and settings.n_gpu_layers > arch.block_count and not settings.experts_in_ram
    helps = builder.tokens >= OFFLOADED_BATCH
    return peaks(builder.build(), n_gpus, PIPELINE_COPIES if pipelined else 1, helps)
