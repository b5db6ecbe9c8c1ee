"""The wires without a server: pinned bytes, the edges of the age window, and one status for every error."""

from __future__ import annotations

import pytest
from bittensor import http_auth
from bittensor.sp_core import Keypair

from storyfi_lite import errors
from storyfi_lite.errors import (
    BadInput,
    Busy,
    DeadlineExceeded,
    EngineError,
    LiteError,
    RegistryError,
    Unavailable,
)
from storyfi_lite.wire import http_status
from storyfi_lite.wire.btauth import BtAuth
from storyfi_lite.wire.dendrite import EMPTY_BODY_HASH, body_hash, signed_message
from storyfi_lite.wire.http_status import (
    PUBLIC_TEXT,
    REASONS,
    Refused,
    retry_after_header,
    status_of,
)
from storyfi_lite.wire.transport import SignedCaller, check_age, parse_nonce

ALICE = Keypair.create_from_uri("//Alice")
BOB = Keypair.create_from_uri("//Bob")


# --- the dendrite's bytes, as bittensor 10.5.0 computed them --------------------------------------

FIELDS = {
    "task_type": "chapters",
    "user_input": "灯塔 “tale”\n",
    "blueprint": {"title": "海", "n": 1.5, "t": True, "x": None},
    "characters": {"characters": [{"id": "ally"}]},
    "story_arc": {"a": 1e-7},
    "chapter_ids": [1, 2],
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (FIELDS, "ae376c8b973afb0230d294fd25fe0c224db70b237dabd1977618d458ebd34ecf"),
        (
            {"task_type": "blueprint", "user_input": "x"},
            "29cbec6bd0f85cb6cba0fdc9add8caa200114fdf89e82fb9f9ccc8ec1cbf5672",
        ),
    ],
)
def test_body_hash_vectors(fields: dict[str, object], expected: str) -> None:
    assert body_hash(fields) == expected


def test_a_class_without_hash_fields_has_one_hash_for_every_body() -> None:
    assert EMPTY_BODY_HASH == "a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a"
    assert body_hash(FIELDS, ()) == EMPTY_BODY_HASH


def test_the_signed_message() -> None:
    fields = {"bt_header_dendrite_uuid": "u-1", "computed_body_hash": "h"}
    assert signed_message(SignedCaller("sender", 17, fields), "receiver") == b"17.sender.receiver.u-1.h"


# --- age ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "taken"), [(0, True), (10, True), (10.001, False), (-2, True), (-2.001, False), (3_600, False)]
)
def test_the_age_window(age_s: float, taken: bool) -> None:
    now_ns = 1_795_410_003 * 10**9
    nonce_ns = now_ns - int(age_s * 1e9)
    if taken:
        check_age(nonce_ns, now_ns, 10, 2)
    else:
        with pytest.raises(Refused) as refusal:
            check_age(nonce_ns, now_ns, 10, 2)
        assert refusal.value.reason == "stale"


@pytest.mark.parametrize("value", ["", "-1", "+1", "1_000", "1.0", " 1", "١٢", "²", str(2**63), "9" * 5_000])
def test_what_is_no_nonce(value: str) -> None:
    with pytest.raises(Refused):
        parse_nonce(value, "nonce")


def test_a_nonce() -> None:
    assert parse_nonce("1795410003469788297", "nonce") == 1_795_410_003_469_788_297


# --- btauth ---------------------------------------------------------------------------------------


class Forgetful:
    """A nonce store that has seen nothing and keeps nothing."""

    retention = 60.0

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool:
        return True


def verify(path: str = "/story", body: bytes = b"{}", key: Keypair = ALICE) -> None:
    wire, now_ns = BtAuth(BOB.ss58_address), 10**18
    headers = http_auth.sign(key, method="POST", path=path, body=b"{}", receiver_ss58=BOB.ss58_address, nonce_ns=now_ns)
    claim = wire.read_claim({name.lower(): value for name, value in headers.items()}, now_ns)
    assert claim.hotkey_ss58 == key.ss58_address
    wire.verify_body(claim, body, now_ns, Forgetful())


def test_btauth_binds_path_and_body() -> None:
    verify()
    with pytest.raises(Refused, match="bad_signature"):
        verify(path="/other")
    with pytest.raises(Refused, match="bad_signature"):
        verify(body=b"[]")


def test_ed25519_hotkeys_are_verified_under_their_own_scheme() -> None:
    verify(key=Keypair.create_from_uri("//Alice", 0))


# --- one table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadInput("x"), 400),
        (RegistryError("x"), 400),  # by its base: the table is walked along the MRO
        (Busy("x"), 503),
        (Unavailable("x"), 503),
        (DeadlineExceeded("x"), 408),
        (EngineError("x"), 500),
        (KeyError("x"), 500),
        (Refused("replayed"), 401),
    ],
)
def test_status_of(error: Exception, status: int) -> None:
    assert status_of(error) == status


def test_every_error_and_every_reason_has_a_text_for_strangers() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LiteError)]
    statuses = {status_of(kind("secret")) for kind in kinds} | {status for status, _ in REASONS.values()}
    assert statuses <= set(PUBLIC_TEXT)
    assert all(b"secret" not in http_status.public_body(status) for status in statuses)


@pytest.mark.parametrize(
    ("error", "status", "seconds"),
    [
        (Busy("x", 6.2), 503, "7"),
        (Busy("x", 0.0), 503, "1"),
        (Busy("x"), 503, "1"),
        (Refused("rate", "", 2.0), 429, "2"),
    ],
)
def test_retry_after(error: Exception, status: int, seconds: str) -> None:
    assert retry_after_header(error, status) == {"retry-after": seconds}


def test_no_retry_after_where_waiting_does_not_help() -> None:
    assert retry_after_header(BadInput("x"), 400) == {}
