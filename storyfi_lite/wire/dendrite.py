"""Implements the wire of today's validators: bittensor 9/10's dendrite (client) and axon (server) at `POST /StoryGenerationSynapse`.

Pure functions over headers and bytes; tests/test_dendrite.py runs them against the real client and server (bittensor==10.5.0).
This wire protects less than btauth does. Upstream's StoryGenerationSynapse (3.0.0 to 3.2.1) declares no `required_hash_fields`,
so its signature covers no byte of the body: a body changed on the way is seen only where the client's class declares
HASH_FIELDS. `version` and `timeout` are not signed, so nothing here reads them. Answers are not signed: no client looks."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bittensor import sp_core
from pydantic_core import from_json

from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.check import parse_json
from storyfi_lite.protocol.messages import UNKNOWN, ModelInfo, StoryRequest, StoryResponse, parse_request
from storyfi_lite.wire.http_status import PUBLIC_TEXT, Refused
from storyfi_lite.wire.transport import NonceStore, SignedCaller, check_age, header, parse_nonce

WIRE = "dendrite"
# With `characters` as the bare list that 3.2.1 declares; each refuses the other's form.
WIRE_LIST = "dendrite-3.2.1"
NAME = "StoryGenerationSynapse"
PATH = f"/{NAME}"
OLD_PROTOCOL_VERSION = "3.2.0"  # of a client that sends none
# The 10.5 axon takes 4 s plus the call's time-out; the validators' time-out is 60 s. Replays inside the
# window are refused by the nonce store, so the window only has to be no longer than what the store remembers.
MAX_AGE_S = 64.0
SKEW_S = 4.0
# The fields that a synapse class should declare for its body to be protected, in this order.
HASH_FIELDS = ("task_type", "user_input", "blueprint", "characters", "story_arc", "chapter_ids")

_SIGNED = tuple(f"bt_header_dendrite_{key}" for key in ("hotkey", "nonce", "uuid", "signature"))
_AXON_HOTKEY = "bt_header_axon_hotkey"
_BODY_HASH = "computed_body_hash"
# Sent back, so that the client's synapse still says who called whom.
_ECHOED = ("bt_header_axon_ip", "bt_header_axon_port", "bt_header_dendrite_ip", "bt_header_dendrite_version")


def _sha3(text: str) -> str:
    return hashlib.sha3_256(text.encode()).hexdigest()


EMPTY_BODY_HASH = _sha3("")


def body_hash(fields: Mapping[str, Any], names: tuple[str, ...] = HASH_FIELDS) -> str:
    """Compute Synapse.body_hash of bittensor 10: sha3-256 over the joined sha3-256 of str() of each field's value."""
    return _sha3("".join(_sha3(str(fields.get(name))) for name in names))


def signed_message(claim: SignedCaller, receiver_ss58: str) -> bytes:
    """Return what the dendrite signs: nonce, sender, receiver, the dendrite's uuid and the body hash, joined by dots."""
    uuid = claim.fields["bt_header_dendrite_uuid"]
    return f"{claim.nonce_ns}.{claim.hotkey_ss58}.{receiver_ss58}.{uuid}.{claim.fields[_BODY_HASH]}".encode()


@dataclass(frozen=True)
class Dendrite:
    """Reads and answers dendrite requests that are addressed to one hotkey."""

    self_hotkey_ss58: str
    name: str = WIRE
    path: str = PATH
    window_s: float = MAX_AGE_S + SKEW_S

    def read_claim(self, headers: Mapping[str, str], now_ns: int) -> SignedCaller:
        fields = {name: header(headers, name) for name in (*_SIGNED, _AXON_HOTKEY, _BODY_HASH)}
        fields.update({name: header(headers, name) for name in _ECHOED if name in headers})
        if fields[_AXON_HOTKEY] != self.self_hotkey_ss58:
            raise Refused("wrong_receiver", "signed for another hotkey")
        nonce_ns = parse_nonce(fields["bt_header_dendrite_nonce"], "bt_header_dendrite_nonce")
        check_age(nonce_ns, now_ns, MAX_AGE_S, SKEW_S)
        return SignedCaller(fields["bt_header_dendrite_hotkey"], nonce_ns, fields)

    def verify_headers(self, claim: SignedCaller) -> None:
        message = signed_message(claim, self.self_hotkey_ss58)
        try:
            signature = bytes.fromhex(claim.fields["bt_header_dendrite_signature"].removeprefix("0x"))
            valid = sp_core.verify(message, signature, claim.hotkey_ss58, sp_core.CRYPTO_SR25519)
        except ValueError:
            raise Refused("malformed_headers", "the hotkey or the signature cannot be decoded") from None
        if not valid:
            raise Refused("bad_signature", "the signature is not this hotkey's")

    def verify_body(self, claim: SignedCaller, body: bytes, now_ns: int, nonces: NonceStore) -> None:
        claimed = claim.fields[_BODY_HASH]
        if claimed != EMPTY_BODY_HASH and claimed != body_hash(_load(body)):
            raise Refused("body_changed", "the body does not have the hash that was signed")
        if not nonces.check_and_store(claim.hotkey_ss58, claim.nonce_ns):
            raise Refused("replayed", "this nonce was seen before")

    def parse(self, body: bytes) -> StoryRequest:
        fields = _load(body)
        if isinstance(fields.get("characters"), list):  # upstream 3.2.1 sends the bare list
            fields["characters"] = {"characters": fields["characters"]}
        return parse_request(fields)

    def encode(self, claim: SignedCaller, body: bytes, response: StoryResponse) -> tuple[dict[str, str], bytes]:
        """Write the answer together with the request's own fields: the client overwrites its whole synapse with the answer's body."""
        sent = {key: value for key, value in _load(body).items() if key not in ("axon", "dendrite")}
        fields = {**sent, **json.loads(response.to_json_bytes())}
        fields["protocol_version"] = sent.get("protocol_version", OLD_PROTOCOL_VERSION)
        sender = {name: claim.fields[name] for name in (*_SIGNED, *_ECHOED) if name in claim.fields}
        process_time = {"bt_header_axon_process_time": str(response.generation_time)}
        return {**self.error_headers(200), **sender, **process_time}, json.dumps(fields).encode()

    def error_headers(self, status: int) -> dict[str, str]:
        return {
            "content-type": "application/json",
            "name": NAME,
            _AXON_HOTKEY: self.self_hotkey_ss58,
            "bt_header_axon_status_code": str(status),
            "bt_header_axon_status_message": PUBLIC_TEXT.get(status, "Success"),
        }


