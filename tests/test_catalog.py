"""A remote file's header by ranged reads: the real hub client against a loopback hub with a storage of its own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from storyfi_lite.errors import BadInput, Unavailable
from storyfi_lite.models.gguf import read_local
from storyfi_lite.models.hub import read_remote
from storyfi_lite.models.registry import GGUFFile, HubSource, ModelSpec, Part, load_registry
from storyfi_lite.models.store import Store
from storyfi_lite.placement.catalog import StoreCatalog
from tests.conftest import HUB_TOKEN as TOKEN
from tests.hub_server import Hub
from tests.test_gguf_header import gguf


def remote(**contents: bytes) -> GGUFFile:
    """A file whose parts have these names and sizes on the hub."""
    parts = tuple(Part(path=f"{name}.gguf", size_bytes=len(data), exact=True) for name, data in contents.items())
    return GGUFFile(quant="Q4_1", parts=parts, hub=HubSource(repo="someone/Some-GGUF", revision="main"))


def put(hub: Hub, **contents: bytes) -> GGUFFile:
    hub.files = {f"{name}.gguf": data for name, data in contents.items()}
    return remote(**contents)


def asked(hub: Hub) -> int:
    return sum(end - start for _, start, end in hub.sent)


def test_the_header_of_a_remote_file_is_the_file_s_own(hub: Hub, small_model_path: Path) -> None:
    """At the cost of its first megabytes; the token goes to the hub, not to its storage."""
    file = put(hub, model=small_model_path.read_bytes())
    header = read_remote(file)
    assert header == read_local(small_model_path)
    assert 0 < asked(hub) <= 8 << 20 < small_model_path.stat().st_size
    gets = [headers for method, path, headers in hub.log if method == "GET" and path.startswith("/storage/")]
    assert gets and all(headers["range"].startswith("bytes=") for headers in gets)
    assert not any(TOKEN in str(headers) for headers in gets)


def test_each_part_of_a_split_file_is_asked(hub: Hub, tmp_path: Path) -> None:
    parts = {
        "m-00001-of-00002": gguf([("x", (64,), 0, 0)], data=256),
        "m-00002-of-00002": gguf([("y", (64,), 0, 0)], data=256),
    }
    assert [tensor.name for tensor in read_remote(put(hub, **parts)).tensors] == ["x", "y"]
    for name, data in parts.items():
        (tmp_path / f"{name}.gguf").write_bytes(data)
    assert read_remote(put(hub, **parts)) == read_local(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("trouble", "error", "says"),
    [
        ({"ranges": False}, Unavailable, "answered HTTP 200 to a ranged read"),
        ({"gated": True}, Unavailable, "gated|licence"),
        ({"status": {"model.gguf": [500] * 9}}, Unavailable, "model.gguf"),
    ],
)
def test_a_hub_that_does_not_answer_is_unavailable(
    hub: Hub, trouble: dict[str, object], error: type[Exception], says: str
) -> None:
    file = put(hub, model=gguf([("x", (64,), 0, 0)], data=256))
    for name, value in trouble.items():
        setattr(hub, name, value)
    with pytest.raises(error, match=says):
        read_remote(file)


def test_a_hub_that_is_not_there_is_unavailable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(hub, model=gguf([("x", (64,), 0, 0)], data=256))
    hub.storage_url = "http://127.0.0.1:9"  # the hub answers, its storage does not
    with pytest.raises(Unavailable):
        read_remote(file)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + b"zip" * 100, gguf([("x", (64,), 0, 1 << 62)], data=256)])
def test_a_remote_file_that_is_no_model_is_bad_input_before_the_download(hub: Hub, content: bytes) -> None:
    with pytest.raises(BadInput):
        read_remote(put(hub, model=content))


def test_placement_goes_on_with_the_registry_s_figures_when_the_hub_is_silent(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = load_registry().find("smollm2-135m")
    assert isinstance(spec, ModelSpec)
    catalog = StoreCatalog(Store(tmp_path))
    good = put(hub, model=gguf([("x", (64,), 0, 0)], data=256))
    hub.gated = True
    with caplog.at_level(logging.INFO):
        assert not catalog.ask_hub(spec, good)
    assert catalog.header(spec, good) is None and "stays unread" in caplog.text
    hub.gated = False
    assert catalog.ask_hub(spec, good)
    assert catalog.header(spec, good) == read_remote(good)
    before = len(hub.log)
    assert not catalog.ask_hub(spec, good) and len(hub.log) == before  # known now
