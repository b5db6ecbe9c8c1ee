"""Sends one signed request to one miner, over either wire, and times it. It knows neither scores nor the chain.

The response's bytes are bounded in size and time, and returned unchecked: validator/verify.py checks them. To an answer on the
dendrite's wire, the claims that protocol 3.2.0 lacks are added from those that it has (wire/dendrite.py).

A miner is asked on the wire that it answered on last. A new miner is asked on the dendrite's, which nearly all speak, so that no
miner logs an error over an unknown path; if the answer shows protocol 3.3.0, the miner is asked over btauth from then on.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx

from storyfi_lite.chain.networks import url_host
from storyfi_lite.errors import Busy, Unavailable
from storyfi_lite.protocol.limits import TIMEOUT_S
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator.verify import MAX_RESPONSE_BYTES
from storyfi_lite.wire import btauth, dendrite

if TYPE_CHECKING:
    from bittensor import Wallet

NO_WIRE = ""  # a miner of which no answer has come yet


@dataclass(frozen=True)
class Target:
    """Names a miner and where it listens. `wire`: that of the miner's last Reply, NO_WIRE if there was none."""

    hotkey_ss58: str
    endpoint: tuple[str, int]
    wire: str = NO_WIRE

    @property
    def url(self) -> str:
        host, port = self.endpoint
        return f"http://{url_host(host)}:{port}"


@dataclass(frozen=True)
class Reply:
    """Holds an answer. `elapsed_s`: from sending to the last byte. `nonce_ns`: the signed nonce, from which the challenge seed
    is derived. `wire`: the one to ask this miner on next."""

    body: bytes
    elapsed_s: float
    nonce_ns: int
    wire: str = btauth.NAME


def ask(
    wallet: Wallet, miner_hotkey: str, endpoint: tuple[str, int], request: StoryRequest,
    timeout_s: float = TIMEOUT_S, wire: str = btauth.NAME,
) -> Reply:  # fmt: skip
    """Query one miner from code that is not async."""

    async def once() -> Reply:
        async with client() as connection:
            return await query(connection, wallet, Target(miner_hotkey, endpoint, wire), request, timeout_s)

    return asyncio.run(once())


def client() -> httpx.AsyncClient:
    """Make the HTTP client of a round. It follows no redirect and no proxy: only the endpoint on chain is asked."""
    return httpx.AsyncClient(
        trust_env=False,
        timeout=None,
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"accept-encoding": "identity"},  # a compressed answer of bounded size may be of any size
    )


async def query(
    connection: httpx.AsyncClient, wallet: Wallet, target: Target, request: StoryRequest, timeout_s: float = TIMEOUT_S
) -> Reply:
    """Ask over the target's wire, and over the other if the miner has no such path. `timeout_s` bounds all of it together.
    Raises Unavailable (no answer, refused, too large) or Busy (the miner said so)."""
    wires = [_over_dendrite, _over_btauth]
    if target.wire == btauth.NAME:
        wires.reverse()
    started_s = time.monotonic()

    async def first() -> Reply | None:
        for over in wires:
            reply = await over(connection, wallet, target, request, timeout_s)
            if reply is not None:
                return reply
        return None

    try:
        reply = await asyncio.wait_for(first(), timeout_s)
    except asyncio.TimeoutError:
        raise Unavailable(f"no answer within {timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"no answer ({type(error).__name__})") from None
    if reply is None:
        raise Unavailable("the miner speaks neither wire")
    return replace(reply, elapsed_s=time.monotonic() - started_s)


async def _over_btauth(
    connection: httpx.AsyncClient, wallet: Wallet, target: Target, request: StoryRequest, timeout_s: float
) -> Reply | None:
    body = request.model_dump_json(exclude_none=True).encode()
    headers, nonce_ns = btauth.sign_request(wallet, target.hotkey_ss58, body)
    got = _accepted(*await _read(connection, target.url + btauth.PATH, headers, body))
    return None if got is None else Reply(got, 0.0, nonce_ns, btauth.NAME)


async def _over_dendrite(
    connection: httpx.AsyncClient, wallet: Wallet, target: Target, request: StoryRequest, timeout_s: float
) -> Reply | None:
    """Send `characters` in the form that the miner took last, then in the other form if the miner's axon answers 500."""
    forms = sorted((dendrite.WIRE_LIST, dendrite.WIRE), key=lambda form: form != target.wire)
    for form in forms if request.characters is not None else forms[:1]:
        headers, body, nonce_ns = dendrite.sign_request(
            wallet.hotkey, target.hotkey_ss58, target.endpoint, request, timeout_s, form
        )
        status, received = await _read(connection, target.url + dendrite.PATH, headers, body)
        if status != 500:
            break
    if (got := _accepted(status, received)) is None:
        return None
    wire = btauth.NAME if b'"miner_mode":' in got else form  # a field that came with 3.3.0
    return Reply(dendrite.complete_response(got), 0.0, nonce_ns, wire)


def _accepted(status: int, received: bytes) -> bytes | None:
    """Return the answer's bytes, None if there is no such path. Raises Busy or Unavailable for other statuses."""
    if status == 404:
        return None
    if status == 503:
        raise Busy("the miner is busy")
    if status != 200:
        raise Unavailable(f"the miner answered HTTP {status}")
    return received


async def _read(connection: httpx.AsyncClient, url: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    received = bytearray()
    async with connection.stream("POST", url, headers=headers, content=body) as response:
        async for piece in response.aiter_raw():
            received += piece
            if len(received) > MAX_RESPONSE_BYTES:
                raise Unavailable(f"the answer has more than {MAX_RESPONSE_BYTES:,} bytes")
    return response.status_code, bytes(received)
