"""What a bad subtensor does, on demand: a bittensor Substrate that misbehaves around a working one, for a session
in this process, and a line to the dev chain that can be cut and frozen, for a miner in another process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bittensor import Client, RpcConnectionError, RpcPolicyError

from storyfi_lite.devchain.substrate import DevSubstrate


@dataclass
class FaultyEndpoint:
    """An endpoint on the dev chain of `directory`. Set `fault` to break it, None to heal it."""

    directory: Path
    label: str = "faulty"
    fault: str | None = None
    clients: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def client(self) -> Client:
        self.clients += 1
        return Client("local", substrate=FaultySubstrate(DevSubstrate(self.directory), self))

    def close(self) -> None:
        self.released.set()


class FaultySubstrate:
    def __init__(self, inner: DevSubstrate, endpoint: FaultyEndpoint) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self.token_symbols = inner.token_symbols
        self._frozen_graph: Any = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name in ("balance", "compose"):
            return method

        async def faulty(*args: Any, **kwargs: Any) -> Any:
            await self._misbehave()
            result = await method(*args, **kwargs)
            return self._lie(result) if name == "runtime_call" else result

        return faulty

    async def close(self) -> None:
        await self._inner.close()

    async def _misbehave(self) -> None:
        fault = self._endpoint.fault
        if fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "hang for good":  # ignores being cancelled
            while not self._endpoint.released.is_set():
                try:
                    await asyncio.sleep(0.05)
                except asyncio.CancelledError:
                    continue
        elif fault == "block the thread":
            while not self._endpoint.released.is_set():
                time.sleep(0.01)
        elif fault == "drop":
            raise RpcConnectionError("the connection was closed abnormally")
        elif fault == "rate limit":
            raise RpcPolicyError("HTTP 429", status_code=429, retry_after="0.05")

    def _lie(self, graph: Any) -> Any:
        fault = self._endpoint.fault
        if fault == "behind":
            return {**graph, "block": graph["block"] - 1000}
        if fault == "ahead":
            return {**graph, "block": graph["block"] + 10**9}
        if fault == "frozen":
            self._frozen_graph = self._frozen_graph or graph
            return self._frozen_graph
        return graph


class FaultyLine:
    """TCP between the dev chain's host and everybody who connects from now on. Frozen, it neither answers nor
    closes. `watch` sees each piece on its way to the chain, before it goes on."""

    def __init__(self, directory: Path, watch: Callable[[bytes], None] = lambda piece: None) -> None:
        self._host = directory / "chain.json"
        self._said = self._host.read_text()
        self._port = json.loads(self._said)["port"]
        self._watch = watch
        self._flows = threading.Event()
        self._flows.set()
        self._open: set[socket.socket] = set()
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        self._host.write_text(json.dumps({"port": self._listener.getsockname()[1]}))

    def cut(self) -> None:
        """Resets every connection; new ones work."""
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def close(self) -> None:
        self._host.write_text(self._said)
        self._listener.close()
        self.thaw()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
                chain = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                return
            self.connections += 1
            self._open |= {caller, chain}
            threading.Thread(target=self._pump, args=(caller, chain, self._watch), daemon=True).start()
            threading.Thread(target=self._pump, args=(chain, caller, lambda piece: None), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, watch: Callable[[bytes], None]) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65_536):
                watch(piece)
                self._flows.wait()
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()
