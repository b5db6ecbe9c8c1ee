"""The header reader: what the file says, and one clear line for each way in which a file can be wrong."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from storyfi_lite.engine.model import Model
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import BadInput
from storyfi_lite.models.gguf import architecture, read_header, read_local
from tests.tiny_gguf import tiny_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(
    tensors: list[tuple[str, tuple[int, ...], int, int]], *, data: int, metadata: bytes = b"", values: int = 0
) -> bytes:
    """A file with these (name, shape, type, offset) and `data` bytes behind its header."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), values) + metadata
    for name, shape, kind, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return head + b"\0" * (-len(head) % 32) + b"\0" * data


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_local(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_the_real_model(small_model_path: Path) -> None:
    header = read_local(small_model_path)
    arch = architecture(header, small_model_path.name)
    assert (arch.name, arch.block_count, arch.vocab_size, arch.attention_head_count_kv) == ("llama", 30, 49152, 3)
    assert arch.tied_output_embedding and len(header.tensors) == 272
    assert sum(tensor.size_bytes for tensor in header.tensors) == 96_576_768


def test_types_are_those_that_llama_cpp_knows(tmp_path: Path) -> None:
    """NVFP4 is younger than the format's description: 64 weights in 36 bytes."""
    path = tiny_gguf(tmp_path / "m.gguf", raw={"ffn_up.weight": (GGMLQuantizationType.NVFP4, 64, 36)})
    tensor = next(tensor for tensor in read_local(path).tensors if tensor.name == "blk.0.ffn_up.weight")
    assert (tensor.type_name, tensor.shape, tensor.size_bytes) == ("NVFP4", (64, 64), 64 * 36)
    Model(path, EngineSettings()).close()


def test_without_llama_cpp_sizes_come_from_where_tensors_lie(
    small_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = read_local(small_model_path).tensors
    monkeypatch.setattr("storyfi_lite.models.gguf.ggml_types", lambda: {})
    guessed = read_local(small_model_path).tensors
    for right, guess in zip(known, guessed, strict=True):
        assert (guess.name, guess.shape, guess.offset) == (right.name, right.shape, right.offset)
        assert 0 <= guess.size_bytes - right.size_bytes < 32


def test_a_remote_file_costs_its_first_megabytes_only(small_model_path: Path) -> None:
    reads: list[int] = []

    def read_range(start: int, size: int) -> bytes:
        reads.append(size)
        with small_model_path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    read_header(read_range, small_model_path.stat().st_size, "remote")
    assert sum(reads) <= 8 << 20


@pytest.mark.parametrize("kept", [3, 20, 100, 5_000, 1_000_000, 90_000_000])
def test_a_truncated_file(small_model_path: Path, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.gguf"
    with small_model_path.open("rb") as file:
        cut.write_bytes(file.read(kept))
    assert "cut" in refusal(cut) and ("cut off" in refusal(cut) or "not a GGUF" in refusal(cut))


def test_a_renamed_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + b"zip" * 100)
    assert "not a GGUF file" in refusal(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "announces"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 50), "announces"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (gguf([("x", (64,), 77, 0)], data=64), "type 77"),
        (gguf([("x", (1 << 40, 1 << 40), 0, 0)], data=64), "shape"),
        (gguf([("x", (33,), 2, 0)], data=64), "shape"),
        (gguf([("x", (64,), 0, 0)], data=255), "tensors end"),
        (gguf([("x", (64,), 0, 1 << 62)], data=256), "tensors end"),
    ],
)
def test_a_damaged_file(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert word in refusal(path)


def _range(data: bytes, start: int, size: int) -> bytes:
    return data[start : start + size]


def test_random_damage_never_gets_past_bad_input(small_model_path: Path, tmp_path: Path) -> None:
    with small_model_path.open("rb") as file:
        good = file.read(6_000)
    for place in range(0, 6_000, 37):
        damaged = bytearray(good)
        damaged[place] ^= 0xFF
        try:
            read_header(partial(_range, bytes(damaged)), 98_362_432, "damaged")
        except BadInput as error:
            assert "\n" not in str(error)


def test_a_split_set_with_a_part_missing(tmp_path: Path) -> None:
    one = tmp_path / "m-00001-of-00002.gguf"
    one.write_bytes(gguf([("x", (64,), 0, 0)], data=256))
    assert "m-00002-of-00002.gguf is missing" in refusal(one)
    two = tmp_path / "m-00002-of-00002.gguf"
    two.write_bytes(gguf([("y", (64,), 0, 0)], data=256))
    assert [tensor.name for tensor in read_local(one).tensors] == ["x", "y"]
    assert "give part 1" in refusal(two)


def test_no_language_model(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(gguf([], data=32))
    with pytest.raises(BadInput, match="no language model"):
        architecture(read_local(path), path.name)
