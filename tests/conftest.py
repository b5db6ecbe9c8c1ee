"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest


@pytest.fixture(scope="session")
def small_model_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1, the real model of the fast tests."""
    path = Path(platformdirs.user_data_dir("storyfi-lite")) / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.fail("the small model is missing: run `storyfi-lite pull smollm2-135m`")
    return path
