"""Maps each error to what a stranger may read of it: an HTTP status and a fixed, short text.

A refusal's reason and detail are for the operator: miner/metrics.py counts and logs them, and neither is ever sent. Both
transports use this table, with the numbers that today's validators know: 401 not verified, 403 forbidden, 408 timed out
(bittensor 10's `failed_verification`, `is_blacklist`, `is_timeout`)."""

from __future__ import annotations

import json
import math

from storyfi_lite.errors import BadInput, Busy, DeadlineExceeded, LiteError, Unavailable

# reason -> status, and what it means, for the operator. The reasons are the label values of the refusal counter: few, fixed,
# never from a peer.
REASONS = {
    "stopping": (503, "this miner was shutting down"),
    "malformed_headers": (401, "not a signed request"),
    "wrong_receiver": (401, "signed for another miner"),
    "stale": (401, "signed too long ago, or one of the two clocks is wrong"),
    "denied": (403, "on your deny list"),
    "unregistered": (403, "the caller is not registered on this subnet"),
    "no_permit": (403, "the caller may not set weights, so it pays nobody"),
    "low_stake": (403, "less stake than --min-stake"),
    "too_large": (413, "longer than any honest request"),
    "crowded": (503, "too many long requests at once"),
    "slow_body": (408, "the request came too slowly"),
    "bad_signature": (401, "not signed by the key that it names"),
    "body_changed": (401, "changed after it was signed"),
    "replayed": (401, "sent a second time"),
    "rate": (429, "more than --rate a minute"),
    "bad_request": (400, "well signed, but no task of this network"),
    "not_ready": (503, "nothing is known of the chain yet"),
}

PUBLIC_TEXT = {
    400: "bad request",
    401: "not verified",
    403: "forbidden",
    404: "not found",
    405: "method not allowed",
    408: "timed out",
    413: "too large",
    429: "too many requests",
    500: "internal error",
    503: "busy, try again later",
}


class Refused(LiteError):
    """Says why a request gets no answer. `reason` is a key of REASONS; `detail` is for the operator."""

    exit_code = BadInput.exit_code

    def __init__(self, reason: str, detail: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.status = REASONS[reason][0]
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s


STATUS_BY_ERROR: dict[type[BaseException], int] = {
    BadInput: 400,
    Busy: 503,
    DeadlineExceeded: 408,
    Unavailable: 503,
    LiteError: 500,
}


def status_of(error: BaseException) -> int:
    """Return the status of the error's most specific type in the table; 500 for every other error."""
    if isinstance(error, Refused):
        return error.status
    return next((STATUS_BY_ERROR[kind] for kind in type(error).__mro__ if kind in STATUS_BY_ERROR), 500)


def retry_after_header(error: BaseException, status: int) -> dict[str, str]:
    """Return the `Retry-After` header in whole seconds for 429 and 503, no header for other statuses."""
    if status not in (429, 503):
        return {}
    wait_s = getattr(error, "retry_after_s", None)
    return {"retry-after": str(max(1, math.ceil(wait_s)) if wait_s is not None else 1)}


def public_body(status: int) -> bytes:
    """Return the error's body, `{"message": ...}`: bittensor 10's dendrite reads this key."""
    return json.dumps({"message": PUBLIC_TEXT[status]}).encode()
