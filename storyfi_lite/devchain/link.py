"""Lets processes on one machine share a dev chain: one process hosts it on a loopback TCP port, the others connect.

Requests are JSON lines: {"method", "params"} -> {"result"} or {"error": {"message", "name"}}. The file lock
chain.lock in the chain's directory says who hosts; the host writes its port to chain.json. Nobody else than
this machine can connect, and every write is signed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import socketserver
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bittensor import RpcConnectionError

from storyfi_lite import files
from storyfi_lite.devchain.state import ChainRefused, DevChain, signing_payload

MOVED_BY = "--network dev:DIRECTORY"
REQUEST_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 4 * 2**20


def _json_ready(value: Any) -> Any:
    """Write bytes as 0x-hex, as chain values are written; leave every other value as it is."""
    return "0x" + value.hex() if isinstance(value, bytes) else value


# The server -------------------------------------------------------------------


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        while line := self.rfile.readline(MAX_LINE_BYTES):
            try:
                request = json.loads(line)
                reply = {"result": self.server.chain.handle(request["method"], request["params"])}
            except ChainRefused as error:
                reply = {"error": {"message": str(error), "name": error.name}}
            except (ValueError, KeyError, TypeError, IndexError) as error:
                reply = {"error": {"message": f"malformed request: {type(error).__name__}", "name": ""}}
            self.wfile.write(json.dumps(reply).encode() + b"\n")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, chain: DevChain) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.chain = chain
        self.connections: set[socket.socket] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that went away."""


class DevChainServer:
    """Hosts a DevChain for this machine. `start` returns None if another process hosts one in that directory."""

    def __init__(self, chain: DevChain, directory: Path, lock: IO[str]) -> None:
        self.chain = chain
        self._lock = lock
        self._server = _Server(chain)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="dev-chain", daemon=True)
        self._thread.start()
        files.write_text(directory / "chain.json", json.dumps({"port": self._server.server_address[1]}), MOVED_BY)

    @classmethod
    def start(cls, directory: Path, chain: DevChain | None = None) -> DevChainServer | None:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "chain.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        (directory / "chain.json").unlink(missing_ok=True)  # a dead host's port may belong to somebody else by now
        return cls(chain or DevChain(), directory, lock)

    def close(self) -> None:
        """Stop hosting and cut open connections. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._lock.close()


# The client -------------------------------------------------------------------


class DevLink:
    """Talks to the dev chain's host over one blocking connection. Thread-safe; connects again after a failure."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._file: Any = None

    def _open(self) -> None:
        deadline = time.monotonic() + REQUEST_TIMEOUT_S  # the host may be between its lock and its port
        while True:
            try:
                port = json.loads((self._directory / "chain.json").read_text())["port"]
                connection = socket.create_connection(("127.0.0.1", port), timeout=REQUEST_TIMEOUT_S)
                break
            except (OSError, ValueError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        with connection:
            self._file = connection.makefile("rwb")

    def request(self, method: str, *params: Any) -> Any:
        """Ask the host and return its result. Raises RpcConnectionError if the host cannot be reached, ChainRefused if the chain refuses."""
        line = json.dumps({"method": method, "params": params}, default=_json_ready).encode() + b"\n"
        with self._lock:
            try:
                if self._file is None:
                    self._open()
                self._file.write(line)
                self._file.flush()
                answer = self._file.readline()
                if not answer.endswith(b"\n"):
                    raise ConnectionError("the host closed the connection")
            except (OSError, ValueError) as error:
                self._drop()
                raise RpcConnectionError(f"the dev chain's host cannot be reached: {error}") from error
        reply = json.loads(answer)
        if "error" in reply:
            raise ChainRefused(reply["error"]["message"], reply["error"]["name"])
        return reply["result"]

    def submit(self, call: DevCall, keypair: Any, nonce: int | None = None) -> Any:
        """Sign and send one extrinsic. Raises ChainRefused or RpcConnectionError."""
        address = keypair.ss58_address
        if nonce is None:
            nonce = self.request("account_next_index", address)
        extrinsic = {
            "call": json.loads(json.dumps(vars(call), default=_json_ready)),
            "address": address,
            "crypto_type": keypair.crypto_type,
            "nonce": nonce,
        }
        signature = bytes(keypair.sign(signing_payload(extrinsic["call"], address, nonce)))
        return self.request("submit", {**extrinsic, "signature": signature.hex()})

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        with self._lock:
            self._drop()


@dataclass(frozen=True)
class DevCall:
    """Holds a composed call, which a real chain's client would encode as SCALE bytes."""

    module: str
    function: str
    params: dict[str, Any]
