"""Fixtures that several test files share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import Hub, serve
from tests.small_model import small_model

# The tests see the shipped models alone, whatever the user of this machine has added; it is never written.
os.environ["STORYFI_LITE_REGISTRY"] = str(
    Path(tempfile.gettempdir()) / f"storyfi-lite-tests-{os.getpid()}" / "models.yaml"
)
HUB_TOKEN = "hf_a_secret_that_must_not_leak"


@pytest.fixture(scope="session")
def small_model_path() -> Path:
    return small_model()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on loopback, and this process's real hub client pointed at it; a cache and a registry of the user's own."""
    from huggingface_hub import constants

    with serve(Hub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
        monkeypatch.setenv("PIP_INDEX_URL", f"{hub.url}/simple")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("STORYFI_LITE_REGISTRY", str(tmp_path / "config" / "models.yaml"))
        monkeypatch.setattr("storyfi_lite.models.hub.WAITS_S", (0.0, 0.0))
        defaults = (lambda seconds: None,)
        monkeypatch.setattr("storyfi_lite.models.fetch.Fetch.__init__.__defaults__", defaults, raising=False)
        yield hub
