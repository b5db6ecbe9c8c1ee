"""Batches that go through a model's layers in step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from storyfi_lite.engine.in_step import in_step


def test_none_begins_a_layer_before_all_have_done_the_one_before() -> None:
    """Also where one has fewer layers left than the others, as where an answer needs no second batch."""
    done: list[tuple[int, str]] = []

    def work(name: str, layers: int, after_layer: Callable[[], None]) -> str:
        for layer in range(layers):
            done.append((layer, name))
            after_layer()
        return name

    assert in_step([partial(work, "a", 3), partial(work, "b", 1), partial(work, "c", 3)]) == ["a", "b", "c"]
    assert done == [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "c"), (2, "a"), (2, "c")]


def test_a_failure_is_told_once_the_others_have_ended() -> None:
    ended = []

    def fails(_: Callable[[], None]) -> None:
        raise ValueError("no memory")

    def ends(after_layer: Callable[[], None]) -> None:
        after_layer()
        ended.append(True)

    with pytest.raises(ValueError, match="no memory"):
        in_step([ends, fails, ends])
    assert ended == [True, True]
