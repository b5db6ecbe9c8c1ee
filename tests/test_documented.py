"""What README and docs tell people to type works, as it stands there: in a shell, in a home of its own, with the small model.

What needs a network, a GPU, a wallet or a key says so on its page (scripts/check_docs.py has the notation), and is not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from scripts import check_docs
from scripts.check_docs import PAGES, ROOT, Documented, documented, resolved
from storyfi_lite.models.store import Store
from storyfi_lite.protocol.messages import parse_response
from storyfi_lite.story.saved import SavedAnswer, comment, story_data
from tests.answers import ENGLISH, as_bytes, blueprint_request

# a page's placeholders -> something of that kind; the first of several choices
VALUES = {
    "FILE.json": "machine.json",
    "--traffic FILE": "--traffic traffic.yaml",
    "FILE": "model.gguf",
    "KEY": "smollm2-135m",
    "IDEA": '"a heist"',
    "--seed N": "--seed 100",
    "TASK": "blueprint",
    "…": '"a heist"',
}
# flags that make a run short, or keep it off a port that others use; {port} is free
ALSO = {"calibrate": "--answers 6", "doctor": "--axon.port {port}", "mine": "--axon.port {port} --threads 1"}
HARDWARE = {"gpus": [{"name": "RTX 3090", "total_gb": 24}], "ram_gb": 64, "cores": 8}
START_S, RUN_S = 120, 300


def command_of(text: str) -> str:
    return text.removeprefix("storyfi-lite ").split()[0]


def filled_in(text: str) -> str:
    """Put values in the place of placeholders, and take the first of several choices."""
    text = re.sub(r"(\w)(\|[\w-]+)+(?=\s|$)", r"\1", text)
    for placeholder, value in VALUES.items():
        text = text.replace(placeholder, value)
    return text


def loads_a_model(text: str) -> bool:
    command, _ = resolved(text.removeprefix("storyfi-lite "))
    return any(option.name in ("model_path", "model_paths") for option in command.params)


def runnable() -> dict[str, Documented]:
    """Return each command that runs here, once, whatever story it asks for, with the first place that names it."""
    found: dict[str, Documented] = {}
    for page in PAGES:
        for one in documented(page):
            if not one.needs and one.language == "bash":
                found.setdefault(re.sub('".*?"', '"a heist"', filled_in(one.text)), one)
    return {one.text: one for one in found.values()}


COMMANDS = list(runnable())
QUICK = [text for text in COMMANDS if not loads_a_model(text)]
LOADING = [text for text in COMMANDS if loads_a_model(text) and not text.startswith("storyfi-lite mine")]
PYTHON = [one for page in PAGES for one in documented(page) if one.language == "python"]


class Shell:
    """Runs command lines in a directory that is also their home."""

    def __init__(self, home: Path, model: Path) -> None:
        program = home / "bin" / "storyfi-lite"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m storyfi_lite "$@"\n')
        program.chmod(0o755)
        (home / "model.gguf").symlink_to(model)
        (home / "machine.json").write_text(json.dumps(HARDWARE))
        shutil.copy(ROOT / "storyfi_lite/placement/traffic.yaml", home)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_HOME"))}
        self.environment = kept | {
            "HOME": str(home),
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": platformdirs.user_cache_dir(),  # measured and checked once for all tests
            "STORYFI_LITE_MODELS": str(Store().root),
            "MODEL_NAME": "smollm2-135m",
        }

    def start(self, text: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        name = command_of(text)
        line = filled_in(text).replace(f" {name}", f" {name} {ALSO.get(name, '').format(port=self.port)}", 1)
        command = ["bash", "-c", f"exec {line}" if "|" not in line else line]
        return subprocess.Popen(
            command, cwd=self.home, env=self.environment, text=True, stdout=stdout, stderr=subprocess.PIPE
        )

    def run(self, text: str) -> None:
        process = self.start(text, stdout=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=RUN_S)
        finally:
            process.kill()
        assert process.returncode == 0, f"{text}\n{out}\n{err}"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, small_model_path: Path) -> Shell:
    """With the blueprint that a later command reads, which an earlier one writes: they may run in two processes."""
    made = Shell(tmp_path_factory.mktemp("home"), small_model_path)
    (made.home / "blueprint.json").write_bytes(as_bytes(ENGLISH))
    return made


@pytest.fixture(scope="module")
def quick_shell(tmp_path_factory: pytest.TempPathFactory, small_model_path: Path) -> Shell:
    """With the files that commands read, which are kept here instead of being written by a model."""
    made = Shell(tmp_path_factory.mktemp("quick"), small_model_path)
    (made.home / "response.json").write_bytes(as_bytes(ENGLISH))
    request, response = blueprint_request(), parse_response(as_bytes(ENGLISH))
    story = story_data(request.user_input, 1, [SavedAnswer("blueprint", ENGLISH, request, response)])
    (made.home / "story.html").write_text(f"<!doctype html>{comment(story)}")
    return made


@pytest.mark.parametrize("text", QUICK)
def test_a_documented_command_works(quick_shell: Shell, text: str) -> None:
    quick_shell.run(text)


@pytest.mark.parametrize("block", PYTHON, ids=lambda one: one.where)
def test_a_documented_piece_of_python_works(block: Documented) -> None:
    exec(compile(block.text, block.where, "exec"), {})


@pytest.fixture(scope="module")
def miner(shell: Shell) -> Iterator[None]:
    """`storyfi-lite mine --network dev`, as the pages start it, until Ctrl-C."""
    process = shell.start(next(text for text in COMMANDS if text.startswith("storyfi-lite mine")))
    assert process.stderr is not None
    end_s = time.monotonic() + START_S
    for line in process.stderr:
        if "published" in line or time.monotonic() > end_s:
            break
    yield
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err


@pytest.fixture(scope="module")
def answer(shell: Shell) -> None:
    """The files that the pages' commands read, as these commands write them."""
    shell.run('storyfi-lite generate "a heist" --json > response.json')
    shell.run("storyfi-lite prove response.json --report report.json")
    shell.run("storyfi-lite prove response.json --report report.json --threads 1")


