"""tests/dendrite_client.py as a process: the real dendrite of bittensor 10.5.0, under its own interpreter."""

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
MISSING = "no bittensor 10.5.0: run scripts/make_dendrite_venv.sh"


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
def dendrite_process() -> Iterator[DendriteProcess]:
    """Raises FileNotFoundError where the environment is missing."""
    command = [str(PYTHON), str(Path(__file__).with_name("dendrite_client.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield DendriteProcess(process)
        assert process.stdin is not None
        process.stdin.close()
