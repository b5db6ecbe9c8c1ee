"""Walks what a model thinks before it writes: any tokens, so many at most, until it ends the thought itself.

Answers the questions that a Cursor (prose.py) answers, for engine/rule.py. A thought is in no answer; it is in the answer's
tokens, so that a replay finds the same one.
"""

from __future__ import annotations

from copy import copy

from storyfi_lite.errors import GrammarError


class Thought:
    """Feed it a token's bytes with `advance`, the end with `end`; each raises GrammarError where it is not allowed."""

    literal = ""
    last_row = True
    need_tokens = 1  # the end

    def __init__(self, max_tokens: int, mark: str) -> None:
        """Read no thought yet. `mark`: the text that closes a thought, which only the end may stand for."""
        self._left, self._mark = max_tokens, mark.encode()
        self._tail = b""
        self.done = False

    def copy(self) -> Thought:
        return copy(self)

    @property
    def must_end(self) -> bool:
        return self._left == 0

    def advance(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-len(self._mark) - len(data) :]
        if not data or self._left == 0 or self._mark in self._tail:
            raise GrammarError("no thought goes on with this")
        self._left -= 1

    def end(self) -> None:
        self.done = True
