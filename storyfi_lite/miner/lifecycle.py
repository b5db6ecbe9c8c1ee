"""Runs the HTTP server: opens the port, serves requests, and stops without losing an answer.

The first SIGINT or SIGTERM makes new stories get 503 while those in hand are finished; the second ends the process at once
(stopping.py). The caller has made and checked the Miner that is served."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from storyfi_lite import stopping
from storyfi_lite.chain.networks import url_host
from storyfi_lite.errors import Unavailable
from storyfi_lite.miner.app import Miner, build_app

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 5.0  # from the connection, or the last response, to a whole set of headers
WATCH_S = 1.0  # between two looks at the loader
SEND_TIMEOUT_S = 10  # at a stop, for callers who do not read the answer that they asked for
MAX_HEAD_BYTES = 16_384  # a dendrite's headers have about 2,000
MAX_CONNECTIONS = 1_000  # below the usual limit of 1,024 open files


class GuardedProtocol(H11Protocol):
    """Adds to uvicorn's HTTP/1.1 a time-out for a request's headers, and keeps room for honest callers.

    When all connections are taken, the one whose headers or body have been incomplete for longest is closed: its sender is not
    known yet.
    """

    _deadline: asyncio.TimerHandle | None = None
    _since_s = 0.0  # when the connection was made, or its last request answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            others = [one for one in self.connections if isinstance(one, GuardedProtocol) and one is not self]
            # these still owe us headers or a part of the body
            waiting = [one for one in others if one._deadline is not None or (one.cycle and one.cycle.more_body)]
            min(waiting, key=lambda one: one._since_s, default=self)._hang_up()
        self._since_s = self.loop.time()
        self._guard()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._guard()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since_s = self.loop.time()
        self._guard()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._disarm()

    def _guard(self) -> None:
        """Run the time-out exactly while no request is being answered. Data that is no whole head does not move the deadline."""
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self._disarm()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._hang_up)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        self._disarm()
        self.transport.abort()


class StoryServer(uvicorn.Server):
    """Runs uvicorn with a stop that first refuses new stories and then waits for those in hand."""

    def __init__(self, miner: Miner) -> None:
        self._miner = miner
        super().__init__(
            uvicorn.Config(
                build_app(miner),
                http=GuardedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # the caller's address is the connection's, whatever a header says
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=int(HEAD_TIMEOUT_S),
                timeout_graceful_shutdown=SEND_TIMEOUT_S,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Finish at a signal. Replaces uvicorn's method, which closes the port first and raises the signal again at the end."""
        with stopping.at_stop(self.finish):
            yield

    def finish(self) -> bool:
        """Refuse new stories; the server ends when those in hand are answered. May be called from any thread."""
        log.warning("stopping: finishing %d answers in hand; again to stop at once", self._miner.answering)
        self._miner.stopping = True
        return True

    async def on_tick(self, counter: int) -> bool:
        if self._miner.stopping and self._miner.answering == 0:
            self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """Listen on a port. `host`: an address of this machine, 0.0.0.0 for all its IPv4 addresses, or :: for IPv6 too. Raises
    Unavailable with the option that mends it."""
    six = ":" in host
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if six else socket.AF_INET,
            backlog=1_024,
            dualstack_ipv6=six and ip_address(host).is_unspecified,
        )
    except (OSError, OverflowError, ValueError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise Unavailable(
            f"cannot listen on {url_host(host)}:{port}: {error}\n"
            + (
                "Another program uses this port: stop it, or choose another with --axon.port."
                if taken
                else "  --axon.ip ADDRESS   one of this machine's own, 0.0.0.0 for all of IPv4, :: for IPv6 too"
            )
        ) from error


async def serve(miner: Miner, host: str, port: int, announce: Callable[[], Awaitable[None]] | None = None) -> None:
    """Open the port and answer until a signal. The caller closes what the caller opened.

    `announce` is run once the port is open; an error of `announce` stops the miner and is raised here. A dead loader stops it
    too, with Unavailable: a supervisor restarts the miner, and that start says what is missing.
    """
    listener = bind(host, port)
    server = StoryServer(miner)
    at, port = listener.getsockname()[:2]
    claim = miner.loader.claim
    facts = {"hotkey": miner.service.self_hotkey_ss58, "model": claim.model_name, "writer": claim.writer}
    log.info("answering on http://%s:%d", url_host(at), port, extra={"facts": facts})
    beside = [asyncio.ensure_future(_watch(server, miner))]
    if announce is not None:
        beside.append(asyncio.ensure_future(_announce(server, announce)))
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in beside:
            task.cancel()
        await asyncio.wait(beside)
    for task in beside:
        if not task.cancelled():
            task.result()
    log.info("stopped")


async def _announce(server: StoryServer, announce: Callable[[], Awaitable[None]]) -> None:
    try:
        await announce()
    except BaseException:
        server.should_exit = True
        raise


async def _watch(server: StoryServer, miner: Miner) -> None:
    while (health := miner.loader.health()).alive:
        await asyncio.sleep(WATCH_S)
    server.finish()
    raise Unavailable(f"nothing here can write stories any more: {health.detail}")
