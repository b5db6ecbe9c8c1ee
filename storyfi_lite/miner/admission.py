"""Decides who may ask: runs every check between a request's first header and the loader, cheapest first.

    headers (size, shape, receiver, age) -> deny list, registration, permit, stake -> signature -> body
    (bounded, timed) -> body's signature -> nonce remembered -> rate counted -> parsed

A stranger costs a dictionary look-up; a self-made key cannot fill the nonce store, and a forged header cannot
use up a validator's rate. This module knows no HTTP framework and no loader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from storyfi_lite.chain import Neuron
from storyfi_lite.protocol.messages import MAX_BODY_BYTES, StoryRequest
from storyfi_lite.wire.http_status import Refused
from storyfi_lite.wire.transport import NonceStore, SignedCaller, Transport

MAX_HEADERS = 64
BODY_TIMEOUT_S = 10.0
SMALL_BODY_BYTES = 131_072  # twice what the longest honest request has
MAX_LARGE_BODIES = 16  # read at once: nothing is verified yet, so all bodies together have to stay small
RATE_PER_MINUTE = 30.0  # upstream's validators ask every 12 s; six times that
MAX_BUCKETS = 4_096


class Directory(Protocol):
    """Looks up registered hotkeys, as ChainSession does. Never blocks; raises Unavailable while nothing is known of the chain."""

    def lookup(self, hotkey_ss58: str) -> Neuron | None: ...


@dataclass(frozen=True)
class AdmissionPolicy:
    """Says whom the operator answers. Hotkeys in `allow` need no registration, permit or stake; `deny` overrides the rest."""

    require_permit: bool = True
    min_stake_tao: float = 0.0
    rate_per_minute: float = RATE_PER_MINUTE
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Caller:
    """Describes a verified sender. `uid` is None for a hotkey that only the allow list knows."""

    hotkey_ss58: str
    uid: int | None
    stake_tao: float


@dataclass(frozen=True)
class Admitted:
    """Holds a request that passed every check."""

    caller: Caller
    claim: SignedCaller
    request: StoryRequest
    body: bytes  # as it came; the dendrite's answer repeats it


class RateLimit:
    """Keeps a token bucket per hotkey: `per_minute` requests on average, a third of that at once. `clock` is monotonic."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_minute / 60
        self._burst = max(1.0, per_minute / 3)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # hotkey -> (tokens, when)

    def take(self, hotkey_ss58: str) -> None:
        """Count one request. Raises Refused("rate") with the wait in seconds."""
        now_s = self._clock()
        tokens, when_s = self._buckets.get(hotkey_ss58, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - when_s) * self._per_s)
        if tokens < 1:
            raise Refused("rate", f"more than {self._per_s * 60:g} a minute", (1 - tokens) / self._per_s)
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets.pop(next(iter(self._buckets)))  # the one unused for longest: see the move to the end below
        self._buckets.pop(hotkey_ss58, None)
        self._buckets[hotkey_ss58] = (tokens - 1, now_s)


@dataclass
class Gate:
    """Runs the checks in order. All transports use one Gate, so that they share nonces and rates."""

    directory: Directory
    nonces: NonceStore
    policy: AdmissionPolicy = field(default_factory=AdmissionPolicy)
    now_ns: Callable[[], int] = time.time_ns
    body_timeout_s: float = BODY_TIMEOUT_S
    max_body_bytes: int = MAX_BODY_BYTES
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.rate = RateLimit(self.policy.rate_per_minute, self.clock)
        self._large_bodies = 0

    async def admit(self, transport: Transport, headers: Mapping[str, str], chunks: AsyncIterator[bytes]) -> Admitted:
        """Check one request. Raises Refused, BadInput (a signed but wrong request) or Unavailable (the chain was never seen)."""
        if len(headers) > MAX_HEADERS:
            raise Refused("malformed_headers", f"{len(headers)} headers")
        claim = transport.read_claim(headers, self.now_ns())
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_body_bytes:
            raise Refused("too_large", f"content-length {length[:20]}")
        caller = self._who(claim.hotkey_ss58)
        transport.verify_headers(claim)
        try:
            body = await asyncio.wait_for(self._read(chunks), self.body_timeout_s)
        except asyncio.TimeoutError:
            raise Refused("slow_body", f"the body took more than {self.body_timeout_s:g} s") from None
        transport.verify_body(claim, body, self.now_ns(), self.nonces)
        self.rate.take(claim.hotkey_ss58)
        return Admitted(caller, claim, transport.parse(body), body)

    def _who(self, hotkey_ss58: str) -> Caller:
        policy = self.policy
        if hotkey_ss58 in policy.deny:
            raise Refused("denied", "on the deny list")
        allowed = hotkey_ss58 in policy.allow
        neuron = self.directory.lookup(hotkey_ss58)
        if neuron is None:
            if allowed:
                return Caller(hotkey_ss58, None, 0.0)
            raise Refused("unregistered", "not registered on this subnet")
        if not allowed and policy.require_permit and not neuron.validator_permit:
            raise Refused("no_permit", f"uid {neuron.uid} has no validator permit")
        if not allowed and neuron.stake_tao < policy.min_stake_tao:
            raise Refused("low_stake", f"uid {neuron.uid} has {neuron.stake_tao:g}, asked {policy.min_stake_tao:g}")
        return Caller(hotkey_ss58, neuron.uid, neuron.stake_tao)

    async def _read(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Read the body; never more than max_body_bytes, and few large bodies at once."""
        body, large = bytearray(), False
        try:
            async for chunk in chunks:
                body += chunk
                if len(body) > self.max_body_bytes:
                    raise Refused("too_large", f"more than {self.max_body_bytes} bytes")
                if len(body) > SMALL_BODY_BYTES and not large:
                    if self._large_bodies >= MAX_LARGE_BODIES:
                        raise Refused("crowded", f"{MAX_LARGE_BODIES} large bodies are being read")
                    large = True
                    self._large_bodies += 1
            return bytes(body)
        finally:
            self._large_bodies -= large
