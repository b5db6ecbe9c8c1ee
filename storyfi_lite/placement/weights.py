"""A model file's weights as placement sees them: bytes a layer, experts apart, embedding and output apart.

From the file's header, to the byte; before any of the file is there, from the registry's figures: then the sizes are
those of models.yaml, shared out by the shapes of the architecture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from storyfi_lite.models.gguf import Header
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
    """`output_bytes` include the output norm. With a tied embedding they are a second copy, made only on a GPU."""

    layers: tuple[Layer, ...]
    embedding_bytes: int
    output_bytes: int
    tied: bool
    exact: bool
    largest_dense_bytes: int  # of a layer's tensors; what a GPU copies in when it helps with a layer in RAM
    largest_expert_bytes: int
    mix: tuple[tuple[str, float], ...]  # ggml's types and the share of bytes that a token reads of each

    @property
    def layer_bytes(self) -> int:
        return sum(layer.dense_bytes + layer.expert_bytes for layer in self.layers)

    @property
    def host_bytes(self) -> int:
        """All of them, with nothing on a GPU."""
        return self.layer_bytes + self.embedding_bytes + (0 if self.tied else self.output_bytes)


def from_header(header: Header, block_count: int) -> Weights:
    dense, experts = [0] * block_count, [0] * block_count
    embedding = output = norm = 0
    largest = {id(dense): 0, id(experts): 0}
    types: dict[str, int] = {}
    for tensor in header.tensors:
        types[tensor.type_name] = types.get(tensor.type_name, 0) + tensor.size_bytes
        match = _LAYER.match(tensor.name)
        if match and int(match[1]) < block_count:
            kind = experts if "_exps." in tensor.name or "_chexps." in tensor.name else dense
            kind[int(match[1])] += tensor.size_bytes
            largest[id(kind)] = max(largest[id(kind)], tensor.size_bytes)
        elif tensor.name == "token_embd.weight":
            embedding += tensor.size_bytes
        elif tensor.name == "rope_freqs.weight":
            dense[0] += tensor.size_bytes
        elif tensor.name == "output.weight":
            output += tensor.size_bytes
        else:
            norm += tensor.size_bytes
    tied = output == 0
    if not tied:  # one row of it is read
        table = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
        if table:
            types[table.type_name] -= table.size_bytes
    total = max(sum(types.values()), 1)
    mix = tuple((name, size / total) for name, size in types.items() if size)
    layers = tuple(Layer(d, e) for d, e in zip(dense, experts, strict=True))
    output = (embedding if tied else output) + norm
    return Weights(layers, embedding, output, tied, True, largest[id(dense)], largest[id(experts)], mix)


@lru_cache
def from_registry(arch: Architecture, file: GGUFFile) -> Weights:
    table = arch.vocab_size * arch.embedding_length
    embedding = int(table * _EMBEDDING_BITS.get(file.quant, 8.5) / 8)
    output = int(table * _OUTPUT_BITS.get(file.quant, _OUTPUT_BITS_ELSE) / 8)
    if arch.tied_output_embedding:
        embedding = output = int(
            table * _OUTPUT_BITS.get(file.quant, _OUTPUT_BITS_ELSE if file.quant != "Q4_1" else 8.5) / 8
        )
    metadata = arch.vocab_size * _METADATA_BYTES_PER_TOKEN
    rest = file.size_bytes - metadata - embedding - (0 if arch.tied_output_embedding else output)
    share = max(rest, 0) / arch.block_count
    width = arch.expert_feed_forward_length or arch.feed_forward_length
    feed_forward = 3 * arch.embedding_length * width * arch.expert_count
    heads = arch.attention_head_count + arch.attention_head_count_kv
    attention = arch.embedding_length * heads * (arch.key_length + arch.value_length)
    experts = int(share * feed_forward / (feed_forward + attention))
    layers = (Layer(int(share) - experts, experts),) * arch.block_count
    # half of a feed-forward is more than its largest tensor takes, also when ffn_down is the finer one
    tied = arch.tied_output_embedding
    largest = layers[0].dense_bytes // 2, layers[0].expert_bytes // 2
    mix = ((file.quant.removesuffix("_M"), 1.0),)  # Q4_K_M is Q4_K for the most part
    return Weights(layers, embedding, output, tied, False, *largest, mix)
