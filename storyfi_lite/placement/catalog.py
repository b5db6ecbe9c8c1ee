"""Looks up what is known of model files: their headers, and how much of each is still to be fetched."""

from __future__ import annotations

import logging
from functools import cache
from typing import Protocol

import httpx

from storyfi_lite.errors import BadInput, LiteError, Unavailable
from storyfi_lite.models import sources
from storyfi_lite.models.gguf import Header, join, read_header, read_local
from storyfi_lite.models.registry import GGUFFile, ModelSpec
from storyfi_lite.models.store import Store

log = logging.getLogger(__name__)

TIMEOUT_S = 20.0


class Catalog(Protocol):
    def header(self, spec: ModelSpec, file: GGUFFile) -> Header | None:
        """Return the file's header; None if it is not known: then the registry's figures are used."""

    def missing_bytes(self, spec: ModelSpec, file: GGUFFile) -> int: ...


class EmptyCatalog:
    """Knows no file: for planning a machine that is only described."""

    def header(self, spec: ModelSpec, file: GGUFFile) -> Header | None:
        return None

    def missing_bytes(self, spec: ModelSpec, file: GGUFFile) -> int:
        return file.size_bytes


class StoreCatalog:
    """Reads the headers of this machine's files, each once. `remote` holds headers that were read from the hub."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._local = cache(lambda path: read_local(path))
        self.remote: dict[tuple[str, str], Header] = {}

    def header(self, spec: ModelSpec, file: GGUFFile) -> Header | None:
        """Return the file's header if it is known. Raises BadInput for a file that is here and damaged."""
        if self._store.is_complete(spec, file):
            return self._local(self._store.path(spec, file))
        return self.remote.get((spec.key, file.quant))

    def missing_bytes(self, spec: ModelSpec, file: GGUFFile) -> int:
        return self._store.missing_bytes(spec, file)

    def ask_hub(self, spec: ModelSpec, file: GGUFFile) -> bool:
        """Read the header of a missing file from the hub, by ranges. Returns False, and logs it, if the hub cannot be asked."""
        if file.hub is None or self.header(spec, file) is not None:
            return False
        try:
            self.remote[spec.key, file.quant] = remote_header(file)
        except LiteError as error:
            log.info("the header of %s %s stays unread: %s", spec.key, file.quant, error)
            return False
        return True


def remote_header(file: GGUFFile) -> Header:
    """Read the header from the first megabytes of each part on the hub. Raises Unavailable or BadInput."""
    if file.hub is None:
        raise Unavailable(f"{file.parts[0].path} is in no hub repository")
    parts = []
    for part in file.parts:
        remote = sources.hub_remote(file.hub, part)
        with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, headers=remote.headers) as client:

            def read_range(start: int, size: int, client: httpx.Client = client, url: str = remote.url) -> bytes:
                return _range(client, url, start, size)

            parts.append(read_header(read_range, remote.size_bytes, part.path))
    return join(parts)


def _range(client: httpx.Client, url: str, start: int, size: int) -> bytes:
    wanted = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
    try:
        with client.stream("GET", url, headers=wanted) as response:
            if response.status_code != 206:  # a server without ranges would send the whole file
                raise Unavailable(f"{response.url.host} answered HTTP {response.status_code} to a ranged read")
            data = b""
            for piece in response.iter_raw():
                data += piece
                if len(data) > size:
                    raise BadInput(f"{response.url.host} sent more bytes than were asked for")
            return data
    except httpx.HTTPError as error:
        raise Unavailable(f"the hub's storage cannot be reached ({type(error).__name__})") from None
