"""Runs one bittensor client on a thread and an event loop of its own; when the client fails, all three are thrown away.

A websocket that is half dead may neither answer nor close, and the call that waits on it may not end even
when it is cancelled. So no call is waited for longer than its time, nothing of the client runs on the
caller's event loop, and nobody waits for a client thread that was abandoned: its thread is a daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from bittensor import Client

T = TypeVar("T")

GRACE_S = 1.0  # how long an abandoned client thread's tasks may take to end in good order


class ClientThreadClosed(ConnectionError):
    """Says that the client thread was abandoned while a call was under way."""


class ClientThread:
    """Owns the thread, its event loop and the client. `make_client` and every call to the client run on that thread."""

    def __init__(self, make_client: Callable[[], Client]) -> None:
        self._make_client = make_client
        self._client: Client | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="chain-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()  # until abandon()
            if self._client is not None:
                self._finish({self._loop.create_task(self._client.close())})
            self._finish(asyncio.all_tasks(self._loop))
        finally:
            self._loop.close()

    def _finish(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Let the tasks end, first by themselves, then cancelled, but not longer than GRACE_S."""
        if not tasks:
            return
        waiting = self._loop.create_task(asyncio.wait(tasks, timeout=GRACE_S / 2))
        self._loop.run_until_complete(waiting)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.wait(tasks, timeout=GRACE_S / 2))

    async def open(self, timeout_s: float) -> None:
        """Make the client and connect it. Raises what the client raises, or TimeoutError."""

        async def connect() -> Client:
            return await self._make_client().connect()

        self._client = await self._wait(connect(), timeout_s)

    async def call(self, job: Callable[[Client], Awaitable[T]], timeout_s: float) -> T:
        """Run `job(client)` on the thread. Raises what the job raises, TimeoutError, or ClientThreadClosed."""
        if self._client is None:
            raise ClientThreadClosed("the client thread is not open")
        client = self._client

        async def run() -> T:
            return await job(client)

        return await self._wait(run(), timeout_s)

    async def _wait(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        future: asyncio.Future[T] = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))
        try:
            # not wait_for: that would wait for the cancelled call to end
            done, _ = await asyncio.wait({future}, timeout=timeout_s)
        finally:
            if not future.done():
                future.cancel()
        if not done:
            raise TimeoutError(f"no answer from the chain in {timeout_s:g} s")
        if future.cancelled():
            raise ClientThreadClosed("the connection was given up while the call was under way")
        try:
            return future.result()
        except asyncio.TimeoutError as error:  # in Python 3.10 not yet the builtin
            raise TimeoutError(str(error) or "the connection timed out") from error

    async def close(self) -> None:
        """Abandon the client thread and give it a moment to close its connection in good order."""
        self.abandon()
        await asyncio.to_thread(self._thread.join, 3 * GRACE_S)

    def abandon(self) -> None:
        """Stop using the client thread at once. Idempotent; waits for nothing."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._loop.stop)
