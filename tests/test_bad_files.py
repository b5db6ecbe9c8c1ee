"""Files that cannot be right, from the command line: one line that says what is wrong, exit 2, nothing loaded."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from storyfi_lite.cli import cli, main
from storyfi_lite.models import registry
from tests.test_gguf_header import gguf
from tests.tiny_gguf import tiny_gguf

NAME = "llm-00001-of-00002.gguf"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the program and returns its one line."""

    def load(*_: object, **__: object) -> NoReturn:
        pytest.fail("llama.cpp was asked to load it")

    monkeypatch.setattr("storyfi_lite.engine.model.Model.__init__", load)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["storyfi-lite", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == 2, err
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return run


def damaged(kind: str, model: Path, directory: Path) -> Path:
    path = directory / "model.gguf"
    if kind == "truncated":
        shutil.copyfile(model, path)
        with path.open("r+b") as file:
            file.truncate(90_000_000)
    elif kind == "corrupted":
        with model.open("rb") as file:
            head = bytearray(file.read(1 << 20))
        head[16:24] = b"\xff" * 8  # the number of metadata values
        path.write_bytes(head)
    elif kind == "renamed":
        path.write_bytes(b"PK\x03\x04" + b"zip" * 100)
    elif kind == "no GGUF":
        path.write_text("Once upon a time there was a story.")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "tensors without bytes":
        path.write_bytes(gguf([(f"blk.{i}.attn_q.weight", (4096, 4096), 0, i << 26) for i in range(8)], data=1024))
    elif kind == "more tensors than bytes":
        content = bytearray(gguf([("x", (64,), 0, 0)], data=256))
        content[8:16] = (1 << 40).to_bytes(8, "little")
        path.write_bytes(content)
    elif kind == "part missing":
        path = directory / NAME
        path.write_bytes(gguf([("x", (64,), 0, 0)], data=256))
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "cut off"),
        ("corrupted", "announces"),
        ("renamed", "not a GGUF file"),
        ("no GGUF", "not a GGUF file"),
        ("empty", "cut off|not a GGUF file"),
        ("tensors without bytes", "tensors end"),
        ("more tensors than bytes", "announces"),
        ("part missing", "llm-00002-of-00002.gguf is missing"),
    ],
)
def test_a_model_file(
    refused: Callable[..., str], small_model_path: Path, tmp_path: Path, kind: str, says: str
) -> None:
    path = damaged(kind, small_model_path, tmp_path)
    line = refused("generate", "a heist", "--model.path", path)
    assert path.name in line
    assert any(words in line for words in says.split("|")), line


OTHER_FORMATS = {
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7c5a28\nsize 98362432\n",
        "git lfs pull --include ",
    ),
    "web page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "/resolve/"),
    "server's answer": (b'{"error": "Invalid username or password."}', "fetch it again"),
    "safetensors": (b"\x10\x27\0\0\0\0\0\0" + b'{"__metadata__":{}}', "take a GGUF"),
    "compressed": (b"\x1f\x8b\x08" + b"\0" * 60, "unpack it"),
    "GGML, the format before GGUF": (b"tjgg\x03\0\0\0" + b"\0" * 60, "take a GGUF"),
}


@pytest.mark.parametrize(
    ("kind", "content", "mend"), [(kind, *of) for kind, of in OTHER_FORMATS.items()], ids=list(OTHER_FORMATS)
)
def test_a_file_of_another_kind_is_named(
    refused: Callable[..., str], tmp_path: Path, kind: str, content: bytes, mend: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    line = refused("generate", "a heist", "--model.path", path)
    assert f"{path.name} is not a GGUF file" in line and kind in line and mend in line


def test_a_piece_of_a_file_is_told_how_to_be_joined(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "big model.gguf.part2of2"
    path.write_bytes(b"\x93\x01" * 100)
    assert "cat 'big model.gguf'?* > 'big model.gguf'" in refused("generate", "a heist", "--model.path", path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"general.type": "adapter", "adapter.type": "lora"}, "llama-export-lora"),
        ({"general.type": "mmproj"}, "shows pictures to a model"),
        ({"general.type": "imatrix"}, "importance matrix"),
        ({"llama.attention.causal": False}, "makes numbers of texts"),
        ({"split.count": 2, "split.no": 0}, "one of 2 parts"),
    ],
)
def test_what_goes_beside_a_model_is_named(
    refused: Callable[..., str], tmp_path: Path, more: dict[str, object], says: str
) -> None:
    path = tiny_gguf(tmp_path / "model.gguf", more=more)
    line = refused("generate", "a heist", "--model.path", path)
    assert path.name in line and says in line


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"llama.block_count": 4_000_000_000}, "announces 4,000,000,000 layers"),
        ({"llama.block_count": 200_000_000}, "announces 200,000,000 layers"),
        ({"llama.attention.head_count": 0}, "attention_head_count is 0"),
        ({"llama.context_length": 0}, "context_length is 0"),
        # what llama.cpp ends the process over, and a child process finds out
        ({"llama.expert_count": 4}, "makes llama.cpp crash (llama-model.cpp"),
    ],
)
def test_figures_that_cannot_be(
    refused: Callable[..., str], tmp_path: Path, more: dict[str, object], says: str
) -> None:
    assert says in refused("generate", "a heist", "--model.path", tiny_gguf(tmp_path / "model.gguf", more=more))


