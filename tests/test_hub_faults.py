"""The hub as it is: mirrors that leave headers out, proxies, limits, pages that want a sign-in. The real client, on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from storyfi_lite.errors import BadInput, ConfigError, LiteError, Unavailable
from storyfi_lite.models import fetch
from storyfi_lite.models import hub as hub_client
from storyfi_lite.models.registry import HubSource
from tests.conftest import HUB_TOKEN, REPO
from tests.hub_server import Hub
from tests.test_names import pinned_by
from tests.test_store import MODEL, part, pull


@pytest.fixture
def stored(hub: Hub) -> Hub:
    hub.files = {"model.gguf": MODEL}
    return hub


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("mirror", ["nolen", "weak", "nocommit", "moved", "noetag"])
def test_a_mirror_that_leaves_something_out_still_serves(
    stored: Hub, tmp_path: Path, mirror: str, pinned: bool
) -> None:
    """Size and hash are pinned; without a pinned hash an ETag must tell one."""
    stored.mirror = mirror
    if mirror == "noetag" and not pinned:
        with pytest.raises(Unavailable, match="did not tell size and hash"):
            pull(tmp_path, part(pinned=False))
        return
    assert pull(tmp_path, part(exact=pinned, pinned=pinned)).read_bytes() == MODEL


@pytest.mark.parametrize("mirror", ["weak", "noetag"])
def test_a_mirror_s_wrong_bytes_are_refused(stored: Hub, tmp_path: Path, mirror: str) -> None:
    stored.mirror, stored.wrong_bytes = mirror, True
    with pytest.raises(BadInput, match="sent wrong bytes"):
        pull(tmp_path)


def test_a_web_page_is_no_model(stored: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub is asked, and where the bytes come from."""
    stored.mirror = "html"
    with pytest.raises(Unavailable, match="a web page or a sign-in stands in between"):
        pull(tmp_path)
    stored.mirror = ""
    remote = hub_client.remote(HubSource(repo="someone/Some-GGUF", revision="main"), part())
    stored.mirror = "html"
    with pytest.raises(Unavailable, match="sent a web page, not the file"):
        fetch.Fetch(remote, tmp_path / "x.part", lambda done, total: None, print).run()


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("ALL_PROXY", "socks://me:secret@127.0.0.1:1", r"the proxy setting ALL_PROXY=socks://…@127\.0\.0\.1:1 cannot be used"),
        ("HTTP_PROXY", "http://me:secret@127.0.0.1:9", r"cannot be reached .*through the proxy HTTP_PROXY=http://…@127\.0\.0\.1:9"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("use", ["listing", "download", "package"])
def test_a_proxy_that_is_at_fault_is_named_without_its_password(
    repo: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, says: str, use: str
) -> None:  # fmt: skip
    from huggingface_hub.utils import close_session

    from tests.test_store import PACKAGE

    close_session()  # it holds the proxies that it read first
    monkeypatch.setenv(setting, value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(LiteError, match=says) as refused:
        if use == "listing":
            pinned_by(REPO)
        elif use == "download":
            pull(tmp_path)
        else:
            pull(tmp_path, hub=False, package=PACKAGE)
    close_session()
    assert "secret" not in str(refused.value) and HUB_TOKEN not in str(refused.value)


def test_an_endpoint_without_a_scheme_is_named(repo: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "hf-mirror.example")
    with pytest.raises(
        ConfigError, match=r"HF_ENDPOINT=hf-mirror.example is no address\n  export HF_ENDPOINT=https://hf-mirror"
    ):
        pinned_by(REPO)


def test_a_limit_is_waited_for_and_a_long_one_is_told(repo: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    repo.status, repo.wait = {f"/api/models/{REPO}": [429, 429]}, "7"
    pinned_by(REPO)
    assert waits == [7.0, 7.0]
    repo.repos, repo.wait = (), "240"
    repo.status = {"/api/models/Other/Tiny": [429]}
    with pytest.raises(
        Unavailable, match=r"HTTP 429\): wait 240 s and run the same command again; with a token, `hf auth login`"
    ):
        pinned_by("Other/Tiny")
    assert waits == [7.0, 7.0]


def test_a_download_s_limit_is_waited_for(stored: Hub, tmp_path: Path) -> None:
    stored.status, stored.wait = {"/storage/model.gguf": [429]}, "240"
    notes: list[str] = []
    assert pull(tmp_path, notes=notes).read_bytes() == MODEL
    assert notes == ["127.0.0.1 answered HTTP 429; trying again in 240 s"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12), ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0), ({}, None),
        ({"RateLimit": '"resolvers";r=0;t=3'}, 3), ({"Retry-After": "soon"}, None),
    ],
)  # fmt: skip
def test_a_server_s_wait_is_read_in_each_of_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert fetch.retry_after_s(headers) == seconds


def test_a_listing_that_is_no_listing_is_told(repo: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.commit = "short"
    with pytest.raises(Unavailable, match="did not tell the commit"):
        pinned_by(REPO)
