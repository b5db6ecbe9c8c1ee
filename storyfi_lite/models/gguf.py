"""Reads the head of a GGUF file, its metadata and where its tensors lie, without the tensors.

Reads through a `read_range(start, size) -> bytes`, so a local file and a remote one (ranged HTTP reads of the first
megabytes) go the same way. Everything in a file is doubted: counts, lengths and offsets are bounded before they are
used, and what is wrong is one line of BadInput. A file that is something else is named (file_kinds.py). Of llama.cpp only its
list of tensor types is asked, where it is installed. Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from storyfi_lite.errors import BadInput
from storyfi_lite.models import file_kinds
from storyfi_lite.models.registry import Architecture

ReadRange = Callable[[int, int], bytes]
Value = int | float | bool | str | tuple[int | float | bool, ...]

MAX_HEADER_BYTES = 256 << 20  # a 256k vocabulary with its merges takes about 12 MB
MAX_ENTRIES = 1 << 16
MAX_ARRAY = 1 << 24
MAX_KEPT_ARRAY = 1 << 12  # longer arrays (the vocabulary) are measured, not kept
BLOCK_BYTES = 4 << 20
MIN_ALIGNMENT = 32  # below, llama.cpp aborts: its computing wants tensors at multiples of it (TENSOR_ALIGNMENT)
# GGUF value type -> struct's code
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# tables that llama.cpp looks rows up in: they stay in RAM, also gemma3n's, which are larger than its layers
LOOKED_UP = ("token_embd.weight", "position_embd.weight", "token_types.weight")
EXPERT_TENSORS = ("_exps.weight", "_chexps.weight")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    type_name: str
    size_bytes: int
    offset: int  # from the start of the data section


@dataclass(frozen=True)
class Header:
    """Holds a file's metadata and tensors. `array_lengths`: of every array, also of those that are too long to keep."""

    metadata: Mapping[str, Value]
    array_lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]


class _Reader:
    """Reads numbers and texts in order through read_range, a block at a time."""

    def __init__(self, read_range: ReadRange, size_bytes: int, name: str) -> None:
        self._read_range, self._size, self.name = read_range, size_bytes, name
        self._block, self._start, self.position = b"", 0, 0

    def take(self, size: int) -> bytes:
        start = self.position
        self.skip(size)
        if self.position > MAX_HEADER_BYTES:
            raise BadInput(
                f"{self.name}: its header is longer than {MAX_HEADER_BYTES >> 20} MiB; this is no usable GGUF file"
            )
        if not self._start <= start <= self.position <= self._start + len(self._block):
            want = min(max(size, BLOCK_BYTES), self._size - start)
            self._block, self._start = self._read_range(start, want), start
            if len(self._block) < size:
                raise BadInput(f"{self.name}: a read at byte {start:,} came back short; fetch it again")
        return self._block[start - self._start : self.position - self._start]

    def skip(self, size: int) -> None:
        if self.position + size > self._size:
            raise BadInput(
                f"{self.name} is cut off: its header needs more than its {self._size:,} bytes; fetch it again"
            )
        self.position += size

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def count(self, what: str, limit: int) -> int:
        value = self.number("Q")
        if value > limit:
            raise BadInput(f"{self.name} is damaged: it announces {value:,} {what}")
        return value

    def string(self, limit: int = 1 << 20) -> str:
        return self.take(self.count("bytes of text", limit)).decode("utf-8", "replace")


def read_header(read_range: ReadRange, size_bytes: int, name: str) -> Header:
    """Read a header. Raises BadInput, one line, if this is no whole GGUF file of `size_bytes`."""
    reader = _Reader(read_range, size_bytes, name)
    beginning = reader.take(min(size_bytes, file_kinds.BEGINNING_BYTES))
    if not beginning.startswith(b"GGUF"):
        raise BadInput(f"{name} is not a GGUF file{file_kinds.not_gguf(beginning, name)}")
    reader.position = 4
    version = reader.number("I")
    if version not in (2, 3):
        hint = "it is big-endian" if version in (2 << 24, 3 << 24) else "there are 2 and 3"
        raise BadInput(f"{name} has GGUF version {version}, which is not supported: {hint}")
    n_tensors = reader.count("tensors", MAX_ENTRIES)
    n_values = reader.count("metadata values", MAX_ENTRIES)
    metadata: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(n_values):
        key = reader.string(1 << 16)
        value, length = _value(reader, reader.number("I"))
        if value is not None:
            metadata[key] = value
        if length is not None:
            lengths[key] = length
    types = ggml_types()
    tensors = tuple(_tensor(reader, types) for _ in range(n_tensors))
    start = _data_start(metadata, reader)
    if not types:  # no size is known: a tensor's bytes go up to the next one, and are at most an alignment too many
        offsets = sorted(tensor.offset for tensor in tensors)
        next_offset = dict(zip(offsets, [*offsets[1:], max(size_bytes - start, 0)], strict=True))
        tensors = tuple(replace(one, size_bytes=next_offset[one.offset] - one.offset) for one in tensors)
    end = max((start + tensor.offset + tensor.size_bytes for tensor in tensors), default=0)
    if end > size_bytes:
        raise BadInput(
            f"{name} is cut off: its tensors end at byte {end:,}, the file has {size_bytes:,}; fetch it again"
        )
    return Header(metadata, lengths, tensors)


