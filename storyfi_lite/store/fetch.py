"""One URL -> one file: ranges, resume, hash by chunk. Knows nothing of models, hubs or packages.

Beside `<name>.part` lies `<name>.journal`: a line that says what is being fetched, then the sha256 of each whole chunk
that is safely on disk. After a kill only the chunk in progress is fetched again; a chunk that went bad on disk, and what
follows it, is found by its hash and fetched again. The hub's own client deletes its partial files instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from storyfi_lite.errors import BadInput, Unavailable

CHUNK_BYTES = 4 << 20
MAX_ATTEMPTS = 6  # without a byte between them
STALL_S = 30.0
MAX_WAIT_S = 60.0
_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Remote:
    """What is to be fetched. `identity` changes with the content: its sha256, or an etag. `headers` may hold a token."""

    url: str
    size_bytes: int
    identity: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)


class Fetch:
    """`sleep` is a seam for tests."""

    def __init__(self, remote: Remote, part: Path, progress: Progress, sleep: Callable[[float], None] = time.sleep):
        self._remote = remote
        self._part = part
        self._journal = part.with_suffix(".journal")
        self._progress = progress
        self._sleep = sleep
        self._digest = hashlib.sha256()
        self._done = 0

    def run(self) -> str:
        """Fetches what is missing; returns the whole file's sha256, hex. Raises Unavailable, or BadInput for a server
        whose bytes are not what was announced."""
        self._resume()
        failures = 0
        with self._part.open("r+b") as file, httpx.Client(follow_redirects=True, timeout=STALL_S) as client:
            while self._done < self._remote.size_bytes:
                before = self._done
                try:
                    self._stream(client, file.fileno())
                    failures = 0 if self._done > before else failures + 1
                except (httpx.HTTPError, _TryAgain) as error:
                    failures = 1 if self._done > before else failures + 1
                    if failures >= MAX_ATTEMPTS:
                        raise Unavailable(
                            f"the download stopped at {self._done:,} of {self._remote.size_bytes:,} bytes "
                            f"({_reason(error)}); run the same command again to go on from there"
                        ) from None
                    self._sleep(getattr(error, "wait_s", None) or min(2.0**failures, MAX_WAIT_S))
        return self._digest.hexdigest()

    def discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    # --- resume ------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Keeps the journalled chunks that still have their hash, and drops everything behind them."""
        hashes = self._journalled()
        self._part.parent.mkdir(parents=True, exist_ok=True)
        good: list[str] = []
        with self._part.open("a+b") as file:
            file.seek(0)
            for want in hashes:
                chunk = file.read(self._chunk_size(self._done))
                if hashlib.sha256(chunk).hexdigest() != want:
                    break
                self._digest.update(chunk)
                self._done += len(chunk)
                good.append(want)
                self._progress(self._done, self._remote.size_bytes)
            file.truncate(self._done)
        _write(self._journal, "\n".join([self._head(), *good]) + "\n")

    def _journalled(self) -> list[str]:
        try:
            head, *hashes = self._journal.read_text().splitlines()
        except (OSError, ValueError):
            return []
        return hashes if head == self._head() else []

    def _head(self) -> str:
        remote = self._remote
        return json.dumps({"identity": remote.identity, "size_bytes": remote.size_bytes, "chunk_bytes": CHUNK_BYTES})

    def _chunk_size(self, start: int) -> int:
        return min(CHUNK_BYTES, self._remote.size_bytes - start)

    # --- transfer ----------------------------------------------------------------------------------------------

    def _stream(self, client: httpx.Client, file: int) -> None:
        headers = {**self._remote.headers, "Accept-Encoding": "identity"}
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
        with client.stream("GET", self._remote.url, headers=headers) as response:
            self._check(response)
            for chunk in self._chunks(response.iter_raw()):
                os.pwrite(file, chunk, self._done)
                os.fsync(file)
                with self._journal.open("a") as journal:
                    journal.write(hashlib.sha256(chunk).hexdigest() + "\n")
                self._digest.update(chunk)
                self._done += len(chunk)

    def _check(self, response: httpx.Response) -> None:
        """Raises _TryAgain for a passing fault, BadInput or Unavailable for a lasting one."""
        status = response.status_code
        if status in _RETRY_STATUS:
            raise _TryAgain(f"HTTP {status}", _retry_after_s(response))
        if status not in (200, 206):
            raise Unavailable(f"{response.url.host} answered HTTP {status}")
        if status == 200 and self._done:  # no ranges here: all of it comes again
            self._digest, self._done = hashlib.sha256(), 0
            _write(self._journal, self._head() + "\n")
        total = response.headers.get("Content-Range", "").rpartition("/")[2] if status == 206 else None
        total = total or (str(response.headers.get("Content-Length", "")) if status == 200 else None)
        if total and total.isdigit() and int(total) != self._remote.size_bytes:
            raise BadInput(
                f"{response.url.host} has {int(total):,} bytes where {self._remote.size_bytes:,} were announced"
            )

    def _chunks(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Whole chunks of the stream, the last one shorter."""
        buffer = bytearray()
        for piece in pieces:
            buffer += piece
            self._progress(self._done + len(buffer), self._remote.size_bytes)
            while len(buffer) >= (size := self._chunk_size(self._done)) > 0:
                yield bytes(buffer[:size])
                del buffer[:size]
            if not self._chunk_size(self._done):
                break
        if self._done < self._remote.size_bytes:
            raise _TryAgain("the connection closed early")


class _TryAgain(Exception):
    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _retry_after_s(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), MAX_WAIT_S) if value.isdigit() else None


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"nothing came for {STALL_S:.0f} s"
    return str(error) or type(error).__name__


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".journal.new")
    part.write_text(text)
    part.replace(path)
