"""llama.cpp's scheduler and allocator, replayed with sizes only: how many bytes of intermediate results each device holds.

`ggml_backend_sched_split_graph` (ggml-backend.cpp) chooses a device for every operation and copies in what lies elsewhere;
`ggml_gallocr_alloc_graph_impl` (ggml-alloc.c) then plans where each result lies: the first free block that fits best, an
operation's result in its input's place where that is allowed, memory free again after the last reader. It knows nothing
of models: graph.py builds those.
"""

from __future__ import annotations

from collections.abc import Iterable

ALIGNMENT_BYTES = {True: 128, False: 64}  # on a GPU (ggml-cuda.cu), on the CPU (ggml-cpu)
HOST = -1


class Node:
    """A tensor. `root` is what a view looks into; `weight` is what an operation reads of the model."""

    def __init__(self, size: int, device: int | None, sources: tuple[Node, ...] = (), root: Node | None = None):
        self.size, self.device, self.sources, self.root = size, device, sources, root
        self.reuse: tuple[Node, ...] = ()
        self.weight: Node | None = None
        self.gpu_extra = 0  # bytes that a GPU's kernel needs behind the result
        self.external = False  # lies in the model's or the cache's memory, not in working memory
        self.children = self.views = 0
        self.offset = -1  # -1: holds no working memory

    @property
    def place(self) -> int:
        """Of a view, where its root lies."""
        device = (self.root or self).device
        assert device is not None
        return device


class Graph:
    """Tensors in the order in which they are computed."""

    def __init__(self) -> None:
        self.inputs: list[Node] = []
        self.nodes: list[Node] = []

    def input(self, size: int) -> Node:
        """Written by the host before each batch."""
        self.inputs.append(Node(size, HOST))
        return self.inputs[-1]

    def stored(self, size: int, device: int) -> Node:
        """A weight, or a layer's cache."""
        node = Node(size, device)
        node.external = True
        return node

    def op(
        self,
        size: int,
        *sources: Node,
        weight: Node | None = None,
        reuse: Iterable[Node] = (),
        device: int | None = None,
        gpu_extra: int = 0,
    ) -> Node:
        """`reuse`: sources in whose place the result may lie; `device`: llama.cpp insists on it."""
        node = Node(size, device, (weight, *sources) if weight else sources)
        node.weight, node.reuse, node.gpu_extra = weight, tuple(reuse), gpu_extra
        self.nodes.append(node)
        return node

    def view(self, source: Node) -> Node:
        self.nodes.append(Node(0, None, (source,), source.root or source))
        return self.nodes[-1]

    def store(self, cache: Node, *sources: Node) -> None:
        """Writes into a cache."""
        self.op(0, *sources, device=cache.device).external = True

    def keep(self, *sources: Node) -> None:
        """Holds their memory up to here, as a GPU's fused kernels ask."""
        node = Node(0, None, sources, sources[0])
        node.external = True
        self.nodes.append(node)


def peaks(graph: Graph, n_gpus: int, copies: int = 1, helps: bool = False) -> list[int]:
    """The bytes of each GPU's buffer, and last the host's.

    `copies`: how many of each input and of each copy between devices are kept (GGML_SCHED_MAX_COPIES); more than one are
    never freed. `helps`: the first GPU computes with the host's weights, for which it copies them in (op_offload).
    """
    _assign(graph.nodes, helper=0 if helps and n_gpus else None)
    inputs = [*graph.inputs]
    if copies > 1:
        for node in graph.inputs:
            node.children = 1
            inputs += _spares(node, copies)
    nodes = _split(graph.nodes, inputs, copies)
    arenas = [*(Arena(ALIGNMENT_BYTES[True]) for _ in range(n_gpus)), Arena(ALIGNMENT_BYTES[False])]
    for node in inputs:
        node.offset = arenas[node.place].take(node.size)
    for node in nodes:
        if node.root is not None and not node.external:
            node.root.views += 1
        for source in node.sources:
            source.children += 1
    for node in nodes:
        if node.root is None and not node.external:
            _place(node, arenas)
        for source in node.sources:
            source.children -= 1
            if source.children == 0 and source.views == 0:
                _release(source, arenas)
    return [arena.peak for arena in arenas]


def _spares(node: Node, copies: int) -> list[Node]:
    return [Node(node.size, node.device) for _ in range(copies - 1)]


def _assign(nodes: list[Node], helper: int | None) -> None:
    """Passes 1 and 2: by weight, then neighbours like neighbours, GPUs first."""
    nodes = [node for node in nodes if node.root is None]
    for node in nodes:
        if node.device is None and node.weight is not None:
            device = node.weight.place
            node.device = helper if device == HOST and helper is not None else device
    for gpus_only in (True, False):
        for order in (nodes, nodes[::-1]):
            current: int | None = None
            for node in order:
                if node.device is None:
                    node.device = current
                else:
                    current = None if gpus_only and node.device == HOST else node.device
    for node in nodes:
        if node.device is None:  # an empty graph of weights cannot occur; the host takes the rest
            node.device = HOST


def _split(nodes: list[Node], inputs: list[Node], copies: int) -> list[Node]:
    """Pass 5: runs of operations on one device, before each run copies of what it reads from elsewhere."""
    found: list[Node] = []
    copied: dict[tuple[int, int], Node] = {}
    device: int | None = None
    start = n_inputs = 0  # of the run: where its copies go, and how many there are
    for node in nodes:
        if node.root is None:
            far = node.weight is not None and node.weight.place != node.device
            if node.device != device or (n_inputs and far):
                device, start, n_inputs = node.device, len(found), 0
            assert device is not None
            fresh: list[Node] = []
            for source in node.sources:
                if source.place != device and (id(source), device) not in copied:
                    copy = copied[id(source), device] = Node((source.root or source).size, device)
                    after = Node(0, None, (source,), source.root or source)  # the source lives until it is copied
                    after.external = True
                    fresh += [after] if copies > 1 else [after, copy]
                    if copies > 1:
                        copy.children = 1
                        inputs += [copy, *_spares(copy, copies)]
            found[start:start] = fresh
            start, n_inputs = start + len(fresh), n_inputs + len(fresh)
            node.reuse = tuple(copied.get((id(source), device), source) for source in node.reuse)
            node.sources = tuple(copied.get((id(source), device), source) for source in node.sources)
        elif node.external and node.place == HOST:
            continue  # the host fuses nothing
        found.append(node)
    return found


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


def _bytes(node: Node) -> int:
    return node.size + (node.gpu_extra if node.device != HOST else 0)


def _place(node: Node, arenas: list[Arena]) -> None:
    arena = arenas[node.place]
    for parent in node.reuse:
        if parent.root is None and parent.children == 1 and parent.views == 0 and parent.offset >= 0:
            node.offset, parent.offset = parent.offset, -1
            if arena.padded(_bytes(parent)) > arena.padded(node.size):
                arena.give(node.offset + arena.padded(node.size), _bytes(parent) - node.size)
            return
    node.offset = arena.take(_bytes(node))


def _release(node: Node, arenas: list[Arena]) -> None:
    if node.root is not None:
        node.root.views -= 1
        if node.root.views or node.root.children:
            return
        node = node.root
    if node.offset >= 0:
        arenas[node.place].give(node.offset, _bytes(node))
        node.offset = -1
