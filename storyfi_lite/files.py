"""Writes this program's files, whole or not at all, and says in one line why a place cannot be written.

`moved_by` is the flag or variable that puts a file elsewhere; every message names it. Model files are not written here but
fetched piece by piece: see models/fetch.py.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from storyfi_lite import stopping
from storyfi_lite.errors import ConfigError, DoesNotFit, LiteError

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_PLACE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)
_SQLITE_FULL = "disk is full"


def unwritable(path: str | Path, error: OSError | sqlite3.Error, moved_by: str) -> LiteError:
    """Make the error to raise: DoesNotFit for a full disk, else ConfigError."""
    if isinstance(error, OSError):
        full, reason = error.errno in FULL, error.strerror or str(error)
    else:
        full, reason = _SQLITE_FULL in str(error), str(error)
    message = f"cannot write {path}: {reason}; {moved_by} puts it elsewhere"
    return DoesNotFit(f"{message}, or free some space") if full else ConfigError(message)


@contextlib.contextmanager
def writing(path: Path, moved_by: str) -> Iterator[None]:
    """Translate what goes wrong inside, where something is written at `path` or below. Raises as `unwritable` says."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:  # a statement that SQLite refuses is a fault of ours
        raise unwritable(getattr(error, "filename", None) or path, error, moved_by) from None


def write_text(path: Path, text: str, moved_by: str) -> None:
    """Put a new file in the place of an old one, in one step; make its directory. Raises as `unwritable` says."""
    with writing(path, moved_by):
        if path.exists() and not path.is_file():  # a pipe or a terminal, /dev/stdout too, which leads to no path
            path.write_text(text, encoding="utf-8")
            return
        path = path.resolve()  # a link stays a link
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with stopping.held():
            try:
                with part.open("w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    part.unlink()
                raise


def read_cache(name: str) -> dict[str, Any]:
    """Return what `keep` has kept in the cache's file of that name; empty if it cannot be read."""
    try:
        kept = json.loads(_cache_file(name).read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def keep(name: str, key: str, value: Any) -> None:
    """Add to the cache's file of that name what can be found out again. A place that cannot be written costs time, not the answer; it
    is logged once."""
    try:
        write_text(_cache_file(name), json.dumps({**read_cache(name), key: value}), "XDG_CACHE_HOME=DIRECTORY")
    except LiteError as error:
        _tell_once(str(error))


def _cache_file(name: str) -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("storyfi-lite")) / name


@cache
def _tell_once(why: str) -> None:
    log.warning("%s; until then it is found out again each time", why)


def check_writable(path: Path, moved_by: str) -> None:
    """Find out whether a file could be made at `path`, before hours of work. Leaves nothing; raises as `unwritable` says."""
    if os.path.exists(path) and not path.is_file():
        return  # a pipe or a terminal
    try:
        tempfile.TemporaryFile(dir=nearest(path.resolve().parent)).close()
    except OSError as error:
        raise unwritable(path, error, moved_by) from None


def nearest(path: Path) -> Path:
    """Return the directory itself, or the nearest above it that is there and may be looked at."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if os.path.exists(place))
