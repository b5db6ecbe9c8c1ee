"""Derives from a task's schema the engine's grammar, GBNF for stock tools, JSON Schema, and the validator's check.

schema.py   the node types, from which all else is derived
export.py   -> Lark (llguidance), GBNF (llama.cpp), JSON Schema
cursor.py   walks over the canonical form byte by byte: for the closing rule and the canonical check
check.py    untrusted text -> Report
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from storyfi_lite.errors import GrammarError
from storyfi_lite.grammar.check import Check, Report, check_data, check_text
from storyfi_lite.grammar.cursor import Cursor
from storyfi_lite.grammar.export import TEXT_SLICES, to_gbnf, to_json_schema, to_lark
from storyfi_lite.grammar.schema import Object, as_written

__all__ = ["TEXT_SLICES", "Check", "Constraint", "Cursor", "Report", "validate_grammars"]


def validate_grammars(constraints: Iterable[Constraint]) -> None:
    """Compile each grammar with llguidance. Raises GrammarError on the first that does not compile. Call this before a port
    opens: a matcher made from a bad grammar raises nothing and calls itself both stopped and in error."""
    from llguidance import LLMatcher

    for constraint in constraints:
        problem = LLMatcher.validate_grammar(constraint.lark)
        if problem:
            raise GrammarError(f"a task's grammar does not compile: {problem}")


class Constraint:
    """Holds a schema and all that is derived from it, each made once. Two equal schemas give the same `sha256`."""

    def __init__(self, schema: Object, rules: Callable[[Any], Iterable[str]] = lambda data: ()) -> None:
        self.schema = schema
        self._rules = rules

    @cached_property
    def lark(self) -> str:
        return to_lark(self.schema)

    @cached_property
    def gbnf(self) -> str:
        return to_gbnf(self.schema)

    @cached_property
    def json_schema(self) -> dict[str, Any]:
        return to_json_schema(self.schema)

    @cached_property
    def sha256(self) -> str:
        """Hash the Lark text (UTF-8); this names the grammar in a proof's header."""
        return hashlib.sha256(self.lark.encode()).hexdigest()

    @property
    def min_tokens_bound(self) -> int:
        """Return the smallest token budget with which any answer can be closed."""
        return self.cursor().need_tokens

    @property
    def max_tokens_bound(self) -> int:
        """Return a number of tokens that no answer exceeds."""
        return self.cursor().max_tokens_bound

    def cursor(self) -> Cursor:
        return Cursor(self.schema)

    @cached_property
    def _written(self) -> Object:
        schema = as_written(self.schema)
        assert isinstance(schema, Object)
        return schema

    def check(self, text: str | bytes, strict: bool = False) -> Report:
        """Check a text; never raises on bad input. With `strict`, against what the grammar writes, else against all that is
        accepted."""
        return check_text(self._written if strict else self.schema, self._rules, text)

    def check_data(self, data: Any, strict: bool = False) -> Report:
        """Check an object that was parsed elsewhere, by its canonical spelling. `strict` as in `check`."""
        return check_data(self._written if strict else self.schema, self._rules, data)
