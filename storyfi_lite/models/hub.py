"""Asks the hub, through huggingface-hub's own client: what a repository holds, where a file's bytes are, what its header says.

HF_ENDPOINT, HF_TOKEN, `hf auth login` and HF_HUB_OFFLINE are honoured by that client; a fault names the command or setting that
mends it. Downloads no file: fetch.py does.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from storyfi_lite.errors import BadInput, ConfigError, LiteError, Unavailable
from storyfi_lite.models.fetch import RETRY_STATUS, Remote, retry_after_s
from storyfi_lite.models.gguf import Header, join, read_header
from storyfi_lite.models.listing import HubFile, Listing, read_listing
from storyfi_lite.models.registry import GGUFFile, HubSource, Part
from storyfi_lite.proxies import proxy_fault, proxy_for

WAITS_S = (1.0, 3.0)  # before a question is asked again; a machine without network is told so in seconds
MAX_TOLD_WAIT_S = 30.0  # a longer one that a server asks for is told to the user
RANGE_TIMEOUT_S = 20.0
_UPLOADED_AGAIN = "it was uploaded again; pin another revision"
SHA256 = re.compile(r"[0-9a-f]{64}")
_LASTING = (ValueError, TypeError, LookupError, ImportError)  # a proxy setting, a wrong name, an answer that is no JSON
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Repository:
    """Holds what a repository held at one commit. `licence`: as its card says, or "unknown"."""

    repo: str
    commit: str
    licence: str
    listing: Listing


def look_up(repo: str, revision: str | None) -> Repository:
    """Ask what a repository holds at a revision, by default its newest. Raises Unavailable or ConfigError."""
    from huggingface_hub import HfApi

    where = f"{repo}@{revision}" if revision else repo
    info = _ask(lambda: HfApi().model_info(repo, revision=revision, files_metadata=True), repo, where)
    commit = info.sha or ""
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise Unavailable(f"{_host()} did not tell the commit of {where}, so it cannot be pinned")
    found = [
        HubFile(one.rfilename, one.lfs.size if one.lfs else one.size or 0, one.lfs.sha256 if one.lfs else None)
        for one in info.siblings or ()
    ]
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    try:
        listing = read_listing(found, HubSource(repo=repo, revision=commit))
    except (ValidationError, TypeError):
        raise Unavailable(f"{_host()} lists {where} in another way than the hub does") from None
    return Repository(repo, commit, licence if isinstance(licence, str) else "unknown", listing)


def remote(source: HubSource, part: Part) -> Remote:
    """Ask for a file's size, hash and address. Raises Unavailable, ConfigError, or BadInput if it is not the pinned file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    where = f"{source.repo}/{part.path}"
    url = hf_hub_url(source.repo, part.path, revision=source.revision)
    meta = _ask(lambda: get_hf_file_metadata(url), source.repo, f"{where} at revision {source.revision}")
    if meta.etag is None and meta.commit_hash is None:
        raise Unavailable(
            f"{_host()} does not answer as the hub does: a web page or a sign-in stands in between{_through(url)}"
        )
    etag = meta.etag or part.sha256
    size_bytes = meta.size or (part.size_bytes if part.exact else _size_by_range(url, build_hf_headers()))
    if etag is None or size_bytes is None:
        raise Unavailable(f"the hub did not tell size and hash of {where}")
    if part.exact and size_bytes != part.size_bytes:
        raise BadInput(
            f"{where} has {size_bytes:,} bytes on the hub, {part.size_bytes:,} in models.yaml: {_UPLOADED_AGAIN}"
        )
    sha256 = etag if SHA256.fullmatch(etag) else None  # the etag of a large file is its sha256
    if part.sha256 and sha256 and sha256 != part.sha256:
        raise BadInput(f"{where} has the sha256 {sha256} on the hub, {part.sha256} in models.yaml: {_UPLOADED_AGAIN}")
    # The hub's own address, not that of its storage, which is signed for an hour; at the commit that was asked about.
    url = hf_hub_url(source.repo, part.path, revision=meta.commit_hash or source.revision)
    return Remote(url, size_bytes, sha256 or etag, build_hf_headers())


