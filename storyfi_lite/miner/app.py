"""Serves the miner over HTTP: two wires for stories, `/health` for everybody, `/` and `/metrics` for the operator.

This module moves bytes between the server, admission and the service, which take every decision. Each request ends in
exactly one response, and an error's response is a status with a fixed text (wire/http_status)."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from storyfi_lite.errors import LiteError
from storyfi_lite.loaders.base import Loader
from storyfi_lite.miner.admission import Gate
from storyfi_lite.miner.metrics import Metrics
from storyfi_lite.miner.service import CallerGone, StoryService
from storyfi_lite.miner.status import Facts, render
from storyfi_lite.miner.words import words_for
from storyfi_lite.wire.http_status import PUBLIC_TEXT, Refused, public_body, retry_after_header, status_of
from storyfi_lite.wire.transport import Transport

log = logging.getLogger(__name__)

DRAINED_BYTES = 65_536  # a refused request's body up to this size is thrown away and the connection kept
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass
class Miner:
    """Answers requests. `facts` is called for each status page; while `stopping`, new stories are refused."""

    loader: Loader
    gate: Gate
    service: StoryService
    metrics: Metrics
    transports: Sequence[Transport]
    facts: Facts = dict  # no cards beside the loader's
    open_operator_pages: bool = False
    stopping: bool = False
    answering: int = 0

    async def story(self, transport: Transport, request: Request) -> Response:
        """Admit one request, have it answered, and respond. `answering` counts the requests that a stop has to wait for."""
        arrived_s = time.monotonic()
        self.answering += 1
        try:
            return await self._story(transport, request, arrived_s)
        except (ClientDisconnect, CallerGone):
            return Response(status_code=499)  # never seen by anybody; 499 is the usual number for it
        except Exception as error:
            if isinstance(error, Refused):
                claimed = request.headers.get("x-bittensor-hotkey") or request.headers.get("bt_header_dendrite_hotkey")
                address = request.client.host if request.client else "unknown"
                self.metrics.refused(error, transport.name, claimed, address)
            elif not isinstance(error, LiteError):
                log.exception("a request failed in a way that nobody planned for")
            status = status_of(error)
            headers = {**transport.error_headers(status), **retry_after_header(error, status)}
            length = request.headers.get("content-length", "")
            if not length.isdecimal() or int(length) > DRAINED_BYTES:
                headers["connection"] = "close"
            return Response(public_body(status), status, headers)
        finally:
            self.answering -= 1

    async def _story(self, transport: Transport, request: Request, arrived_s: float) -> Response:
        async def hung_up() -> None:  # wait until the client's connection ends; the body was read before
            while (await request.receive())["type"] != "http.disconnect":
                pass

        if self.stopping:
            raise Refused("stopping", "this miner is shutting down")
        # a header that comes twice is joined with a comma, so no signature can be valid in one copy of it
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        try:
            admitted = await self.gate.admit(transport, headers, request.stream())
        except LiteError as error:
            if isinstance(error, Refused):
                raise
            raise Refused("bad_request" if status_of(error) == 400 else "not_ready", str(error)) from error
        try:
            answer, response = await self.service.answer(admitted, arrived_s, hung_up)
            sent_headers, body = transport.encode(admitted.claim, admitted.body, response)
        except Exception as error:
            outcome = type(error).__name__ if isinstance(error, (LiteError, CallerGone)) else "Exception"
            self.metrics.failed(admitted, transport.name, time.monotonic() - arrived_s, outcome, error)
            raise
        self.metrics.answered(admitted, transport.name, time.monotonic() - arrived_s, answer, response)
        return Response(body, headers=sent_headers)

    async def health(self, request: Request) -> Response:
        """Respond 200 while stories can be answered, else 503, and say no more than that."""
        ok = self.loader.health().alive and not self.stopping
        return JSONResponse({"status": "ok" if ok else "unavailable"}, 200 if ok else 503)

    async def metrics_page(self, request: Request) -> Response:
        self._operator_only(request)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status_page(self, request: Request) -> Response:
        self._operator_only(request)
        # in a thread: scoring the last answers takes longer than a request should wait
        now_s, public = time.time(), self.open_operator_pages
        say = words_for(request.headers.get("accept-language", ""))
        page = await asyncio.to_thread(
            render, self.facts(), self.metrics, self.loader, now_s, self.stopping, public, say
        )
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        headers = {"content-security-policy": policy, "cache-control": "no-store", "vary": "accept-language"}
        return HTMLResponse(page, headers=headers)

    def _operator_only(self, request: Request) -> None:
        """Raise 404 unless the caller is on this machine, used a loopback name (or a web page could rebind its own name to this
        address), and came through no proxy."""
        if self.open_operator_pages:
            return
        host = re.sub(r":\d+$", "", request.headers.get("host", ""))
        caller = ip_address(request.client.host) if request.client is not None else None
        caller = getattr(caller, "ipv4_mapped", None) or caller  # on a socket of both families: ::ffff:127.0.0.1
        if caller is None or not caller.is_loopback or host not in LOCAL_NAMES or "x-forwarded-for" in request.headers:
            raise HTTPException(404)


def build_app(miner: Miner) -> Starlette:
    """Build the ASGI application. Starts nothing."""

    def route(transport: Transport) -> Route:
        async def endpoint(request: Request) -> Response:
            return await miner.story(transport, request)

        return Route(transport.path, endpoint, methods=["POST"])

    async def plain(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        status = status if status in PUBLIC_TEXT else 500
        return Response(public_body(status), status, media_type="application/json")

    return Starlette(
        routes=[
            *(route(transport) for transport in miner.transports),
            Route("/health", miner.health),
            Route("/metrics", miner.metrics_page),
            Route("/", miner.status_page),
        ],
        exception_handlers={HTTPException: plain, Exception: plain},
    )
