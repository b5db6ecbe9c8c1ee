#!/usr/bin/env python3
"""Writes synthetic GGUF files for measuring memory: right shapes, random weights, a made-up vocabulary.

scripts/make_gguf.py out/ --size small               every architecture of the registry, a few MB each
scripts/make_gguf.py out/ --size full --only llama   real size; sparse, so that it takes no disk (weights are zeros)

With --tokenizer the vocabulary is a real one, from a file of base64 tokens and ranks, such as Llama 3's, which the package
llama-models carries (llama_models/llama3/tokenizer.model, 128,256 tokens). For measuring speed, at full size with random weights:

pip download --no-deps llama-models && unzip llama_models-*.whl llama_models/llama3/tokenizer.model
scripts/make_gguf.py out/ --size full --only llama --type Q4_K --random --tokenizer llama_models/llama3/tokenizer.model

The vocabulary of another GGUF file serves as well (--tokenizer FILE.gguf): then one file's answers can be replayed with the other.
"""

from __future__ import annotations

import argparse
import base64
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# Of the last norm: then some dozens of tokens are likely, as in a story; with 0.05 the whole vocabulary is, and choosing slow.
_NORM_DEVIATION = 0.75
_PLAIN_TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@dataclass(frozen=True)
class Shape:
    arch: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int = 8192
    experts: int = 0
    experts_used: int = 0
    window: int = 0


SMALL = {
    "llama": Shape("llama", 6, 512, 1536, 8, 2, 64, 4096),
    "mixtral": Shape("llama", 6, 512, 512, 8, 2, 64, 2048, experts=8, experts_used=2),
    "qwen": Shape("qwen", 6, 512, 1376, 8, 8, 64, 8192),
    "phi3": Shape("phi3", 6, 512, 1792, 8, 2, 64, 2048),
    "gemma": Shape("gemma", 4, 512, 4096, 4, 4, 256, 16384),
    "sliding": Shape("gemma2", 6, 512, 2048, 8, 4, 64, 8192, window=512),
    "qwen3": Shape("qwen3", 6, 512, 1536, 8, 2, 128, 8192),
    "qwen3moe": Shape("qwen3moe", 6, 512, 256, 8, 2, 64, 8192, experts=16, experts_used=4),
    "gemma3": Shape("gemma3", 12, 512, 2048, 4, 2, 256, 16384, window=512),
    "gpt-oss": Shape("gpt-oss", 6, 512, 512, 8, 2, 64, 8192, experts=8, experts_used=4, window=128),
}
FULL = {
    "llama": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256),
    "mixtral": Shape("llama", 32, 4096, 14336, 32, 8, 128, 32000, 32768, 8, 2),
    "qwen": Shape("qwen", 80, 8192, 24576, 64, 64, 128, 152064, 32768),
    "phi3": Shape("phi3", 40, 5120, 17920, 40, 10, 128, 32064, 4096),
    "gemma": Shape("gemma", 28, 3072, 24576, 16, 16, 256, 256000),
    "sliding": Shape("gemma2", 42, 3584, 14336, 16, 8, 256, 256000, 8192, window=4096),
    "llama-70b": Shape("llama", 80, 8192, 28672, 64, 8, 128, 128256),
    "qwen3": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 40960),
    "qwen3moe": Shape("qwen3moe", 48, 2048, 768, 32, 4, 128, 151936, 40960, 128, 8),
    "gemma3": Shape("gemma3", 48, 3840, 15360, 16, 8, 256, 262144, 131072, window=1024),
    "gpt-oss": Shape("gpt-oss", 24, 2880, 2880, 64, 8, 64, 201088, 131072, 32, 4, window=128),
}


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name -> dimensions in ggml's order, fastest first."""
    width, query, key = shape.width, shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (width, shape.vocabulary),
        "output_norm.weight": (width,),
    }
    if not shape.arch.startswith("gemma"):
        found["output.weight"] = (width, shape.vocabulary)
    layer: dict[str, tuple[int, ...]] = {"attn_norm.weight": (width,), "ffn_norm.weight": (width,)}
    if shape.arch in ("qwen", "phi3"):
        layer["attn_qkv.weight"] = (width, query + 2 * key)
    else:
        layer |= {"attn_q.weight": (width, query), "attn_k.weight": (width, key), "attn_v.weight": (width, key)}
    if shape.arch == "qwen":
        layer["attn_qkv.bias"] = (query + 2 * key,)
    layer["attn_output.weight"] = (query, width)
    if shape.arch in ("gemma2", "gemma3"):
        layer |= {"post_attention_norm.weight": (width,), "post_ffw_norm.weight": (width,)}
    if shape.arch in ("qwen3", "qwen3moe", "gemma3"):
        layer |= {"attn_q_norm.weight": (shape.head_size,), "attn_k_norm.weight": (shape.head_size,)}
    if shape.arch == "gpt-oss":
        layer["post_attention_norm.weight"] = layer.pop("ffn_norm.weight")
        layer |= {"attn_q.bias": (query,), "attn_k.bias": (key,), "attn_v.bias": (key,), "attn_output.bias": (width,)}
        layer |= {"attn_sinks.weight": (shape.heads,), "ffn_gate_inp.bias": (shape.experts,)}
        layer |= {f"ffn_{name}_exps.bias": (shape.feed_forward, shape.experts) for name in ("gate", "up")}
        layer["ffn_down_exps.bias"] = (width, shape.experts)
    layer |= _feed_forward(shape)
    for number in range(shape.layers):
        found |= {f"blk.{number}.{name}": dimensions for name, dimensions in layer.items()}
    return found


