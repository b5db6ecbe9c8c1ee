"""Defines what a transport does, with the checks of headers that both transports share.

A transport reads and writes headers and bytes. It knows no HTTP server, no chain and no loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.wire.http_status import Refused

MAX_HEADER_VALUE_CHARS = 256  # the longest that either wire signs is a 130-character signature


@dataclass(frozen=True)
class SignedCaller:
    """Holds what a request claims of its sender: hotkey, time of signing (nonce: nanoseconds since 1970), signed fields."""

    hotkey_ss58: str
    nonce_ns: int
    fields: Mapping[str, str]


class NonceStore(Protocol):
    """Remembers nonces, as bittensor.http_auth asks for. `retention`: for how many seconds a nonce is remembered."""

    retention: float

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool: ...


class Transport(Protocol):
    """Reads and answers story requests over one wire. Every method may raise Refused; only the nonce store is ever changed."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def window_s(self) -> float:
        """Return for how long a signature is accepted: the greatest age plus the clock skew."""
        ...

    def read_claim(self, headers: Mapping[str, str], now_ns: int) -> SignedCaller:
        """Check the headers' shape, receiver and age. The signature is not verified yet."""

    def verify_headers(self, claim: SignedCaller) -> None:
        """Verify the signature if it does not cover the body; else do nothing."""

    def verify_body(self, claim: SignedCaller, body: bytes, now_ns: int, nonces: NonceStore) -> None:
        """Verify the signature or the body's hash, then store the nonce. A nonce is stored only after all other checks."""

    def parse(self, body: bytes) -> StoryRequest:
        """Read the body. Raises BadInput."""

    def encode(self, claim: SignedCaller, body: bytes, response: StoryResponse) -> tuple[dict[str, str], bytes]:
        """Return headers and body of the answer to the request that came as `body`."""

    def error_headers(self, status: int) -> dict[str, str]:
        """Return the headers that go with an error's fixed text."""


def header(headers: Mapping[str, str], name: str) -> str:
    """Return the header's value. Raises Refused if the header is missing or longer than any honest one."""
    value = headers.get(name)
    if not value:
        raise Refused("malformed_headers", f"{name} is missing")
    if len(value) > MAX_HEADER_VALUE_CHARS:
        raise Refused("malformed_headers", f"{name} has {len(value)} characters")
    return value


def check_age(nonce_ns: int, now_ns: int, max_age_s: float, skew_s: float) -> None:
    """Raise Refused("stale") unless now - max_age_s <= nonce <= now + skew_s. `now` is by our own clock."""
    age_s = (now_ns - nonce_ns) / 1e9
    if age_s > max_age_s or age_s < -skew_s:
        raise Refused("stale", f"signed {age_s:.1f} s ago; allowed are {max_age_s:g} s, and {skew_s:g} s ahead")


def parse_nonce(value: str, name: str) -> int:
    """Parse decimal nanoseconds that fit 63 bits; `int` alone accepts signs, underscores and other scripts' digits."""
    if not (value.isascii() and value.isdigit() and len(value) <= 19 and int(value) < 2**63):
        raise Refused("malformed_headers", f"{name} is not a nonce")
    return int(value)
