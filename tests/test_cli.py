"""The command line as a user meets it: help is light, mistakes get one clear message and the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyfi_lite import __version__
from storyfi_lite.cli import COMMANDS, cli
from storyfi_lite.errors import BadInput
from tests.answers import ENGLISH
from tests.tiny_gguf import tiny_gguf

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


@pytest.mark.parametrize("command", ["mine", "validate", "doctor"])
def test_mainnet_has_no_default_subnet(command: str) -> None:
    done = run(command, "--network", "finney")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--netuid is missing" in done.stderr and "btcli subnets list --network finney" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_STORYFI_LITE_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["mine", "--rate", "nan"], "--rate"), (["mine", "--min-stake", "nan"], "--min-stake"),
        (["mine", "--min-stake", "-5"], "--min-stake"), (["mine", "--api.daily-usd", "nan"], "--api.daily-usd"),
        (["generate", "x", "--temperature", "nan"], "--temperature"), (["validate", "--interval", "nan"], "--interval"),
        (["validate", "--timeout", "inf"], "--timeout"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused(arguments: list[str], option: str) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2 and option in done.output


@pytest.mark.parametrize("redirect", ["", " <&-", " > /dev/full", " --json | true; exit ${PIPESTATUS[0]}"])
def test_only_an_answer_that_is_not_valid_exits_1(tmp_path: Path, redirect: str) -> None:
    story = tmp_path / "story.json"
    story.write_text(json.dumps(ENGLISH))
    program = f"{sys.executable} -c 'from storyfi_lite.cli import main; main()' verify"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    file = "" if "<&-" in redirect else story
    done = subprocess.run(
        ["bash", "-c", f"{program} {file}{redirect}"], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode in ({0} if not redirect else {0, 70, 73, 120, 141}), done.stderr


def test_a_story_that_cannot_be_kept_is_told_before_it_is_written(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["story", "a heist", "-o", str(tmp_path / "nowhere" / "story.json")])
    assert isinstance(done.exception, BadInput) and "cannot write" in str(done.exception)


def test_a_missing_extra_is_named_with_the_command_that_brings_it(small_model_path: Path) -> None:
    code = "import sys; sys.modules['llama_cpp'] = None\nfrom storyfi_lite.cli import main; main()"
    arguments = ["generate", "x", "--model.path", str(small_model_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert "pip install '.[local]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["plcae"], "Did you mean place?"),
        (
            ["generate", "a", "lighthouse", "keeper"],
            'put the text in quotes: storyfi-lite generate "a lighthouse keeper"',
        ),
        (["story", "a", "heist"], "put the text in quotes"),
        (["qqqqq"], "No such command 'qqqqq'"),
        (["halp"], "Did you mean help?"),
        (["generate", " "], "empty; say what the story is about"),
    ],
)
def test_a_slip_of_the_fingers_is_told_what_was_meant(typed: list[str], says: str) -> None:
    result = CliRunner().invoke(cli, typed)
    assert result.exit_code == 2 and says in result.output


@pytest.mark.parametrize(
    ("typed", "says"),
    [(["help"], "The lean StoryFi miner"), (["help", "pull"], "An interrupted pull"), (["version"], __version__)],
)
def test_help_and_version_are_commands_too(typed: list[str], says: str) -> None:
    result = CliRunner().invoke(cli, typed)
    assert result.exit_code == 0 and says in result.output


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("storyfi-lite pull lla", {"llama-3-70b", "llama-3-8b"}),
        ("storyfi-lite generate x --model.name gem", {"gemma-7b"}),
        ("storyfi-lite models a", {"add"}),
        ("storyfi-lite models gem", {"gemma-7b"}),
        ("storyfi-lite models add x ./my", {"./my"}),  # the shell finds the files that begin so
        ("storyfi-lite place --model.name qwen-72b --quant q4", {"Q4_K_M"}),
        ("storyfi-lite mine --network d", {"dev"}),
        ("storyfi-lite doctor --model.name gem", {"gemma-7b"}),
        ("storyfi-lite mine --min-quant q8", {"Q8_0"}),
        ("storyfi-lite generate x --api.model gpt-6", {"gpt-6-luna"}),
    ],
)
def test_the_shell_completes_values(line: str, offers: set[str]) -> None:
    words = line.split()
    environment = {"_STORYFI_LITE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(cli, env=environment, prog_name="storyfi-lite")
    assert offers <= {offer.partition(",")[2] for offer in result.output.splitlines()}


def test_a_file_that_was_typed_counts_for_more_than_a_model_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    typed = ["generate", "x", "--model.path", str(tmp_path / "other.gguf")]
    both = CliRunner().invoke(cli, [*typed, "--model.name", "smollm2-135m"])
    assert "do not go with it" in str(both.exception)
    only = CliRunner().invoke(cli, typed, env={"MODEL_NAME": "smollm2-135m"})
    assert "other.gguf" in str(only.exception) and "do not go with it" not in str(only.exception)


@pytest.mark.parametrize("arguments", [["generate", "caf\udce9"], ["story", "caf\udce9"]])
def test_text_in_another_encoding_is_named(arguments: list[str]) -> None:
    """As Python hands over the byte E9, a Latin-1 é."""
    done = run(*arguments)
    assert done.returncode == 2 and "not UTF-8" in done.stderr and "surrogate" not in done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 only")
def test_a_model_file_may_have_any_name(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "bad\udcff.gguf")
    done = run("generate", "a heist", "--max-tokens", "600", "--threads", "1", "--seed", "1", "--model.path", str(path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["title"]
