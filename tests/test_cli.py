"""The command line as a user meets it: help is light, mistakes get one clear message and the right exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyfi_lite.cli import COMMANDS, cli

HEAVY = (
    "llama_cpp",
    "bittensor",
    "openai",
    "google.generativeai",
    "llguidance",
    "gguf",
    "numpy",
    "huggingface_hub",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from storyfi_lite.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "statement",
    ["import storyfi_lite", "from storyfi_lite.cli import cli; cli(['--help'], standalone_mode=False)"],
)
def test_import_and_help_load_nothing_heavy(statement: str) -> None:
    code = f"import sys\n{statement}\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"storyfi-lite {name}" in result.output


def test_a_wrong_command_exits_2_without_a_traceback() -> None:
    done = run("minne")
    assert done.returncode == 2
    assert "No such command" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_STORYFI_LITE_COMPLETE" in done.stdout


def test_a_missing_extra_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    code = "import sys; sys.modules['llama_cpp'] = None\nfrom storyfi_lite.cli import main; main()"
    arguments = ["prove", str(tmp_path / "model.gguf"), "--text", "x", "--model.path", str(tmp_path / "model.gguf")]
    response = tmp_path / "r.json"
    response.write_text(
        '{"output_data":{},"generation_time":1,"miner_version":"x","model_info":{"mode":"local","name":"x","version":"x",'
        '"provider":"x"},"miner_mode":"LocalModelLoader","model_name":"x","gpu_memory_gb":0}'
    )
    arguments[1] = str(response)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert "pip install 'storyfi-lite[local]'" in done.stderr and "Traceback" not in done.stderr
