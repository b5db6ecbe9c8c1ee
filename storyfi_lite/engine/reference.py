"""Compares llama.cpp, as it is built here, with plain numpy: made-up models of one layer, one for each type of weights, computed by both.

It runs in a process of its own (`python -m storyfi_lite.engine.reference gpu Q4_K "experts in Q4_K"`), because a bad build may crash;
machine/selftest.py starts it and judges. It prints the worst relative error of each part's logits.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

from storyfi_lite import files
from storyfi_lite.engine.model import Context, Feed, Model
from storyfi_lite.engine.sampler import Floats
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import LiteError
from storyfi_lite.machine import devices, selftest

# Where in a block a quantized type keeps its scale (byte offset); if it has a minimum too, where, and how many scales it is.
_SCALES: dict[str, tuple[int, tuple[int, float] | None]] = {
    "Q4_K": (0, (2, 7.5)), "Q6_K": (208, None), "Q5_K": (0, (2, 15.5)), "Q8_0": (0, None), "IQ4_XS": (0, None),
    "Q3_K": (108, None), "Q2_K": (80, (82, 1.5)), "IQ3_S": (0, None), "IQ3_XXS": (0, None), "IQ2_S": (0, None),
    "IQ2_XS": (0, None), "IQ2_XXS": (0, None), "Q4_0": (0, None), "Q4_1": (0, (2, -7.5)), "IQ4_NL": (0, None),
    "Q5_0": (0, None), "Q5_1": (0, (2, -15.5)),
}  # fmt: skip
WIDTH, VOCABULARY = 256, 288
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 64
EXPERTS = 2  # both always used: which of many would be chosen hangs on the last digit
ATTENTION = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (KV_HEADS * HEAD_SIZE, WIDTH),
    "attn_v": (KV_HEADS * HEAD_SIZE, WIDTH),
    "attn_output": (WIDTH, WIDTH),
}
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
EPSILON, ROPE_BASE = 1e-5, 10_000.0
PROMPT_TOKENS = (70, 33)  # of two sequences in one batch: enough for every blocked product, and no round numbers

Weights = dict[str, Floats]


def make_model(path: Path, part: str) -> Weights:
    """Writes a GGUF file of 1 MB, one layer with random weights of the part's type. Returns what they are as float32, by tensor."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    weights: Weights = {}
    kind, with_experts = part.removeprefix(selftest.EXPERTS), part.startswith(selftest.EXPERTS)

    def add(name: str, shape: tuple[int, ...], kind: str) -> None:
        raw = _random(random, shape, kind)
        quant = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=quant)
        weights[name] = dequantize(raw, quant).reshape(shape)

    for name in ATTENTION:
        add(f"blk.0.{name}", ATTENTION[name], "F32" if with_experts else kind)
    for name in FEED_FORWARD:
        if with_experts:
            add(f"blk.0.{name}_exps", (EXPERTS, WIDTH, WIDTH), kind)
        else:
            add(f"blk.0.{name}", (WIDTH, WIDTH), kind)
    if with_experts:
        add("blk.0.ffn_gate_inp", (EXPERTS, WIDTH), "F32")
    for name in ("attn_norm", "ffn_norm"):
        add(f"blk.0.{name}", (WIDTH,), "F32")
    add("token_embd", (VOCABULARY, WIDTH), "F32")
    add("output", (VOCABULARY, WIDTH), "F32" if with_experts else kind)
    add("output_norm", (WIDTH,), "F32")
    _describe(writer, with_experts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _random(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray[Any, Any]:
    """Draw numbers that spread by about 1 / sqrt(WIDTH), so that a matrix keeps a vector's length; a norm's are about 1."""
    deviation = WIDTH**-0.5
    if kind not in _SCALES:
        numbers = random.normal(float(len(shape) == 1), deviation, shape).astype(np.float32)
        return gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
    quant = gguf.GGMLQuantizationType[kind]
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[quant]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // block_weights, block_bytes), dtype=np.uint8)
    flat = blocks.reshape(*shape[:-1], -1)
    scale_at, minimum = _SCALES[kind]

    def set_half(at: int, numbers: Any) -> None:
        blocks[..., at : at + 2] = numbers.astype(np.float16)[..., None].view(np.uint8)

    scales = random.uniform(0.5, 1.5, blocks.shape[:-1])
    for factor in (0.01, None):
        if factor is None:
            factor = 0.01 * deviation / float(dequantize(flat, quant).std())
        set_half(scale_at, factor * scales)
        if minimum:
            set_half(minimum[0], factor * scales * minimum[1])
    return flat


def _describe(writer: gguf.GGUFWriter, with_experts: bool) -> None:
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)
    if with_experts:
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(EXPERTS)
    writer.add_vocab_size(VOCABULARY)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"word{number}" for number in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([2, 3, 3, *([6] * 256), *([1] * (VOCABULARY - 259))])


# --- the model in numpy ----------------------------------------------------------------------------------------


def logits(weights: Weights, tokens: list[int]) -> Floats:
    """Compute the logits of every position, (tokens, vocabulary), by llama.cpp's "llama" architecture (llama-graph.cpp)."""
    of_layer = {name.removeprefix("blk.0."): value for name, value in weights.items()}
    hidden = weights["token_embd"][tokens]
    hidden = hidden + _attention(of_layer, _normed(hidden, of_layer["attn_norm"]))
    forward = _experts if "ffn_gate_inp" in of_layer else _feed_forward
    hidden = hidden + forward(of_layer, _normed(hidden, of_layer["ffn_norm"]))
    return _normed(hidden, weights["output_norm"]) @ weights["output"].T


def _normed(hidden: Floats, weight: Floats) -> Floats:
    return hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + EPSILON) * weight