def read_remote(file: GGUFFile) -> Header:
    """Read the header from the first megabytes of each part on the hub. Raises Unavailable, ConfigError or BadInput."""
    if file.hub is None:
        raise Unavailable(f"{file.parts[0].path} is in no hub repository")
    parts = []
    for part in file.parts:
        there = remote(file.hub, part)
        with httpx.Client(follow_redirects=True, timeout=RANGE_TIMEOUT_S, headers=there.headers) as client:
            parts.append(read_header(partial(_range, client, there.url), there.size_bytes, part.path))
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
        raise Unavailable(f"the hub's storage cannot be reached ({type(error).__name__}){_through(url)}") from None


def _size_by_range(url: str, headers: dict[str, str]) -> int | None:
    """Ask for the first byte: some mirrors tell the size only there."""
    try:
        with httpx.stream("GET", url, headers={**headers, "Range": "bytes=0-0"}, follow_redirects=True) as response:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            return int(total) if total.isdigit() else None
    except httpx.HTTPError:
        return None


# --- questions and faults ---------------------------------------------------------------------------------------


def _ask(question: Callable[[], _Answer], repo: str, where: str) -> _Answer:
    """Ask, and ask again after a passing fault. Raises Unavailable, BadInput or ConfigError in place of the client's errors."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise Unavailable(
            f"{where} is not here and HF_HUB_OFFLINE is set; run `storyfi-lite pull` where there is a network"
        )
    if urlsplit(constants.ENDPOINT).scheme not in ("http", "https"):
        raise ConfigError(
            f"HF_ENDPOINT={constants.ENDPOINT} is no address\n  export HF_ENDPOINT=https://{constants.ENDPOINT}"
        )
    try:
        return ask_again(question)
    except Exception as error:  # the client's transport errors have no common base across its versions
        raise _fault(repo, where, error) from None


def ask_again(question: Callable[[], _Answer]) -> _Answer:
    """Ask, and ask again after a passing fault: no answer, or a status that says "later". Raises the question's own last error."""
    for wait_s in WAITS_S:
        try:
            return question()
        except Exception as error:
            response = getattr(error, "response", None)
            told_s = retry_after_s(response.headers) if response is not None else None
            passes = not isinstance(error, _LASTING) if response is None else response.status_code in RETRY_STATUS
            if not passes or (told_s or 0) > MAX_TOLD_WAIT_S:
                raise
            time.sleep(max(wait_s, told_s or 0.0))
    return question()


def _fault(repo: str, where: str, error: Exception) -> LiteError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    response = getattr(error, "response", None)
    status = None if response is None else response.status_code
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{repo}"
        return Unavailable(f"{repo} asks you to accept its licence: do so at {page}, then run `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        return Unavailable(f"the hub has no repository {repo}, or it is private: run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return Unavailable(f"the hub has no revision {where}")
    if isinstance(error, EntryNotFoundError):
        return Unavailable(f"the hub has no {where}")
    if status in (401, 403):
        return Unavailable(f"the hub refuses your token for {repo}: run `hf auth login`, or unset HF_TOKEN")
    if response is not None and status == 429:
        wait_s = retry_after_s(response.headers)
        until = f"wait {wait_s:.0f} s and run the same command again" if wait_s else "run the same command again later"
        more = "with a token, `hf auth login`, it may be more often"
        return Unavailable(f"{_host()} limits how often it may be asked (HTTP 429): {until}; {more}")
    if status is not None:
        return Unavailable(f"the hub answered HTTP {status} for {where}; try again later")
    if isinstance(error, HFValidationError):
        return BadInput(f"{where} is no name of a repository: {error}")
    through = _through(constants.ENDPOINT)
    if isinstance(error, json.JSONDecodeError | TypeError | LookupError):
        return Unavailable(
            f"{_host()} does not answer as the hub does: a web page or a sign-in stands in between{through}"
        )
    if isinstance(error, ValueError | ImportError):
        return proxy_fault(error)
    return Unavailable(f"{_host()} cannot be reached ({type(error).__name__}){through or '; is there a network?'}")


def _host() -> str:
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc
    return "the hub" if host == "huggingface.co" else f"the hub ({host}, HF_ENDPOINT)"


def _through(url: str) -> str:
    proxy = proxy_for(url)
    return f" through the proxy {proxy}" if proxy else ""
