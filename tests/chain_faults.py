"""A bittensor Substrate that misbehaves on demand, around a working one: what a bad subtensor does."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bittensor import Client, RpcConnectionError, RpcPolicyError

from storyfi_lite.chain.dev import DevSubstrate


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
