"""Implements the main wire: `POST /story`, JSON signed with bittensor 11's `btauth/1` for one miner's hotkey.

`bittensor.http_auth` does the cryptography. This module puts the cheap checks first, so that a stranger's request costs almost
nothing, and turns the library's errors into Refused. It is no server and knows no permit or stake."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from bittensor import Wallet, http_auth

from storyfi_lite.protocol.messages import StoryRequest, StoryResponse, parse_request
from storyfi_lite.wire.http_status import Refused
from storyfi_lite.wire.transport import NonceStore, SignedCaller, check_age, header, parse_nonce

NAME = "btauth"
PATH = "/story"
MAX_AGE_S = http_auth.DEFAULT_MAX_AGE
SKEW_S = http_auth.DEFAULT_ALLOWED_SKEW

_REASONS: dict[type[http_auth.AuthError], str] = {
    http_auth.MalformedAuth: "malformed_headers",
    http_auth.WrongReceiver: "wrong_receiver",
    http_auth.StaleRequest: "stale",
    http_auth.BadSignature: "bad_signature",
    http_auth.ReplayedRequest: "replayed",
}
_SIGNED = (
    http_auth.HEADER_VERSION,
    http_auth.HEADER_HOTKEY,
    http_auth.HEADER_RECEIVER,
    http_auth.HEADER_NONCE,
    http_auth.HEADER_SIGNATURE,
)


@dataclass(frozen=True)
class BtAuth:
    """Reads and answers btauth requests that are addressed to one hotkey."""

    self_hotkey_ss58: str
    name: str = NAME
    path: str = PATH
    window_s: float = MAX_AGE_S + SKEW_S

    def read_claim(self, headers: Mapping[str, str], now_ns: int) -> SignedCaller:
        fields = {name: header(headers, name.lower()) for name in _SIGNED}
        if (name := http_auth.HEADER_CRYPTO).lower() in headers:
            fields[name] = header(headers, name.lower())
        if fields[http_auth.HEADER_RECEIVER] != self.self_hotkey_ss58:
            raise Refused("wrong_receiver", "signed for another hotkey")
        nonce_ns = parse_nonce(fields[http_auth.HEADER_NONCE], http_auth.HEADER_NONCE)
        check_age(nonce_ns, now_ns, MAX_AGE_S, SKEW_S)
        return SignedCaller(fields[http_auth.HEADER_HOTKEY], nonce_ns, fields)

    def verify_headers(self, claim: SignedCaller) -> None:
        """Do nothing: this signature covers the body, which has not come yet."""

    def verify_body(self, claim: SignedCaller, body: bytes, now_ns: int, nonces: NonceStore) -> None:
        try:
            http_auth.verify(
                claim.fields,
                body,
                method="POST",
                path=self.path,
                self_hotkey_ss58=self.self_hotkey_ss58,
                nonce_store=nonces,
                now_ns=now_ns,
            )
        except http_auth.AuthError as error:
            raise Refused(_REASONS[type(error)], str(error)) from None

    def parse(self, body: bytes) -> StoryRequest:
        return parse_request(body)

    def encode(self, claim: SignedCaller, body: bytes, response: StoryResponse) -> tuple[dict[str, str], bytes]:
        return self.error_headers(200), response.to_json_bytes()

    def error_headers(self, status: int) -> dict[str, str]:
        return {"content-type": "application/json"}


def sign_request(wallet: Wallet, receiver_ss58: str, body: bytes) -> tuple[dict[str, str], int]:
    """Sign a request of ours. Returns the headers, and the nonce in them."""
    nonce_ns = time.time_ns()
    signed = http_auth.sign(wallet, method="POST", path=PATH, body=body, receiver_ss58=receiver_ss58, nonce_ns=nonce_ns)
    return {**signed, "content-type": "application/json"}, nonce_ns