@cache
def ggml_types() -> Mapping[int, tuple[str, int, int]]:
    """Ask llama.cpp for the types that it knows: name, weights a block and bytes a block. Empty where it is not installed."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError):  # not installed, or a library of its own is missing
        return {}
    ggml = llama_cpp.llama_cpp._lib
    ggml.ggml_type_name.restype, ggml.ggml_blck_size.restype = ctypes.c_char_p, ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    return {
        kind: (ggml.ggml_type_name(kind).decode().upper(), ggml.ggml_blck_size(kind), ggml.ggml_type_size(kind))
        for kind in range(llama_cpp.GGML_TYPE_COUNT)
        if ggml.ggml_blck_size(kind)  # a type that was taken out has none
    }


def _value(reader: _Reader, kind: int) -> tuple[Value | None, int | None]:
    """Read a value, and the length if it is an array. Long arrays and arrays of text are skipped."""
    if kind in _SCALARS:
        code = "<" + _SCALARS[kind]
        return struct.unpack(code, reader.take(struct.calcsize(code)))[0], None
    if kind == _STRING:
        return reader.string(), None
    if kind != _ARRAY:
        raise BadInput(f"{reader.name} is damaged: there is no metadata type {kind}")
    inner = reader.number("I")
    length = reader.count("array entries", MAX_ARRAY)
    if inner == _STRING:
        for _ in range(length):
            reader.skip(reader.count("bytes of text", 1 << 20))
        return None, length
    if inner not in _SCALARS:
        raise BadInput(f"{reader.name} is damaged: there is no array of type {inner}")
    code = f"<{length}{_SCALARS[inner]}"
    if length > MAX_KEPT_ARRAY:
        reader.skip(struct.calcsize(code))
        return None, length
    return struct.unpack(code, reader.take(struct.calcsize(code))), length


def _tensor(reader: _Reader, types: Mapping[int, tuple[str, int, int]]) -> Tensor:
    """Read a tensor's entry. Its size stays 0 where no type is known."""
    name = reader.string(1 << 10)
    n_dims = reader.number("I")
    if not 1 <= n_dims <= 4:
        raise BadInput(f"{reader.name} is damaged: tensor {name!r} has {n_dims} dimensions")
    shape = struct.unpack(f"<{n_dims}Q", reader.take(8 * n_dims))
    kind, offset = reader.number("I"), reader.number("Q")
    if types and kind not in types:
        raise BadInput(
            f"{reader.name}: tensor {name!r} has type {kind}, which llama.cpp here does not know; take another quantization"
        )
    type_name, per_block, block_bytes = types.get(kind, (f"type {kind}", 1, 0))
    weights = math.prod(shape)
    if weights == 0 or weights > 1 << 44 or shape[0] % per_block:
        raise BadInput(f"{reader.name} is damaged: tensor {name!r} has the shape {shape}")
    return Tensor(name, shape, type_name, weights // per_block * block_bytes, offset)


def _data_start(metadata: Mapping[str, Value], reader: _Reader) -> int:
    alignment = metadata.get("general.alignment", MIN_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise BadInput(f"{reader.name} is damaged: alignment {alignment}")
    if alignment < MIN_ALIGNMENT:
        raise BadInput(
            f"{reader.name} has its tensors at multiples of {alignment} bytes, and llama.cpp needs {MIN_ALIGNMENT}; "
            "convert it again, or take another file of this model"
        )
    return -(-reader.position // alignment) * alignment


def read_local(path: Path) -> Header:
    """Read the header of a file, or of the split set that `path` is the first part of. Raises BadInput."""
    parts = [_read_part(part) for part in split_parts(path)]
    count = parts[0].metadata.get("split.count", 1)
    if isinstance(count, int) and count > len(parts):
        raise BadInput(f"{path.name} is one of {count} parts but is not named so; give part 1 under its own name")
    return join(parts)


def join(parts: list[Header]) -> Header:
    """Join the headers of a split set: the first part's metadata, all parts' tensors."""
    return Header(parts[0].metadata, parts[0].array_lengths, tuple(t for part in parts for t in part.tensors))


def split_parts(path: Path) -> list[Path]:
    """Return all parts of the set that `path` begins. Raises BadInput for a missing part."""
    match = _SPLIT.search(path.name)
    if match is None:
        return [path]
    if match[1] != "00001":
        raise BadInput(f"{path.name} is part {int(match[1])}; give part 1 of the set")
    total = int(match[2])
    parts = [path.with_name(f"{path.name[: match.start()]}-{i:05}-of-{total:05}.gguf") for i in range(1, total + 1)]
    for part in parts:
        if not part.is_file():
            raise BadInput(f"{part.name} is missing beside {path.name}; fetch all {total} parts")
    return parts


def _read_part(path: Path) -> Header:
    try:
        with path.open("rb") as file:

            def read_range(start: int, size: int) -> bytes:
                file.seek(start)
                return file.read(size)

            return read_header(read_range, path.stat().st_size, path.name)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None


def products(header: Header) -> frozenset[str]:
    """Return what a file's weights are multiplied as: the types, with "experts in " before those of a mixture's experts. Tables that rows
    are looked up in are none, but for an embedding that is the output matrix too."""
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    return frozenset(
        f"experts in {tensor.type_name}" if tensor.name.endswith(EXPERT_TENSORS) else tensor.type_name
        for tensor in header.tensors
        if not tensor.name.endswith(LOOKED_UP) or (tied and tensor.name == "token_embd.weight")
    )


def architecture(header: Header, name: str) -> Architecture:
    """Return the figures that planning needs. Raises BadInput, naming the missing key. `name`: the file's, for the message."""
    kind = header.metadata.get("general.architecture")
    if other := file_kinds.no_language_model(header.metadata, len(header.tensors)):
        raise BadInput(f"{name} is no language model: {other}")

    def figure(key: str, default: int | None = None) -> int:
        value = header.metadata.get(f"{kind}.{key}", default)
        value = max(value) if isinstance(value, tuple) and value else value
        if not isinstance(value, int) or value < 0:
            raise BadInput(f"{name} lacks {kind}.{key}: it is no language model, or damaged")
        return value

    assert isinstance(kind, str)
    block_count, embedding, heads = figure("block_count"), figure("embedding_length"), figure("attention.head_count")
    if block_count > len(header.tensors):
        raise BadInput(
            f"{name} is damaged: it announces {block_count:,} layers and has {len(header.tensors):,} tensors"
        )
    by_layer = header.metadata.get(f"{kind}.attention.head_count_kv")
    head_size = embedding // heads if heads else 0
    tensor_names = {tensor.name for tensor in header.tensors}
    try:
        return Architecture(
            name=kind,
            block_count=block_count,
            embedding_length=embedding,
            feed_forward_length=figure("feed_forward_length") // (2 if kind == "qwen" else 1),
            attention_head_count=heads,
            attention_head_count_kv=figure("attention.head_count_kv", heads),
            key_length=figure("attention.key_length", head_size),
            value_length=figure("attention.value_length", head_size),
            vocab_size=header.array_lengths.get("tokenizer.ggml.tokens") or figure("vocab_size"),
            context_length=figure("context_length"),
            expert_count=figure("expert_count", 0),
            expert_used_count=figure("expert_used_count", 0),
            expert_feed_forward_length=figure("expert_feed_forward_length", 0),
            sliding_window=figure("attention.sliding_window", 0) or None,
            tied_output_embedding="output.weight" not in tensor_names,
            kv_heads_by_layer=tuple(map(int, by_layer[:block_count])) if isinstance(by_layer, tuple) else (),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(
            f"{name} is damaged, or no language model: {'.'.join(map(str, first['loc']))} is {str(first['input'])[:40]}"
        ) from None
