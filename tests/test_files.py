"""Places that cannot be written: one line with the path and what moves it, an exit code, and nothing half done."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from storyfi_lite import files
from storyfi_lite.errors import ConfigError, DoesNotFit
from storyfi_lite.miner.nonces import SqliteNonceStore


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EROFS, ConfigError), (errno.EACCES, ConfigError), (errno.ENOSPC, DoesNotFit), (errno.EDQUOT, DoesNotFit)],
)
def test_a_place_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    path = tmp_path / "kept.json"
    path.write_text("old")

    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(kind) as caught:
        files.write_text(path, "new", "--state-dir DIRECTORY")
    text = str(caught.value)
    assert str(path) in text and os.strerror(number) in text and "--state-dir" in text and "\n" not in text
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_to_and_a_link_stays_a_link(tmp_path: Path) -> None:
    files.write_text(Path("/dev/null"), "x", "")
    assert Path("/dev/null").is_char_device()
    reader, writer = os.pipe()
    files.write_text(Path(f"/dev/fd/{writer}"), "x", "")
    assert os.read(reader, 9) == b"x"
    os.close(reader)
    os.close(writer)
    with pytest.raises(DoesNotFit, match=r"/dev/full.*--output FILE"):
        files.write_text(Path("/dev/full"), "x", "--output FILE")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    files.write_text(tmp_path / "link", "x", "")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "x"


def test_a_full_disk_under_the_replay_store_refuses_and_recovers(tmp_path: Path) -> None:
    store = SqliteNonceStore(tmp_path / "nonces.sqlite", 120)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own "database or disk is full"
    with pytest.raises(DoesNotFit, match=r"nonces\.sqlite: database or disk is full; --state-dir"):
        for number in range(10_000):
            store.check_and_store(f"hotkey {number}", number)
    store._db.execute("PRAGMA max_page_count=100000")
    assert store.check_and_store("another", 1) and not store.check_and_store("another", 1)
    store.close()
