"""sha256 of large files, remembered: hashing 40 GB takes minutes, and its result changes only with the file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from storyfi_lite import files

_BLOCK_BYTES = 1 << 22


def file_sha256(path: Path) -> str:
    """Hex. Remembered in the user's cache by path, size and time of change."""
    known = _read()
    key = _key(path)
    if key not in known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        remember(path, digest.hexdigest())
        return digest.hexdigest()
    return known[key]


def remember(path: Path, sha256: str) -> None:
    """Notes a digest that was computed elsewhere, of the file as it is now."""
    known = _read() | {_key(path): sha256}
    files.write_cache(_memory(), json.dumps(known))


def _memory() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("storyfi-lite")) / "sha256.json"


def _key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"


def _read() -> dict[str, str]:
    try:
        known = json.loads(_memory().read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