# --- the asking side -------------------------------------------------------------------------------------------------

_CLIENT_VERSION = "10005000"  # what bittensor 10.5.0 sends; an axon reads it to know how nonces are made
_CLIENT_UUID = str(uuid.uuid4())  # axons order nonces by hotkey and uuid


def sign_request(
    key: sp_core.Keypair,
    receiver_ss58: str,
    endpoint: tuple[str, int],
    request: StoryRequest,
    timeout_s: float,
    wire: str = WIRE,
) -> tuple[dict[str, str], bytes, int]:
    """Return headers, body and nonce as the dendrite sends them for upstream's synapse, which has no `required_hash_fields`:
    the signature covers no byte of the body, as miners on this wire expect."""
    fields = request.model_dump()
    if wire == WIRE_LIST and request.characters is not None:
        fields["characters"] = request.characters.get("characters", [])
    nonce_ns = time.time_ns()
    message = f"{nonce_ns}.{key.ss58_address}.{receiver_ss58}.{_CLIENT_UUID}.{EMPTY_BODY_HASH}"
    headers = {
        "content-type": "application/json",
        "name": NAME,
        "timeout": str(timeout_s),
        "bt_header_axon_ip": endpoint[0],
        "bt_header_axon_port": str(endpoint[1]),
        _AXON_HOTKEY: receiver_ss58,
        "bt_header_dendrite_version": _CLIENT_VERSION,
        "bt_header_dendrite_nonce": str(nonce_ns),
        "bt_header_dendrite_uuid": _CLIENT_UUID,
        "bt_header_dendrite_hotkey": key.ss58_address,
        "bt_header_dendrite_signature": f"0x{key.sign(message.encode()).hex()}",
        _BODY_HASH: EMPTY_BODY_HASH,
    }
    return headers, json.dumps(fields).encode(), nonce_ns


LOCAL_MODES = ("local", "vllm")  # what a miner with a model of its own says
EMBEDDED_INFO = "_model_info"  # where miners of 3.2.1 repeat it, because their validator's client drops the field


def complete_response(body: bytes) -> bytes:
    """Add to a protocol 3.2.0 answer the claims that 3.3.0 asks for, taken from its `model_info`. Bytes that are no JSON object
    are returned as they are: the validator says what is wrong with them."""
    try:
        fields = parse_json(body)
    except BadInput:
        return body
    if not isinstance(fields, dict):
        return body
    story = fields.get("output_data")
    embedded = story.pop(EMBEDDED_INFO, None) if isinstance(story, dict) else None
    said = [info for info in (embedded, fields.get("model_info")) if isinstance(info, dict)]
    known = {key: value for info in said for key, value in info.items() if value not in (None, UNKNOWN)}
    info = ModelInfo.model_validate(known)
    claims = {
        "miner_mode": "LocalModelLoader" if info.mode in LOCAL_MODES else "APIFallbackLoader",
        "model_name": info.name,
    }
    return json.dumps({**claims, **fields, "model_info": info.model_dump()}).encode()


def _load(body: bytes) -> dict[str, Any]:
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise BadInput("the request is not JSON") from None
    if not isinstance(fields, dict):
        raise BadInput("the request is not a JSON object")
    return fields
