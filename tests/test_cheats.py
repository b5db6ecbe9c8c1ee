"""Every way of cheating that scripts/cheats.py knows, as a miner of its own beside an honest one, judged by the real loop."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from storyfi_lite.chain.dev import DevNetwork, dev_network
from storyfi_lite.validator.reward import DEFAULT_POLICY
from tests.test_end_to_end import PROGRAM, SEA, run

CHEATS = Path(__file__).parents[1] / "scripts" / "cheats.py"
# What one round says of each: its proof, and the multiplier where one replay decides.
EXPECTED = {
    "honest": ("proven", 0.5),
    "impostor": ("refuted", 0.0),
    "inflated": ("refuted", 0.0),
    "own-seed": ("refuted", 0.0),
    "edited": ("refuted", 0.0),
    "unproven": ("no proof", 0.5),
    "junk": ("no proof", 0.5),
}


@pytest.mark.slow
def test_no_cheat_is_paid_as_proven(small_model_path: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    text = DEFAULT_POLICY.read_text().replace("proven_needed: 3", "proven_needed: 1")
    policy.write_text(text.replace("refuted_needed: 2", "refuted_needed: 1"))
    (tmp_path / "inputs").write_text(SEA)
    with dev_network(tmp_path) as net, ExitStack() as running:
        hotkeys = {kind: start(kind, net, small_model_path, tmp_path, running) for kind in EXPECTED}
        flags = [
            "--timeout",
            "600",
            "--threads",
            "1",
            "--inputs",
            str(tmp_path / "inputs"),
            "--reward-policy",
            str(policy),
        ]
        done = run("validate", "--network", net.name, "--rounds", "1", "--json", "--state-dir", str(tmp_path), *flags)
    assert done.returncode == 0, done.stderr.decode()
    rows = {row["hotkey"]: row for row in json.loads(done.stdout)["rows"]}
    found = {kind: (rows[hotkey]["proof"], rows[hotkey]["multiplier"]) for kind, hotkey in hotkeys.items()}
    assert found == EXPECTED
    assert rows[hotkeys["junk"]]["base"] <= 20 < 60 < rows[hotkeys["honest"]]["base"]


def start(kind: str, net: DevNetwork, model: Path, scratch: Path, running: ExitStack) -> str:
    """Starts that miner; gives its hotkey once it answers."""
    from storyfi_lite.chain.dev import dev_wallet

    program = PROGRAM if kind == "honest" else [sys.executable, str(CHEATS), kind]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--network", net.name, "--wallet", kind, "--axon.port", str(port), "--state-dir", str(scratch / kind)]
    log = running.enter_context((scratch / f"{kind}.log").open("w+b"))
    process = subprocess.Popen(
        [*program, "mine", *flags, "--threads", "1", "--model.path", str(model)], stdout=log, stderr=log
    )
    running.callback(process.wait)
    running.callback(process.kill)
    for _ in range(1200):
        assert process.poll() is None, (scratch / f"{kind}.log").read_text()
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                break
        except httpx.HTTPError:
            time.sleep(0.1)
    while b"published" not in (scratch / f"{kind}.log").read_bytes():
        time.sleep(0.1)
    return str(dev_wallet(net.directory, kind).hotkey.ss58_address)
