"""A model file of half a megabyte, with one odd thing in it: for tests on files as the world has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, FEED_FORWARD = 64, 4, 2, 64
CHAT = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}<s>assistant\n"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # token types of gguf


@dataclass(frozen=True)
class TinyVocabulary:
    """`kind` is the tokenizer's name in GGUF. `tokens`: each with its type. `more`: further tokenizer keys."""

    kind: str
    tokens: Mapping[str, int]
    more: Mapping[str, Any] = field(default_factory=dict)


SPM = TinyVocabulary(
    "llama",
    {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    | dict.fromkeys(BYTES, BYTE)
    | dict.fromkeys([*(chr(code) for code in range(ord("a"), ord("z") + 1)), "."], NORMAL),
    {"bos_token_id": 1, "eos_token_id": 2},
)


_VALUE_TYPES = {
    str: gguf.GGUFValueType.STRING,
    bool: gguf.GGUFValueType.BOOL,
    float: gguf.GGUFValueType.FLOAT32,
    int: gguf.GGUFValueType.UINT32,
}
_FIGURES: dict[str, Any] = {
    "llama.block_count": LAYERS,
    "llama.context_length": 8192,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": FEED_FORWARD,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": WIDTH // HEADS,
}


def tiny_gguf(
    path: Path,
    chat: str | Mapping[str, str] | None = CHAT,
    *,
    vocabulary: TinyVocabulary = SPM,
    alignment: int | None = None,
    more: Mapping[str, Any] | None = None,
    raw: Mapping[str, tuple[gguf.GGMLQuantizationType, int, int]] | None = None,
) -> Path:
    """Writes the file. `chat`: its template, or named ones; "" is the unnamed.
    `more`: metadata beside or instead of the usual. `raw`: for the
    tensors that end so, another type with the weights and bytes of its blocks."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value in {**_FIGURES, **(more or {})}.items():
        writer.add_key_value(key, value, _VALUE_TYPES[type(value)])
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_scores([0.0] * len(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.tokens.values()))
    for key, value in vocabulary.more.items():
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_key_value(f"tokenizer.ggml.{key}", value, _VALUE_TYPES[type(value)])
    for name, source in ({"": chat} if isinstance(chat, str) else chat or {}).items():
        writer.add_string(f"tokenizer.chat_template.{name}".rstrip("."), source)
    random = np.random.default_rng(0)
    for name, (rows, columns) in _shapes(len(vocabulary.tokens)).items():
        kind, weights, size_bytes = next(
            (of for end, of in (raw or {}).items() if name.endswith(end)), (gguf.GGMLQuantizationType.F32, 1, 4)
        )
        if kind == gguf.GGMLQuantizationType.F32:
            numbers = np.ones(columns) if rows == 0 else random.normal(0, 0.1, (rows, columns))
            writer.add_tensor(name, numbers.astype(np.float32))
        else:
            blocks = np.full((rows, columns // weights * size_bytes), 0x38, np.uint8)
            writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(n_tokens: int) -> dict[str, tuple[int, int]]:
    """Rows and columns; a norm has no rows."""
    shapes = {"token_embd.weight": (n_tokens, WIDTH), "output_norm.weight": (0, WIDTH)}
    for layer in range(LAYERS):
        block = {f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        block |= {"ffn_gate": (FEED_FORWARD, WIDTH), "ffn_up": (FEED_FORWARD, WIDTH), "ffn_down": (WIDTH, FEED_FORWARD)}
        block |= {"attn_norm": (0, WIDTH), "ffn_norm": (0, WIDTH)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes
