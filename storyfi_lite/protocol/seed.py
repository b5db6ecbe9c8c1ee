"""The challenge seed: binds an answer to one request and one miner. Pure; shared by miner and validator.

A text copied from another miner, or written before the request, fails the replay under this seed (docs/proof.md).
"""

from __future__ import annotations

import hashlib


def challenge_seed(validator_hotkey: str, miner_hotkey: str, nonce: str, task: str, user_input: str) -> int:
    """Unsigned 64-bit: the first 8 bytes, big-endian, of sha256 over the five parts as UTF-8, each with its
    length before it (4 bytes, big-endian), so that no two different requests spell the same input."""
    digest = hashlib.sha256()
    for part in (validator_hotkey, miner_hotkey, nonce, task, user_input):
        data = part.encode()
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
    return int.from_bytes(digest.digest()[:8], "big")
