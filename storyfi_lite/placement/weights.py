"""Adds up a model file's weights for placement: bytes by layer, with experts, embedding and output counted apart.

The sizes come from the file's header, to the byte. Before the file is there, the size in models.yaml is shared out by the shapes
of the architecture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from storyfi_lite.models.gguf import LOOKED_UP, Header, products
from storyfi_lite.models.registry import Architecture, GGUFFile

_LAYER = re.compile(r"blk\.(\d+)\.")
# bits a weight that llama-quantize gives token_embd and output.weight (llama-quant.cpp); the rest of the file is the layers
_EMBEDDING_BITS = {"IQ2_XXS": 2.625, "IQ2_XS": 2.625, "Q2_K": 2.625, "IQ3_XS": 3.4375, "Q3_K_M": 3.4375, "IQ4_XS": 4.25,
                   "Q4_1": 8.5, "Q4_K_M": 4.5, "Q5_K_M": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5}  # fmt: skip
_OUTPUT_BITS = {"IQ2_XXS": 5.5, "IQ2_XS": 5.5, "Q8_0": 8.5}
_OUTPUT_BITS_ELSE = 6.5625
_METADATA_BYTES_PER_TOKEN = 45  # the vocabulary and its merges


@dataclass(frozen=True)
class Layer:
    dense_bytes: int
    expert_bytes: int = 0


@dataclass(frozen=True)
class Weights:
    """Holds a file's sizes. `output_bytes` include the output norm. `tied_bytes`: of the embedding if it is the output matrix too;
    a GPU makes a second copy."""

    layers: tuple[Layer, ...]
    embedding_bytes: int
    output_bytes: int
    tied_bytes: int
    exact: bool
    largest_dense_bytes: int  # of a layer's tensors; what a GPU copies in when it helps with a layer in RAM
    largest_expert_bytes: int
    mix: tuple[tuple[str, float], ...]  # ggml's types and the share of bytes that a token reads of each
    products: frozenset[str] = frozenset()  # see models.gguf.products; empty while the header is not known

    @cached_property
    def _before(self) -> tuple[list[int], list[int]]:
        """Return for each layer what those before it have together, without experts and of experts; planning asks ten thousand times."""
        dense = accumulate((layer.dense_bytes for layer in self.layers), initial=0)
        return [*dense], [*accumulate((layer.expert_bytes for layer in self.layers), initial=0)]

    def dense_bytes(self, layers: range) -> int:
        """Return what these layers have together without experts."""
        return self._before[0][layers.stop] - self._before[0][layers.start]

    def expert_bytes(self, layers: range) -> int:
        """Return what the experts of these layers have together."""
        return self._before[1][layers.stop] - self._before[1][layers.start]

    @property
    def file_bytes(self) -> int:
        whole = range(len(self.layers))
        return self.dense_bytes(whole) + self.expert_bytes(whole) + self.embedding_bytes + self.output_bytes


def from_header(header: Header, block_count: int) -> Weights:
    dense, experts = [0] * block_count, [0] * block_count
    largest = {id(dense): 0, id(experts): 0}
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    embedding = output = tied_bytes = 0
    types: dict[str, int] = {}  # bytes that a token reads
    for tensor in header.tensors:
        size, match = tensor.size_bytes, _LAYER.match(tensor.name)
        if match and int(match[1]) < block_count:
            kind = experts if "_exps." in tensor.name or "_chexps." in tensor.name else dense
            kind[int(match[1])] += size
            largest[id(kind)] = max(largest[id(kind)], size)
        elif tensor.name == "rope_freqs.weight":
            dense[0] += size
        elif tensor.name.endswith(LOOKED_UP):
            embedding += size
            if not (tied and tensor.name == "token_embd.weight"):
                continue  # one row of it is read
            tied_bytes = size
        else:
            output += size
        types[tensor.type_name] = types.get(tensor.type_name, 0) + size
    total = max(sum(types.values()), 1)
    mix = tuple((name, size / total) for name, size in types.items())
    layers = tuple(Layer(d, e) for d, e in zip(dense, experts, strict=True))
    return Weights(
        layers, embedding, output, tied_bytes, True, largest[id(dense)], largest[id(experts)], mix, products(header)
    )


@lru_cache
def from_registry(arch: Architecture, file: GGUFFile) -> Weights:
    table, tied = arch.vocab_size * arch.embedding_length, arch.tied_output_embedding
    embedding = int(table * _EMBEDDING_BITS.get(file.quant, 8.5) / 8)
    output = int(table * _OUTPUT_BITS.get(file.quant, 8.5 if tied and file.quant == "Q4_1" else _OUTPUT_BITS_ELSE) / 8)
    if tied:
        embedding, output = output, 0
    metadata = arch.vocab_size * _METADATA_BYTES_PER_TOKEN
    share = max(file.size_bytes - metadata - embedding - output, 0) / arch.block_count
    width = arch.expert_feed_forward_length or arch.feed_forward_length
    feed_forward = 3 * arch.embedding_length * width * arch.expert_count
    heads = arch.attention_head_count + arch.attention_head_count_kv
    attention = arch.embedding_length * heads * (arch.key_length + arch.value_length)
    experts = int(share * feed_forward / (feed_forward + attention))
    layers = (Layer(int(share) - experts, experts),) * arch.block_count
    # half of a feed-forward is more than its largest tensor takes, also when ffn_down is the finer one
    largest = layers[0].dense_bytes // 2, layers[0].expert_bytes // 2
    mix = ((file.quant.removesuffix("_M"), 1.0),)  # Q4_K_M is Q4_K for the most part
    return Weights(layers, embedding, output, embedding if tied else 0, False, *largest, mix)
