"""Protects against replays across restarts: keeps in SQLite which (hotkey, nonce) pairs were accepted.

Nonces are wall-clock nanoseconds that the caller signed. Whatever is forgotten stays refused: each hotkey has
a floor, the newest nonce that was dropped, and nothing at or below it is taken again. So neither a clock that
is set back nor a flood by one hotkey opens a gap, and one hotkey cannot push out another's."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from storyfi_lite import files
from storyfi_lite.errors import ConfigError

MAX_PER_HOTKEY = 2_000
MOVED_BY = "--state-dir DIRECTORY"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (hotkey TEXT, nonce_ns INTEGER, PRIMARY KEY (hotkey, nonce_ns)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS floor (hotkey TEXT PRIMARY KEY, nonce_ns INTEGER) WITHOUT ROWID;
"""
_RAISE_FLOOR = """
INSERT INTO floor VALUES (?, ?)
ON CONFLICT (hotkey) DO UPDATE SET nonce_ns = max(nonce_ns, excluded.nonce_ns)
"""


class SqliteNonceStore:
    """Implements `bittensor.http_auth.NonceStore`. `retention`: seconds for which each nonce is kept one by one.

    Thread-safe. Raises ConfigError when `path` cannot be opened or is not such a store.
    """

    def __init__(
        self,
        path: Path,
        retention_s: float,
        max_per_hotkey: int = MAX_PER_HOTKEY,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.retention = retention_s
        self._path = path
        self._max_per_hotkey = max_per_hotkey
        self._now_ns = now_ns
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            # WAL with NORMAL loses nothing when the process is killed. A power cut may lose the last commits;
            # the freshness window is over before a machine is up again.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"the replay store {path} cannot be used: {error}\n"
                "Give another directory with --state-dir, or remove the file while the miner is stopped."
            ) from error

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool:
        """Remember the pair and return True if it was never seen and is above the hotkey's floor; else return False. Raises
        ConfigError or DoesNotFit when that cannot be written, and then nobody is answered."""
        with self._lock, files.writing(self._path, MOVED_BY), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            floor = self._db.execute("SELECT nonce_ns FROM floor WHERE hotkey = ?", (hotkey_ss58,)).fetchone()
            if floor is not None and nonce_ns <= floor[0]:
                return False
            cursor = self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (hotkey_ss58, nonce_ns))
            if cursor.rowcount == 0:
                return False
            self._forget(hotkey_ss58)
            return True

    def _forget(self, hotkey: str) -> None:
        """Drop what is older than `retention`, and the oldest beyond `max_per_hotkey`, and raise the floor with it."""
        bound = self._now_ns() - int(self.retention * 1e9)
        surplus = self._db.execute(
            "SELECT nonce_ns FROM seen WHERE hotkey = ? ORDER BY nonce_ns DESC LIMIT 1 OFFSET ?",
            (hotkey, self._max_per_hotkey),
        ).fetchone()
        if surplus is not None:
            bound = max(bound, surplus[0])
        # The floor is a nonce that was really dropped, not the clock: a clock far ahead must not shut a
        # caller out.
        dropped = "SELECT max(nonce_ns) FROM seen WHERE hotkey = ? AND nonce_ns <= ?"
        (floor,) = self._db.execute(dropped, (hotkey, bound)).fetchone()
        if floor is not None:
            self._db.execute("DELETE FROM seen WHERE hotkey = ? AND nonce_ns <= ?", (hotkey, floor))
            self._db.execute(_RAISE_FLOOR, (hotkey, floor))

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._db.close()
