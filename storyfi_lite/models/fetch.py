"""Fetches one URL into one file: by ranges, resumed, hashed by chunk. Knows nothing of models, hubs or packages.

Beside `<name>.part` lies `<name>.journal`: a line that says what is being fetched, then the sha256 of each whole chunk
that is safely on disk. After a kill only the chunk in progress is fetched again, after a cut connection not even that; a
chunk that went bad on disk, and what follows it, is found by its hash and fetched again. The hub's own client deletes its
partial files instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO

import httpx

from storyfi_lite.errors import BadInput, Unavailable
from storyfi_lite.proxies import proxy_fault

CHUNK_BYTES = 4 << 20
MAX_ATTEMPTS = 6  # without a byte between them
STALL_S = 30.0
MAX_WAIT_S = 300.0  # also where a server asks for more
RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Remote:
    """Says what is to be fetched. `identity` changes with the content: its sha256, or an etag. `url` may hold a password,
    `headers` a token: neither is shown. The token goes to the url's own host; httpx drops it on a redirect to another."""

    url: str = field(repr=False)
    size_bytes: int
    identity: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)


class Fetch:
    """Fetches one file, once. `sleep` is a seam for tests."""

    def __init__(
        self,
        remote: Remote,
        part: Path,
        progress: Progress,
        note: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._remote = remote
        self._part = part
        self._journal = part.with_suffix(".journal")
        self._progress = progress
        self._note = note
        self._sleep = sleep
        self._digest = hashlib.sha256()
        self._done = 0  # bytes in whole chunks: on disk and journalled
        self._tail = bytearray()  # what came after them

    def run(self) -> str:
        """Fetch what is missing; return the whole file's sha256, hex. Raises Unavailable, or BadInput for a server
        whose bytes are not what was announced."""
        self._resume()
        failures, farthest = 0, self._done
        with self._part.open("r+b") as file, _client() as client:
            while self._done < self._remote.size_bytes:
                try:
                    self._stream(client, file)
                except (httpx.HTTPError, _TryAgain) as error:
                    failures = 1 if self._received > farthest else failures + 1
                    farthest = max(farthest, self._received)
                    if failures >= MAX_ATTEMPTS:
                        raise Unavailable(
                            f"the download stopped at {self._received:,} of {self._remote.size_bytes:,} bytes "
                            f"({_reason(error)}); run the same command again to go on from there"
                        ) from None
                    wait_s = min(getattr(error, "wait_s", None) or 2.0**failures, MAX_WAIT_S)
                    self._note(f"{_reason(error)}; trying again in {wait_s:.0f} s")
                    self._sleep(wait_s)
        return self._digest.hexdigest()

    def discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    @property
    def _received(self) -> int:
        return self._done + len(self._tail)

    # --- resume ------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Keep the journalled chunks that still have their hash, and drop everything behind them."""
        try:
            head, *hashes = self._journal.read_text().splitlines()
        except (OSError, ValueError):
            head, hashes = "", []
        if head != self._head():
            hashes = []
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

    def _head(self) -> str:
        remote = self._remote
        return json.dumps({"identity": remote.identity, "size_bytes": remote.size_bytes, "chunk_bytes": CHUNK_BYTES})

    def _chunk_size(self, start: int) -> int:
        return min(CHUNK_BYTES, self._remote.size_bytes - start)

    # --- transfer ----------------------------------------------------------------------------------------------

    def _stream(self, client: httpx.Client, file: BinaryIO) -> None:
        headers = {**self._remote.headers, "Accept-Encoding": "identity"}
        if self._received:
            headers["Range"] = f"bytes={self._received}-"
        with client.stream("GET", self._remote.url, headers=headers) as response:
            self._check(response)
            for piece in response.iter_raw():
                self._tail += piece
                self._progress(min(self._received, self._remote.size_bytes), self._remote.size_bytes)
                while len(self._tail) >= (size := self._chunk_size(self._done)) > 0:
                    self._save(file, bytes(self._tail[:size]))
                    del self._tail[:size]
                if self._done == self._remote.size_bytes:
                    return
        raise _TryAgain("the connection closed early")

    def _save(self, file: BinaryIO, chunk: bytes) -> None:
        """Write a chunk; it is on disk before the journal says so."""
        file.seek(self._done)
        file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        with self._journal.open("a") as journal:
            journal.write(hashlib.sha256(chunk).hexdigest() + "\n")
        self._digest.update(chunk)
        self._done += len(chunk)

    def _check(self, response: httpx.Response) -> None:
        """Raise _TryAgain for a passing fault, BadInput or Unavailable for a lasting one."""
        status, host = response.status_code, response.url.host
        if status in RETRY_STATUS:
            raise _TryAgain(f"{host} answered HTTP {status}", retry_after_s(response.headers))
        if status not in (200, 206):
            raise Unavailable(f"{host} answered HTTP {status}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise Unavailable(f"{host} sent a web page, not the file: a proxy or a sign-in stands in between")
        if status == 200:
            total = response.headers.get("Content-Length", "")
            if self._received:  # no ranges here: all of it comes again
                self._digest, self._done = hashlib.sha256(), 0
                self._tail.clear()
                _write(self._journal, self._head() + "\n")
        else:
            span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if span.partition("-")[0] != str(self._received):
                raise Unavailable(f"{host} sent the range {span!r}, asked for from {self._received}")
        if total.isdigit() and int(total) != self._remote.size_bytes:
            raise BadInput(f"{host} has {int(total):,} bytes where {self._remote.size_bytes:,} were announced")


class _TryAgain(Exception):
    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how long a server asks to wait, seconds: Retry-After as a number or a date, or the rest of a RateLimit's window."""
    value = headers.get("Retry-After", "")
    with suppress(ValueError):
        return max(0.0, min(float(value), 86_400.0))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    window = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    return float(window[1]) if window else None


def _client() -> httpx.Client:
    try:
        return httpx.Client(follow_redirects=True, timeout=STALL_S)
    except (ValueError, ImportError) as error:
        raise proxy_fault(error) from None


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"nothing came for {STALL_S:.0f} s"
    return str(error) or type(error).__name__


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".journal.new")
    part.write_text(text)
    part.replace(path)
