"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_model import small_model


@pytest.fixture(scope="session")
def small_model_path() -> Path:
    return small_model()
