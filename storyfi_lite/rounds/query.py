"""One signed request to one miner, over either wire, timed by us. Knows neither scores nor the chain.

The response's bytes are returned as they came, bounded in size and time; believing them is validator/verify.py's matter.
Of miners that speak only the dendrite's wire, what protocol 3.2.0 lacks is filled in from what it has.

A miner is asked on the wire that it answered on last. A new one is asked on the dendrite's, which nearly all speak, so that none
logs an error over a path that it does not have; one whose answer shows protocol 3.3.0 is asked over btauth from then on.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx

from storyfi_lite.errors import Busy, Unavailable
from storyfi_lite.protocol.limits import TIMEOUT_S
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator.verify import MAX_RESPONSE_BYTES
from storyfi_lite.wire import btauth, dendrite

if TYPE_CHECKING:
    from bittensor import Wallet

UNKNOWN = ""  # a miner of which no answer has come yet


@dataclass(frozen=True)
class Target:
    """A miner and where it listens. `wire`: what its last Reply says, UNKNOWN if there was none."""

    hotkey_ss58: str
    endpoint: tuple[str, int]
    wire: str = UNKNOWN

    @property
    def url(self) -> str:
        host, port = self.endpoint
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@dataclass(frozen=True)
class Reply:
    """`elapsed_s`: from sending to the last byte. `nonce_ns`: the signed nonce; the challenge seed is derived from it.
    `wire`: the one to ask this miner on next."""

    body: bytes
    elapsed_s: float
    nonce_ns: int
    wire: str = btauth.NAME


def ask(
    wallet: Wallet,
    miner_hotkey: str,
    endpoint: tuple[str, int],
    request: StoryRequest,
    timeout_s: float = TIMEOUT_S,
    wire: str = btauth.NAME,
) -> Reply:
    """`query` for one miner, from code that is not async."""

    async def once() -> Reply:
        async with client() as connection:
            return await query(connection, wallet, Target(miner_hotkey, endpoint, wire), request, timeout_s)

    return asyncio.run(once())


def client() -> httpx.AsyncClient:
    """For a whole round. Follows no redirect and no proxy: the endpoint on chain is what was asked."""
    return httpx.AsyncClient(
        trust_env=False,
        timeout=None,
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"accept-encoding": "identity"},  # a compressed answer of bounded size may be of any size
    )


async def query(
    connection: httpx.AsyncClient,
    wallet: Wallet,
    target: Target,
    request: StoryRequest,
    timeout_s: float = TIMEOUT_S,
) -> Reply:
    """Signs and sends: over the miner's wire, and over the other if there is no such path. However slowly it
    trickles, `timeout_s` is the end, and all of the time counts. Raises Unavailable (no answer, refused, too large) or Busy
    (the miner said so)."""
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
    """With `characters` in the form that the miner took last, and in the other if its axon calls that an error of its own."""
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
    """The answer's bytes; None if there is no such path."""
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
