"""Computes the sha256 of large files, and keeps it: hashing 40 GB takes minutes, and its result changes only with the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from storyfi_lite import files

_BLOCK_BYTES = 1 << 22
_KEPT_IN = "sha256.json"


def file_sha256(path: Path) -> str:
    """Return the file's sha256 in hex. It is kept in the user's cache by path, size and time of change."""
    sha256: str | None = files.read_cache(_KEPT_IN).get(_key(path))
    if sha256 is None:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        sha256 = digest.hexdigest()
        remember(path, sha256)
    return sha256


def remember(path: Path, sha256: str) -> None:
    """Keep a digest that was computed elsewhere, of the file as it is now."""
    files.keep(_KEPT_IN, _key(path), sha256)


def _key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
