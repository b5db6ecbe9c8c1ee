"""What a request's headers claim before anything is proven, and the shape of a transport.

A transport knows headers and bytes. It knows no HTTP server, no chain and no loader.
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
    """Who says to have sent this, when (the signed nonce, nanoseconds since 1970), and the signed fields."""

    hotkey_ss58: str
    nonce_ns: int
    fields: Mapping[str, str]


class NonceStore(Protocol):
    """bittensor.http_auth's seam, with `retention` declared: seconds for which a nonce is remembered."""

    retention: float

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool: ...


class Transport(Protocol):
    """One way to ask for a story. Every method raises Refused; none of them changes anything but the nonce
    store."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def window_s(self) -> float:
        """How long a signature can be accepted: the greatest age plus the clock skew."""
        ...

    def read_claim(self, headers: Mapping[str, str], now_ns: int) -> SignedCaller:
        """From the headers alone: shape, receiver, age. Nothing is verified yet."""

    def verify_headers(self, claim: SignedCaller) -> None:
        """The signature, where it does not need the body; else nothing."""

    def verify_body(self, claim: SignedCaller, body: bytes, now_ns: int, nonces: NonceStore) -> None:
        """The signature or body hash, then the nonce: remembered only after everything else held."""

    def parse(self, body: bytes) -> StoryRequest:
        """Raises BadInput."""

    def encode(self, claim: SignedCaller, body: bytes, response: StoryResponse) -> tuple[dict[str, str], bytes]:
        """Headers and body of the answer to the request that came as `body`."""

    def error_headers(self, status: int) -> dict[str, str]:
        """Headers beside the fixed text of an error."""


def header(headers: Mapping[str, str], name: str) -> str:
    """The header's value; Refused if it is missing or longer than any honest one."""
    value = headers.get(name)
    if not value:
        raise Refused("malformed_headers", f"{name} is missing")
    if len(value) > MAX_HEADER_VALUE_CHARS:
        raise Refused("malformed_headers", f"{name} has {len(value)} characters")
    return value


def check_age(nonce_ns: int, now_ns: int, max_age_s: float, skew_s: float) -> None:
    """Refused("stale") unless now - max_age_s <= nonce <= now + skew_s. The clock is ours, the nonce is
    signed."""
    age_s = (now_ns - nonce_ns) / 1e9
    if age_s > max_age_s or age_s < -skew_s:
        raise Refused("stale", f"signed {age_s:.1f} s ago; allowed are {max_age_s:g} s, and {skew_s:g} s ahead")


def parse_nonce(value: str, name: str) -> int:
    """Decimal nanoseconds that fit 63 bits. `int` alone would take signs, underscores and other scripts'
    digits."""
    if not (value.isascii() and value.isdigit() and len(value) <= 19 and int(value) < 2**63):
        raise Refused("malformed_headers", f"{name} is not a nonce")
    return int(value)
