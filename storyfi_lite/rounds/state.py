"""Keeps a validator's averages, evidence, wires, old answers' fingerprints and stories in one SQLite file.

A round is written in one transaction, after it is judged: a kill at any moment loses at most the round in hand, and never
half of one. One process owns the file. This module knows no scores; `validator` decides what the figures mean.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storyfi_lite import files
from storyfi_lite.errors import ConfigError
from storyfi_lite.rounds.query import NO_WIRE
from storyfi_lite.rounds.questions import STAGES, Story
from storyfi_lite.validator import Evidence, Fingerprint

MAX_ANSWERS = 50_000  # fingerprints, about 4 kB each
MAX_STORIES = 200
MAX_ROUNDS = 10_000
_VERSION = 1
_SCHEMA = """
CREATE TABLE miner (hotkey TEXT PRIMARY KEY, average REAL NOT NULL, wire TEXT NOT NULL, model TEXT NOT NULL,
                    statuses TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE answer (id INTEGER PRIMARY KEY, task TEXT NOT NULL, hotkey TEXT NOT NULL, fingerprint BLOB NOT NULL);
CREATE TABLE story (id INTEGER PRIMARY KEY, user_input TEXT NOT NULL, stages TEXT NOT NULL);
CREATE TABLE round (id INTEGER PRIMARY KEY, report TEXT NOT NULL);
CREATE TABLE weights (block INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Standing:
    """Holds what is known of one miner. `average`: of its final rewards, 0 for a new one."""

    average: float = 0.0
    evidence: Evidence = field(default_factory=Evidence)
    wire: str = NO_WIRE


@dataclass(frozen=True)
class Outcome:
    """Holds all that one round changes. `report` is its record as JSON, for people."""

    standings: Mapping[str, Standing]
    fingerprints: Sequence[Fingerprint]
    story: Story | None
    report: str


class State:
    """Reads and writes the file; in memory if `path` is None. Raises ConfigError if another process has it open, or it cannot be
    used."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=1)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"it was written by another release (format {version}, not {_VERSION})")
            if not version:
                self._db.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
            with self._transaction():  # takes the lock, for as long as this process runs
                self._db.execute(f"PRAGMA user_version={_VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"the validator's state {path} cannot be used: {error}\n"
                "Is another validator running with it? Else give another directory with --state-dir."
            ) from None

    def copy(self) -> State:
        """Copy the state into memory: what is written there is never kept."""
        other = State(None)
        self._db.backup(other._db)
        return other

    # --- reading ---------------------------------------------------------------------------------------------------

    def standings(self) -> dict[str, Standing]:
        rows = self._db.execute("SELECT hotkey, average, wire, model, statuses FROM miner")
        return {
            hotkey: Standing(average, Evidence(model, tuple(json.loads(statuses))), wire)
            for hotkey, average, wire, model, statuses in rows
        }

    def fingerprints(self) -> Iterable[Fingerprint]:
        """Yield the fingerprints of old answers, oldest first."""
        for task, hotkey, data in self._db.execute("SELECT task, hotkey, fingerprint FROM answer ORDER BY id"):
            yield Fingerprint.from_bytes(task, hotkey, data)

    def stories(self) -> list[Story]:
        rows = self._db.execute("SELECT id, user_input, stages FROM story ORDER BY id")
        return [Story(text, json.loads(stages), id) for id, text, stages in rows]

    @property
    def rounds(self) -> int:
        """Return how many rounds were ever judged."""
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM round").fetchone()[0])

    @property
    def weights_block(self) -> int | None:
        """Return the block at which weights were last set, None if they never were."""
        return self._db.execute("SELECT max(block) FROM weights").fetchone()[0]

    # --- writing ---------------------------------------------------------------------------------------------------

    def save(self, outcome: Outcome) -> None:
        """Write the whole round, or nothing of it. Raises ConfigError or DoesNotFit where it cannot be written."""
        with self._writing(), self._transaction():
            miners = [(hotkey, one.average, one.wire, one.evidence.model, json.dumps(one.evidence.statuses))
                      for hotkey, one in outcome.standings.items()]  # fmt: skip
            self._db.executemany("INSERT OR REPLACE INTO miner VALUES (?, ?, ?, ?, ?)", miners)
            answers = [(one.task, one.hotkey, one.to_bytes()) for one in outcome.fingerprints]
            self._db.executemany("INSERT INTO answer (task, hotkey, fingerprint) VALUES (?, ?, ?)", answers)
            story = outcome.story
            if story is not None:  # under its own id; one with all its stages stays, for more chapters
                ordered = {stage: story.stages[stage] for stage in STAGES if stage in story.stages}
                row = (story.id, story.user_input, json.dumps(ordered, ensure_ascii=False))
                self._db.execute("INSERT OR REPLACE INTO story VALUES (?, ?, ?)", row)
            self._db.execute("INSERT INTO round (report) VALUES (?)", (outcome.report,))
            for table, most in (("answer", MAX_ANSWERS), ("story", MAX_STORIES), ("round", MAX_ROUNDS)):
                self._db.execute(f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?", (most,))

    def weights_set(self, block: int) -> None:
        with self._writing(), self._transaction():
            self._db.execute("DELETE FROM weights")
            self._db.execute("INSERT INTO weights VALUES (?)", (block,))

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return files.writing(self._path or Path(":memory:"), "--state-dir DIRECTORY")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def close(self) -> None:
        self._db.close()