def _feed_forward(shape: Shape) -> dict[str, tuple[int, ...]]:
    width, inner, experts = shape.width, shape.feed_forward, shape.experts
    if experts:
        return {
            "ffn_gate_inp.weight": (width, experts),
            "ffn_gate_exps.weight": (width, inner, experts),
            "ffn_up_exps.weight": (width, inner, experts),
            "ffn_down_exps.weight": (inner, width, experts),
        }
    if shape.arch == "phi3":
        return {"ffn_up.weight": (width, 2 * inner), "ffn_down.weight": (inner, width)}
    return {"ffn_gate.weight": (width, inner), "ffn_up.weight": (width, inner), "ffn_down.weight": (inner, width)}


# weights a block, bytes a block, a block's scales as halves: such that logits spread by about 4 nats, like a real model's
BLOCKS = {"Q8_0": (32, 34, (0.001,)), "Q4_K": (256, 144, (0.0004, 0.003))}


def write(path: Path, shape: Shape, sparse: bool, kind_name: str, tokenizer: Path | None) -> None:
    """Quantized matrices, F32 vectors."""
    import gguf

    writer = gguf.GGUFWriter(path, shape.arch)
    _metadata(writer, shape)
    if tokenizer is None:
        _made_up_vocabulary(writer, shape)
    elif tokenizer.suffix == ".gguf":
        _copied_vocabulary(writer, tokenizer)
    else:
        _real_vocabulary(writer, shape, tokenizer)
    block_weights, block_bytes, _ = BLOCKS[kind_name]
    random = np.random.default_rng(0)
    plan = []
    for name, dimensions in tensors(shape).items():
        if len(dimensions) == 1 or "ffn_gate_inp" in name or name.endswith("bias"):
            dtype: type = np.float32
            kind, rows = None, tuple(reversed(dimensions))
        else:
            dtype, kind = np.uint8, gguf.GGMLQuantizationType[kind_name]
            rows = (*reversed(dimensions[1:]), dimensions[0] // block_weights * block_bytes)
        size = int(np.prod(rows)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(name, rows, np.dtype(dtype), size, kind)
        plan.append((rows, dtype, size, _NORM_DEVIATION if name == "output_norm.weight" else 0.05))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out: Any = writer.fout[0]  # type: ignore[index]
    out.write(b"\0" * (-out.tell() % 32))
    for rows, dtype, size, deviation in plan:
        if sparse:
            out.seek(size + -size % 32, 1)
        else:
            out.write(_random(random, rows, dtype, kind_name, deviation).tobytes() + b"\0" * (-size % 32))
    out.truncate()
    writer.close()


def _random(
    random: np.random.Generator, rows: tuple[int, ...], dtype: Any, kind_name: str, deviation: float
) -> np.ndarray[Any, Any]:
    if dtype is np.float32:
        return random.normal(0, deviation, rows).astype(np.float32)
    _, block_bytes, scales = BLOCKS[kind_name]
    blocks = random.integers(0, 256, (*rows[:-1], rows[-1] // block_bytes, block_bytes), dtype=np.uint8)
    spread = random.uniform(0.5, 1.5, (*blocks.shape[:-1], 1))  # one equal scale for all would be read twice as fast
    heads = (spread * np.array(scales)).astype(np.float16)
    blocks[..., : 2 * len(scales)] = heads.view(np.uint8)
    return blocks


def _metadata(writer: Any, shape: Shape) -> None:
    writer.add_name("synthetic")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward * (2 if shape.arch == "qwen" else 1))
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.feed_forward)
    if shape.window:
        writer.add_sliding_window(shape.window)


def _made_up_vocabulary(writer: Any, shape: Shape) -> None:
    writer.add_chat_template(_PLAIN_TEMPLATE)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"w{i}" for i in range(shape.vocabulary - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * shape.vocabulary)
    writer.add_token_types([2, 3, 3, *([6] * 256), *([1] * (shape.vocabulary - 259))])


def _real_vocabulary(writer: Any, shape: Shape, tokenizer: Path) -> None:
    """A tiktoken file as GGUF spells it: bytes as GPT-2's printable characters, merges in order of rank."""
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, tokenizer.read_text().splitlines())}
    letters = _printable_bytes()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    writer.add_chat_template(_PLAIN_TEMPLATE)
    ordered = sorted(ranks, key=ranks.__getitem__)
    halves = [_halves(ranks, token) for token in ordered if len(token) > 1]
    merges = [" ".join(map(spelled, pair)) for pair in halves if pair]
    special = [f"<|special_{number}|>" for number in range(shape.vocabulary - len(ordered))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*map(spelled, ordered), *special])
    writer.add_token_types([1] * len(ordered) + [3] * len(special))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(ordered))
    writer.add_eos_token_id(len(ordered) + 1)