@pytest.mark.slow
@pytest.mark.parametrize("text", LOADING)
def test_a_documented_command_that_loads_a_model_works(shell: Shell, miner: None, answer: None, text: str) -> None:
    shell.run(text)


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("## 5.", "**5.**", "headings"),
        ("0.5", "0.6", "0.6"),
        (" --dry-run", "", "--dry-run"),
        ("bash network, wallet", "bash network", "blocks"),
        ("| 表 |", "", "tables"),
        ("stories.md", "models.md", "models.zh.md"),
    ],
)
def test_a_chinese_page_that_says_something_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str, becomes: str, says: str
) -> None:
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    english = (
        "## 5.\n\n| table |\n\n```bash network, wallet\nstoryfi-lite validate --dry-run\n```\n0.5 [a](stories.md)\n"
    )
    (tmp_path / "page.md").write_text(english)
    (tmp_path / "models.zh.md").touch()
    chinese = tmp_path / "page.zh.md"
    chinese.write_text(english.replace("table", "表"))
    assert not list(check_docs.untranslated(chinese))
    chinese.write_text(chinese.read_text().replace(was, becomes))
    assert says in "\n".join(check_docs.untranslated(chinese))


@pytest.mark.parametrize("page", ["troubleshooting.md", "troubleshooting.zh.md"])
def test_the_messages_that_troubleshooting_explains_are_ours(page: str) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "storyfi_lite").rglob("*.py"))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:[\w ]+(?:: |：))?`.*?) \|", text, re.MULTILINE)
    messages = [message for row in rows for message in re.findall("`(.*?)`", row)]
    assert len(messages) > 20
    for message in messages:
        for piece in re.split(r"…|: |\bN\b|\d", message):  # where the code puts a name, a number or a reason
            assert piece in source, f"nothing says {message!r}"