def _attention(weights: Weights, hidden: Floats) -> Floats:
    def heads(name: str) -> Floats:
        return (hidden @ weights[name].T).reshape(len(hidden), -1, HEAD_SIZE).transpose(1, 0, 2)

    query, key, value = _rotated(heads("attn_q")), _rotated(heads("attn_k")), heads("attn_v")
    key, value = (np.repeat(each, HEADS // KV_HEADS, axis=0) for each in (key, value))
    scores = query @ key.transpose(0, 2, 1) * HEAD_SIZE**-0.5
    scores[:, np.triu(np.ones(scores.shape[1:], dtype=bool), 1)] = -np.inf  # no token sees the ones after it
    mixed = _softmax(scores) @ value
    return mixed.transpose(1, 0, 2).reshape(len(hidden), -1) @ weights["attn_output"].T


def _rotated(heads: Floats) -> Floats:
    """Rotate neighbouring pairs of numbers by their position."""
    angles = np.arange(heads.shape[1])[:, None] * ROPE_BASE ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    turned = (heads[..., ::2] + 1j * heads[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(heads.shape)


def _experts(weights: Weights, hidden: Floats) -> Floats:
    each = [weights[f"{name}_exps"] for name in FEED_FORWARD]
    answers = [
        _feed_forward(dict(zip(FEED_FORWARD, of_one, strict=True)), hidden) for of_one in zip(*each, strict=True)
    ]
    shares = _softmax(hidden @ weights["ffn_gate_inp"].T)
    return np.einsum("etw,te->tw", np.stack(answers), shares)


def _feed_forward(weights: Weights, hidden: Floats) -> Floats:
    gate, up, down = (weights[name].T for name in FEED_FORWARD)
    gated = hidden @ gate
    return (gated / (1 + np.exp(-gated)) * (hidden @ up)) @ down


def _softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


# --- and in llama.cpp ------------------------------------------------------------------------------------------


def worst_error(path: Path, weights: Weights, n_gpu_layers: int) -> float:
    """Return the largest error of one position's logits, relative to their spread; infinite if one is no number."""
    random = np.random.default_rng(1)
    lengths = (PROMPT_TOKENS[0] + 2, PROMPT_TOKENS[1] + 1)
    texts = [random.integers(3, VOCABULARY, length).tolist() for length in lengths]
    want = [logits(weights, text) for text in texts]
    layers = EngineSettings(n_ctx=256, n_slots=2, n_gpu_layers=n_gpu_layers)
    with closing(Model(path, layers)) as model, closing(Context(model, layers)) as context:
        return _worst_error(context, texts, want)


def _worst_error(context: Context, texts: list[list[int]], want: list[Floats]) -> float:
    done, worst = [0, 0], 0.0
    for counts in (PROMPT_TOKENS, (1, 0), (1, 1)):
        feeds = [
            Feed(sequence, done[sequence], texts[sequence][done[sequence] :][:count], list(range(count)))
            for sequence, count in enumerate(counts)
            if count
        ]
        for feed, rows in zip(feeds, context.decode(feeds), strict=True):
            of_sequence = want[feed.sequence][feed.start :][: len(rows)]
            for got, right in zip(rows, of_sequence, strict=True):
                error = float(np.linalg.norm(got - right) / np.linalg.norm(right))
                worst = max(worst, error if np.isfinite(error) else np.inf)
            done[feed.sequence] += len(rows)
    return worst


def main() -> None:
    """Test the named parts on a device. Prints each one's error as soon as it is known."""
    where, *parts = sys.argv[1:]
    # what this process is for: it must load the model unasked
    selftest.TESTED.update({(device, part): "" for device in selftest.ALWAYS for part in selftest.PARTS})
    try:
        with tempfile.TemporaryDirectory() as directory:
            for part in parts:
                path = Path(directory) / f"{part}.gguf"
                print(worst_error(path, make_model(path, part), 99 if where == "gpu" else 0), flush=True)
                path.unlink()
    except LiteError as error:
        print("; ".join(devices.complaints) or error, file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # what is written or read here is that file alone
        print(files.unwritable("the test's model", error, "TMPDIR=DIRECTORY"), file=sys.stderr)
        sys.exit(os.EX_IOERR)


if __name__ == "__main__":
    main()