def _copied_vocabulary(writer: Any, source: Path) -> None:
    """With the chat template. The shape's vocabulary must be of its size."""
    import gguf

    for name, field in gguf.GGUFReader(source).fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)


def _printable_bytes() -> list[str]:
    """GPT-2's: printable Latin-1 bytes stand for themselves, the others for characters from U+0100 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(moved)) for byte in range(256)]


def _halves(ranks: dict[bytes, int], token: bytes) -> tuple[bytes, bytes] | None:
    """The last merge that makes the token: byte pairs are merged by rank until two parts are left. None for the few tokens
    that no merges lead to; llama.cpp looks whole words up first."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        rank, at = min((ranks.get(parts[at] + parts[at + 1], 1 << 30), at) for at in range(len(parts) - 1))
        if rank >= ranks[token]:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--only", help="one architecture")
    parser.add_argument("--layers", type=int, help="so many layers in place of the shape's own")
    parser.add_argument("--type", choices=BLOCKS, default="Q8_0")
    parser.add_argument("--tokenizer", type=Path, help="a real vocabulary, not larger than the shape's")
    parser.add_argument("--random", action="store_true", help="random weights at full size too")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for name, shape in (SMALL if options.size == "small" else FULL).items():
        if options.only in (None, name):
            shape = replace(shape, layers=options.layers or shape.layers)
            path = options.directory / f"{name}-{options.size}.gguf"
            write(path, shape, options.size == "full" and not options.random, options.type, options.tokenizer)
            print(path)


if __name__ == "__main__":
    main()