def test_a_file_of_one_s_own_registry_is_opened_by_a_child_first(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORYFI_LITE_REGISTRY", str(tmp_path / "models.yaml"))
    path = tiny_gguf(tmp_path / "model.gguf", more={"llama.expert_count": 4})
    added = CliRunner().invoke(cli, ["models", "add", "odd", str(path)])
    assert added.exit_code == 0, added.output
    assert "makes llama.cpp crash" in refused("generate", "a heist", "--model.name", "odd")


@pytest.mark.parametrize("alignment", [1, 8, 16])
def test_tensors_that_lie_where_llama_cpp_would_abort(
    refused: Callable[..., str], tmp_path: Path, alignment: int
) -> None:
    path = tiny_gguf(tmp_path / "model.gguf", alignment=alignment)
    assert f"multiples of {alignment} bytes" in refused("generate", "a heist", "--model.path", path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("size_bytes: 4920734272", "size_bytes: -1", "size_bytes"),
        ("size_bytes: 4920734272", "size_bytes: big", "size_bytes"),
        ("    multiplier: 1.5", "    multiplier: -1.5", "multiplier"),
        ("    multiplier: 1.5", "    multiplier: .nan", "multiplier"),
    ],
)
@pytest.mark.parametrize("command", [["place"], ["models"], ["generate", "a heist"]], ids=lambda words: words[0])
def test_a_models_yaml(
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: list[str],
    old: str,
    new: str,
    says: str,
) -> None:
    text = (Path(__file__).parent.parent / "models.yaml").read_text()
    assert old in text
    path = tmp_path / "models.yaml"
    path.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(registry, "SHIPPED", path)
    line = refused(*command)
    assert str(path) in line and "line " in line and says in line


@pytest.mark.parametrize("command", ["place", "models"])
@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"ram_gb": -64}, "ram_gb"),
        ({"ram_gb": 64, "gpus": [{"total_gb": -24}]}, "total_gb"),
        ({"ram_gb": 64, "gpus": [{"total_gb": 8, "free_gb": -1}]}, "free_gb"),
    ],
)
def test_a_hardware_file_with_negative_memory(
    refused: Callable[..., str], tmp_path: Path, command: str, machine: object, says: str
) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(machine))
    line = refused(command, "--hardware", path)
    assert path.name in line and says in line


def test_a_hardware_file_of_brackets(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text("[" * 100_000)
    assert "recursion limit exceeded" in refused("place", "--hardware", path)


def test_a_file_that_is_here_and_does_not_match_its_size_is_no_model_of_the_registry(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wrong file in the store's place: placement reads its header before anything is loaded."""
    from storyfi_lite.models.store import Store

    store = Store(tmp_path)
    spec = registry.load_registry().find("smollm2-135m")
    file = spec.file("Q4_1")  # type: ignore[union-attr]
    path = store.path(spec, file)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True)
    with path.open("wb") as wrong:
        wrong.write(b"PK\x03\x04")
        wrong.truncate(file.size_bytes)
    monkeypatch.setenv("STORYFI_LITE_MODELS", str(tmp_path))
    assert "not a GGUF file" in refused("place", "--model.name", "smollm2-135m", "--quant", "Q4_1")
