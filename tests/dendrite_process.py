"""tests/dendrite_client.py and axon_server.py as processes: the real dendrite and axon of bittensor 10.5.0 or 9.12.2, each
under its own interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("STORYFI_LITE_CACHE", Path.home() / ".cache" / "storyfi-lite"))
PYTHON = CACHE / "dendrite-10.5" / "bin" / "python"
OLD_PYTHON = CACHE / "dendrite-9.12" / "bin" / "python"
MISSING = "no bittensor 10.5.0: run scripts/make_dendrite_venv.sh"
OLD_MISSING = "no bittensor 9.12.2: run scripts/make_dendrite_venv.sh 9.12.2"


class DendriteProcess:
    """`ask` returns what the real dendrite made of the answer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.version = self._read()["bittensor"]

    def ask(self, port: int, miner_ss58: str, fields: dict[str, Any], **command: Any) -> dict[str, Any]:
        """`fields` of the synapse; `command` as the program takes it (key, class, timeout, age_s, nonce)."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"port": port, "miner": miner_ss58, "fields": fields, **command}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def axon_process(stories: dict[str, Any], python: Path = PYTHON) -> Iterator[dict[str, tuple[str, int]]]:
    """The miners of peers/miners.json: name -> (hotkey, port on loopback). `stories`: what they answer to each task."""
    command = [str(python), str(Path(__file__).with_name("axon_server.py")), json.dumps(stories)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        yield {name: (hotkey, port) for name, (hotkey, port) in json.loads(process.stdout.readline()).items()}
        process.stdin.close()


@contextmanager
def dendrite_process(python: Path = PYTHON) -> Iterator[DendriteProcess]:
    """Raises FileNotFoundError where the environment is missing."""
    command = [str(python), str(Path(__file__).with_name("dendrite_client.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield DendriteProcess(process)
        assert process.stdin is not None
        process.stdin.close()
