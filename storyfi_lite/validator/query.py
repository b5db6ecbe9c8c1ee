"""One signed request to one miner over btauth/1, timed by us. Knows neither scores nor the chain.

The response's bytes are returned as they came, bounded in size and time; believing them is verify.py's matter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from storyfi_lite.errors import Busy, Unavailable
from storyfi_lite.validator.verify import MAX_RESPONSE_BYTES
from storyfi_lite.wire.messages import StoryRequest

if TYPE_CHECKING:
    from bittensor import Wallet

PATH = "/story"
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Reply:
    """`nonce_ns` is the signed request's nonce: the challenge seed is derived from it."""

    body: bytes
    elapsed_s: float
    nonce_ns: int


def ask(
    wallet: Wallet,
    miner_hotkey: str,
    endpoint: tuple[str, int],
    request: StoryRequest,
    timeout_s: float = TIMEOUT_S,
) -> Reply:
    """Signs and sends. Raises Unavailable (no answer, refused, too large) or Busy (the miner said so)."""
    from bittensor import http_auth

    body = request.model_dump_json(exclude_none=True).encode()
    nonce_ns = time.time_ns()
    headers = http_auth.sign(wallet, method="POST", path=PATH, body=body, receiver_ss58=miner_hotkey, nonce_ns=nonce_ns)
    started_s = time.monotonic()
    try:
        raw = post(endpoint, headers, body, timeout_s)
    except httpx.HTTPError as error:
        raise Unavailable(f"no answer from {endpoint[0]}:{endpoint[1]} ({type(error).__name__})") from None
    return Reply(raw, time.monotonic() - started_s, nonce_ns)


def post(endpoint: tuple[str, int], headers: dict[str, str], body: bytes, timeout_s: float) -> bytes:
    """One POST; at most MAX_RESPONSE_BYTES and `timeout_s` in all. Raises Unavailable or Busy by status."""
    host = f"[{endpoint[0]}]" if ":" in endpoint[0] else endpoint[0]
    url = f"http://{host}:{endpoint[1]}{PATH}"
    ends_s = time.monotonic() + timeout_s
    received = bytearray()
    with httpx.stream("POST", url, headers=headers, content=body, timeout=timeout_s) as response:
        for piece in response.iter_raw():
            received += piece
            if len(received) > MAX_RESPONSE_BYTES or time.monotonic() > ends_s:
                raise Unavailable("the answer is too large or too slow")
    if response.status_code == 503:
        raise Busy("the miner is busy")
    if response.status_code != 200:
        raise Unavailable(f"the miner answered HTTP {response.status_code}")
    return bytes(received)
