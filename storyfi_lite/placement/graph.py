"""llama.cpp's working memory ("compute buffers"), by replaying its allocator on a short graph of the model.

ggml plans where each intermediate result lies: the first free block that fits best, an operation's result in its input's
place where that is allowed, memory free again after the last reader (ggml-alloc.c). Here the same is done with sizes only.
All layers of a device look alike, so a few stand for all. What is built is the worst case that llama.cpp reserves: a full
prompt batch, logits for each of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.registry import Architecture

ALIGNMENT_BYTES = {True: 128, False: 64}  # on a GPU (ggml-cuda.cu), on the CPU (ggml-cpu)
HOST = -1
PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES
FUSED_QKV = {"qwen", "phi3"}
FUSED_GATE_UP = {"phi3"}
SCALED_EMBEDDING = {"gemma", "gemma2", "gemma3"}
POST_NORMS = {"gemma2", "gemma3"}
QUERY_KEY_NORMS = {"gemma3"}
SOFT_CAP = {"gemma2"}
WINDOW_PERIOD = {"gemma2": 2, "gemma3": 6}  # all but the last of so many layers are windowed; llama.cpp ignores phi3's
SCALED_QUERY = {"gemma", "gemma2", "gemma3", "phi3"}


class Node:
    """An intermediate result. `root` is what a view looks into."""

    def __init__(self, size: int, device: int, sources: tuple[Node, ...], root: Node | None, reuse: tuple[Node, ...]):
        self.size, self.device, self.sources, self.root, self.reuse = size, device, sources, root, reuse
        self.children = self.views = 0
        self.offset = -1  # -1: holds no memory
        self.external = False


class Arena:
    """ggml_dyn_tallocr: blocks of free memory, the last one without end."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.free = [(0, 1 << 62)]
        self.peak = 0

    def padded(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment

    def take(self, size: int) -> int:
        size = self.padded(size)
        fitting = [(block[1], -i) for i, block in enumerate(self.free[:-1]) if block[1] >= size]
        index = -min(fitting)[1] if fitting else len(self.free) - 1
        offset, room = self.free[index]
        self.free[index : index + 1] = [(offset + size, room - size)] if room > size else []
        self.peak = max(self.peak, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        blocks = sorted([*self.free, (offset, self.padded(size))])
        merged = [blocks[0]]
        for start, room in blocks[1:]:
            last_start, last_room = merged[-1]
            if last_start + last_room == start:
                merged[-1] = (last_start, last_room + room)
            else:
                merged.append((start, room))
        self.free = merged


class Graph:
    """Nodes in the order in which they are computed; a source on another device is copied at the reader's.

    `copies`: how many of each input and of each such copy llama.cpp keeps (ggml-backend.cpp, GGML_SCHED_MAX_COPIES); more
    than one are never freed.
    """

    def __init__(self, copies: int = 1) -> None:
        self.copies = copies
        self.inputs: list[Node] = []
        self.nodes: list[Node] = []
        self._copies: dict[tuple[int, int], Node] = {}

    def input(self, size: int) -> Node:
        return self._input(size, HOST)

    def _input(self, size: int, device: int) -> Node:
        node = Node(size, device, (), None, ())
        self.inputs += [node, *(Node(size, device, (), None, ()) for _ in range(self.copies - 1))]
        node.children = int(self.copies > 1)
        return node

    def op(self, size: int, device: int, *sources: Node, reuse: Iterable[Node] = ()) -> Node:
        near = {id(source): self._near(source, device) for source in sources}
        node = Node(size, device, tuple(near.values()), None, tuple(near[id(r)] for r in reuse))
        self.nodes.append(node)
        return node

    def view(self, source: Node) -> Node:
        node = Node(0, source.device, (source,), source.root or source, ())
        self.nodes.append(node)
        return node

    def store(self, device: int, *sources: Node) -> None:
        """Writes into the cache, which is no working memory."""
        node = self.op(0, device, *sources)
        node.external = True

    def _near(self, source: Node, device: int) -> Node:
        if source.device == device:
            return source
        if (copy := self._copies.get((id(source), device))) is None:
            self.nodes.append(Node(0, source.device, (source,), source.root or source, ()))
            self.nodes[-1].external = True
            size = (source.root or source).size
            if self.copies > 1:
                copy = self._input(size, device)
            else:
                copy = Node(size, device, (), None, ())
                self.nodes.append(copy)
            self._copies[id(source), device] = copy
        return copy


def peaks(graph: Graph, n_gpus: int) -> list[int]:
    """ggml_gallocr_alloc_graph_impl: the bytes of each GPU's buffer, and last the host's."""
    arenas = [*(Arena(ALIGNMENT_BYTES[True]) for _ in range(n_gpus)), Arena(ALIGNMENT_BYTES[False])]
    for node in graph.inputs:
        node.offset = arenas[node.device].take(node.size)
    for node in graph.nodes:
        if node.root is not None and not node.external:
            node.root.views += 1
        for source in node.sources:
            source.children += 1
    for node in graph.nodes:
        if node.root is None and not node.external:
            _place(node, arenas)
        for source in node.sources:
            source.children -= 1
            if source.children == 0 and source.views == 0:
                _release(source, arenas)
    return [arena.peak for arena in arenas]


def _place(node: Node, arenas: list[Arena]) -> None:
    for parent in node.reuse:
        if parent.root is None and parent.children == 1 and parent.views == 0 and parent.offset >= 0:
            node.offset, parent.offset = parent.offset, -1
            arena = arenas[node.device]
            if arena.padded(parent.size) > arena.padded(node.size):
                arena.give(node.offset + arena.padded(node.size), parent.size - node.size)
            return
    node.offset = arenas[node.device].take(node.size)


def _release(node: Node, arenas: list[Arena]) -> None:
    if node.root is not None:
        node.root.views -= 1
        if node.root.views or node.root.children:
            return
        node = node.root
    if node.offset >= 0:
        arenas[node.device].give(node.offset, node.size)
        node.offset = -1


# --- the models ------------------------------------------------------------------------------------------------


class Cache(NamedTuple):
    """What the layers of one kind, windowed or not, read beside the activations."""

    key_turn: Node | None
    value_turn: Node | None
    key_rows: Node
    value_rows: Node
    mask: Node


class Builder:
    """llama.cpp's graph of a decoder (src/models/llama.cpp and its likes), in its order."""

    def __init__(self, arch: Architecture, settings: EngineSettings, copies: int = 1) -> None:
        self.arch, self.settings, self.graph = arch, settings, Graph(copies)
        self.tokens = min(settings.n_ubatch, settings.n_batch)
        self.hidden = 4 * arch.embedding_length * self.tokens
        self.query = 4 * arch.attention_head_count * arch.key_length * self.tokens
        self.key = 4 * arch.attention_head_count_kv * arch.key_length * self.tokens
        self.value = 4 * arch.attention_head_count_kv * arch.value_length * self.tokens
        cells = -(-settings.n_ctx * settings.n_slots // 256) * 256
        self.cells = -(-cells // settings.n_slots // 256) * 256
        self._inputs()

    def _inputs(self) -> None:
        """In the order of their first readers. Windowed layers (build_attn_inp_kv_iswa) have caches and masks of their own."""
        self.token_ids = self.graph.input(4 * self.tokens)
        self.graph.input(self.hidden)  # for embeddings in place of tokens; never used, never freed
        self.positions: Node | None = None
        period = WINDOW_PERIOD.get(self.arch.name, 1) if self.arch.sliding_window else 1
        kinds = {number % period < period - 1: None for number in range(self.arch.block_count)}
        self.caches = {windowed: self._cache() for windowed in kinds}
        self.period = period
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

    def norm(self, source: Node, device: int) -> Node:
        # between GPUs only the weight's part moves on to the next one
        near = device if HOST in (device, source.device) else source.device
        scaled = self.graph.op(source.size, near, source, reuse=(source,))
        return self.graph.op(source.size, device, scaled, reuse=(scaled,))

    def layer(self, residual: Node, number: int, device: int, experts: int, last: bool) -> Node:
        """`experts` is where a mixture's experts lie."""
        graph, arch, compute = self.graph, self.arch, device
        normed = self.norm(residual, compute)
        attended = self._attention(normed, number, device, compute)
        out = graph.op(self.hidden, compute, attended)
        if last:
            out = graph.op(self.hidden, compute, out, self.out_ids)
            residual = graph.op(self.hidden, compute, residual, self.out_ids)
        if arch.name in POST_NORMS:
            out = self.norm(out, compute)
        middle = graph.op(self.hidden, compute, out, residual, reuse=(out, residual))
        normed = self.norm(middle, compute)
        down = self._experts(normed, compute, experts) if arch.expert_count else self._feed_forward(normed, compute)
        if arch.name in POST_NORMS:
            down = self.norm(down, compute)
        terms = (middle, down) if arch.name == "phi3" else (down, middle)
        return graph.op(self.hidden, compute, *terms, reuse=terms)

    def _attention(self, normed: Node, number: int, device: int, compute: int) -> Node:
        graph, arch = self.graph, self.arch
        windowed = number % self.period < self.period - 1
        cache = self.caches[windowed]
        fused = arch.name in FUSED_QKV
        if fused:
            normed = graph.op(self.query + self.key + self.value, compute, normed)
            if arch.name == "qwen":
                normed = graph.op(normed.size, compute, normed, reuse=(normed,))
        query = self._rotated(normed, self.query, compute)
        if arch.name in SCALED_QUERY:
            query = graph.op(self.query, compute, query, reuse=(query,))
        query = self._turned(query, cache.key_turn, compute)
        if windowed or len(self.caches) > 1:  # with windows the key comes first (build_attn, llama-graph.cpp)
            key = self._turned(self._rotated(normed, self.key, compute), cache.key_turn, compute)
            value = self._value(normed, cache, compute)
        else:
            value = self._value(normed, cache, compute)
            key = self._turned(self._rotated(normed, self.key, compute), cache.key_turn, compute)
        graph.store(device, graph.view(key), cache.key_rows)
        scattered = fused and not self.settings.flash_attn
        rows = graph.op(self.value, compute, value) if scattered else graph.view(value)
        graph.store(device, rows, cache.value_rows)
        return self._attended(graph.view(graph.view(query)), cache, compute)

    def _attended(self, query: Node, cache: Cache, compute: int) -> Node:
        graph, arch = self.graph, self.arch
        if self.settings.flash_attn:
            found = graph.view(graph.op(self.query, compute, query, cache.mask))
            return self._turned(found, cache.value_turn, compute)
        scores = graph.op(4 * self.cells * self.tokens * arch.attention_head_count, compute, query)
        if arch.name in SOFT_CAP:
            for _ in range(3):
                scores = graph.op(scores.size, compute, scores, reuse=(scores,))
        scores = graph.op(scores.size, compute, scores, cache.mask, reuse=(scores,))
        summed = graph.op(self.query, compute, scores)
        return graph.op(self.query, compute, graph.view(summed))

    def _projected(self, normed: Node, size: int, compute: int) -> Node:
        """A part of the fused product, or a product of its own."""
        fused = self.arch.name in FUSED_QKV
        return self.graph.view(normed if fused else self.graph.op(size, compute, normed))

    def _rotated(self, normed: Node, size: int, compute: int) -> Node:
        """A query or key at its position."""
        assert self.positions is not None
        projected = self._projected(normed, size, compute)
        if self.arch.name in QUERY_KEY_NORMS:
            projected = self.graph.op(size, compute, projected)
            projected = self.graph.op(size, compute, projected, reuse=(projected,))
        return self.graph.op(size, compute, projected, self.positions, reuse=(projected,))

    def _value(self, normed: Node, cache: Cache, compute: int) -> Node:
        value = self._projected(normed, self.value, compute)
        if cache.value_turn and self.arch.name in FUSED_QKV:  # a part of a row has gaps (llama_mul_mat_hadamard)
            value = self.graph.op(self.value, compute, value)
        return self._turned(value, cache.value_turn, compute)

    def _turned(self, source: Node, matrix: Node | None, compute: int) -> Node:
        if matrix is None:
            return source
        size = (source.root or source).size
        return self.graph.view(self.graph.op(size, compute, self.graph.view(source), matrix))

    def _feed_forward(self, normed: Node, compute: int) -> Node:
        graph, width = self.graph, 4 * self.arch.feed_forward_length * self.tokens
        if self.arch.name in FUSED_GATE_UP:
            gated = graph.op(width, compute, graph.op(2 * width, compute, normed))
        else:
            gate = graph.op(width, compute, normed)
            gated = graph.op(width, compute, gate, graph.op(width, compute, normed))
        return graph.op(self.hidden, compute, gated)

    def _experts(self, normed: Node, compute: int, experts: int) -> Node:
        graph, arch = self.graph, self.arch
        used, few = arch.expert_used_count, 4 * arch.expert_count * self.tokens
        logits = graph.op(few, compute, normed)
        probabilities = graph.op(few, compute, logits, reuse=(logits,))
        chosen = graph.view(graph.op(few, compute, probabilities))
        weights = graph.op(4 * used * self.tokens, compute, graph.view(probabilities), chosen)
        shaped = graph.view(weights)
        total = graph.op(4 * self.tokens, compute, shaped)
        total = graph.op(4 * self.tokens, compute, total, reuse=(total,))
        share = graph.view(graph.op(weights.size, compute, shaped, total, reuse=(shaped,)))
        rows, width = graph.view(normed), 4 * arch.feed_forward_length * self.tokens * used
        up = graph.op(width, experts, rows, chosen)
        gated = graph.op(width, experts, graph.op(width, experts, rows, chosen), up)
        down = graph.op(self.hidden * used, experts, gated, chosen)
        weighted = graph.op(down.size, compute, down, share, reuse=(down,))
        views = [graph.view(weighted) for _ in range(used)]
        out = views[0]
        for view in views[1:]:
            out = graph.op(self.hidden, compute, out, view)
        return out

    def build(self, layers: Sequence[tuple[int, int, int]], output: int) -> Graph:
        """`layers`: number, device and the experts' device of each."""
        graph = self.graph
        first = layers[0][1]
        current = graph.op(self.hidden, HOST, self.token_ids)
        if self.arch.name in SCALED_EMBEDDING:
            current = graph.op(self.hidden, first, current, reuse=(current,))
        for number, device, experts in layers:
            current = self.layer(current, number, device, experts, last=number == self.arch.block_count - 1)
        normed = self.norm(current, output)
        logits = graph.op(4 * self.arch.vocab_size * self.tokens, output, normed)
        if self.arch.name in SOFT_CAP:
            for _ in range(3):
                logits = graph.op(logits.size, output, logits, reuse=(logits,))
        return graph


@lru_cache(maxsize=4096)
def compute_bytes(arch: Architecture, settings: EngineSettings, devices: tuple[int, ...], n_gpus: int) -> list[int]:
    """For each GPU, and last for the host."""
    n = len(devices) - 1
    places = [(device, HOST if i < settings.experts_in_ram else device) for i, device in enumerate(devices[:-1])]
    layers = [(i, *places[i]) for i in range(n) if i < 2 or i >= n - 2 or len(set(places[i - 2 : i + 2])) > 1]
    # llama_context: several GPUs visible, everything on them, no tensor overrides: then GPUs work on several batches at once
    pipelined = n_gpus > 1 and settings.n_gpu_layers > arch.block_count and not settings.experts_in_ram
    graph = Builder(arch, settings, PIPELINE_COPIES if pipelined else 1).build(layers, devices[-1])
    return peaks(graph, n_gpus)
