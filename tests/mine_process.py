"""`storyfi-lite mine` as a process of its own on the dev chain, for tests and scripts: real command line, chain
client, signatures and HTTP. The model is a GGUF file, or scripted: a loopback server that speaks OpenAI's API.

It starts, asks, looks and kills; what that shall prove is for its callers. No network but 127.0.0.1.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from bittensor import Wallet, http_auth

from storyfi_lite.devchain.substrate import DevNetwork
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.wire.btauth import PATH
from storyfi_lite.wire.dendrite import EMPTY_BODY_HASH, NAME, signed_message
from storyfi_lite.wire.transport import SignedCaller
from tests.small_model import small_model

ROOT = Path(__file__).parent.parent
MAIN = "from storyfi_lite.cli import main; main()"
# The miner's own waits for the chain are made for 12 s blocks. Here it asks often, so that a fault meets a call.
OFTEN = f"""
from functools import partial
from storyfi_lite.chain import session
session.Timing = partial(session.Timing, refresh_s=0.25, backoff_first_s=0.1, backoff_most_s=1.0)
{MAIN}
"""
START_S = 120.0

Sent = tuple[str, bytes, dict[str, str]]  # path, body, headers: all that a replay needs


@dataclass
class MineProcess:
    """A started miner, perhaps not ready yet."""

    net: DevNetwork
    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def hotkey(self) -> str:
        return self.net.miners[0].hotkey.ss58_address

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def usage(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def wait_until_ready(self, timeout_s: float = START_S) -> MineProcess:
        """Raises RuntimeError with the miner's log if it ends or stays silent."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if self.process.poll() is not None:
                raise RuntimeError(f"the miner ended with exit code {self.process.returncode}:\n{self.log}")
            try:
                if httpx.get(f"{self.url}/health", trust_env=False, timeout=2).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"the miner did not start in {timeout_s:g} s:\n{self.log}")

    def metrics(self) -> dict[str, float]:
        """Series with their labels, as /metrics spells them."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False, timeout=10).text
        rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def sign(self, request: StoryRequest, validator: Wallet | None = None) -> Sent:
        """A request of the main wire."""
        body = request.model_dump_json(exclude_none=True).encode()
        wallet = validator or self.net.validators[0]
        return PATH, body, http_auth.sign(wallet, method="POST", path=PATH, body=body, receiver_ss58=self.hotkey)

    def sign_as_dendrite(self, request: StoryRequest) -> Sent:
        """Today's wire; a replay of it stays fresh for a minute, six times as long."""
        headers = sign_as_dendrite(self.net.validators[0].hotkey, self.hotkey)
        return f"/{NAME}", request.model_dump_json(exclude_none=True).encode(), headers

    def post(self, sent: Sent, timeout_s: float = 60.0) -> httpx.Response:
        """Raises httpx.HTTPError, for example when the miner dies meanwhile."""
        path, body, headers = sent
        return httpx.post(self.url + path, content=body, headers=headers, trust_env=False, timeout=timeout_s)

    def kill(self) -> None:
        """kill -9. Idempotent."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=90)


def sign_as_dendrite(
    key: Any, receiver_ss58: str, body_hash: str = EMPTY_BODY_HASH, nonce_ns: int | None = None
) -> dict[str, str]:
    """The headers that bittensor 10's client sends. Upstream's class signs no byte of the body: the default."""
    fields = {"bt_header_dendrite_uuid": str(uuid.uuid4()), "computed_body_hash": body_hash}
    claim = SignedCaller(key.ss58_address, time.time_ns() if nonce_ns is None else nonce_ns, fields)
    return {
        **fields,
        "bt_header_axon_hotkey": receiver_ss58,
        "bt_header_dendrite_hotkey": key.ss58_address,
        "bt_header_dendrite_nonce": str(claim.nonce_ns),
        "bt_header_dendrite_signature": f"0x{bytes(key.sign(signed_message(claim, receiver_ss58))).hex()}",
    }


def small_model_flags(n_threads: int = 1) -> list[str]:
    return ["--model.path", str(small_model()), "--threads", str(n_threads)]


def start(net: DevNetwork, scratch: Path, flags: Sequence[str], program: str = MAIN) -> MineProcess:
    """Starts a miner on `net`, with its state in `scratch`, and waits for nothing. Kill or stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["--network", net.name, "--axon.port", str(port), "--state-dir", str(scratch / "state")]
    command = [sys.executable, "-c", program, "mine", *common, "--rate", "6000", *flags]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    log_path = scratch / f"miner-{port}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**environment, "XDG_STATE_HOME": str(scratch)}
        )
    return MineProcess(net, process, port, log_path)
