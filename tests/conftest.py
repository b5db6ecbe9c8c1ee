"""Fixtures that several test files share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from storyfi_lite import files
from storyfi_lite.machine import limits, selftest
from storyfi_lite.placement import calibrate
from tests.hub_server import Hub, serve
from tests.small_model import small_model

# The tests see the shipped models alone, whatever the user of this machine has added; it is never written.
os.environ["STORYFI_LITE_REGISTRY"] = str(
    Path(tempfile.gettempdir()) / f"storyfi-lite-tests-{os.getpid()}" / "models.yaml"
)
# Their own cache, which stays between runs, with what set-up found of this build.
if "PYTEST_XDIST_WORKER" not in os.environ:
    found = files.read_cache(selftest.CACHE)
    os.environ["XDG_CACHE_HOME"] = str(Path(platformdirs.user_cache_dir("storyfi-lite")) / "tests")
    for build, parts in found.items():
        files.keep(selftest.CACHE, build, parts)
    # and nothing of what a model's answers in earlier runs taught, which would change what is promised
    (Path(os.environ["XDG_CACHE_HOME"]) / "storyfi-lite" / "lengths.json").unlink(missing_ok=True)
REPO = "Someone/Tiny-Tales-GGUF"
HUB_TOKEN = "hf_a_secret_that_must_not_leak"


@pytest.fixture(scope="session", autouse=True)
def known_speed() -> None:
    """A made-up speed of this CPU, for all processes: beside other tests it would be measured thrice, and never kept."""
    for n_threads in {1, limits.cores()}:
        calibrate.keep(n_threads, calibrate.FALLBACK)


@pytest.fixture(scope="session")
def small_model_path() -> Path:
    return small_model()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on loopback, and this process's real hub client pointed at it; a registry of the user's own."""
    from huggingface_hub import constants

    with serve(Hub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
        monkeypatch.setenv("PIP_INDEX_URL", f"{hub.url}/simple")
        monkeypatch.setenv("STORYFI_LITE_REGISTRY", str(tmp_path / "config" / "models.yaml"))
        monkeypatch.setattr("storyfi_lite.models.hub.WAITS_S", (0.0, 0.0))
        defaults = (lambda seconds: None,)
        monkeypatch.setattr("storyfi_lite.models.fetch.Fetch.__init__.__defaults__", defaults, raising=False)
        yield hub


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from tests.tiny_gguf import tiny_gguf  # numpy and gguf: not for every test process

    return tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", more={"general.license": "mit"}).read_bytes()


@pytest.fixture
def repo(hub: Hub, tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A repository as converters make them: two quantizations, one of them split, and what is no model."""
    monkeypatch.setenv("STORYFI_LITE_MODELS", str(tmp_path / "models"))
    hub.files = {
        "Tiny-Tales-Q4_K_M.gguf": tiny,
        "Tiny-Tales-Q8_0.gguf": tiny + b"\0" * 32,
        "mmproj-Tiny-F16.gguf": b"GGUF" * 9,
        "Tiny-Tales.imatrix": b"imatrix",
    }
    hub.repos = (REPO,)
    return hub
