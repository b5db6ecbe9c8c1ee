"""Derives the challenge seed, which binds an answer to one request and one miner. Miner and validator share it.

A text copied from another miner, or written before the request, fails the replay under this seed (docs/proof.md).
"""

from __future__ import annotations

import hashlib


def challenge_seed(validator_hotkey: str, miner_hotkey: str, nonce: str, task: str, user_input: str) -> int:
    """Return an unsigned 64-bit seed: the first 8 bytes, big-endian, of sha256 over the five parts as UTF-8, each after its
    length (4 bytes, big-endian), so that two different requests never hash the same bytes."""
    digest = hashlib.sha256()
    for part in (validator_hotkey, miner_hotkey, nonce, task, user_input):
        data = part.encode()
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
    return int.from_bytes(digest.digest()[:8], "big")
