"""Derives from a task's schema the GBNF, Lark and JSON Schema that other tools take, and the check of an answer.

schema.py   the node types, from which all else is derived
export.py   -> Lark (llguidance), GBNF (llama.cpp), JSON Schema
check.py    untrusted text -> Report
script.py   the turns in which a model of ours writes an answer
prose.py    what one turn may write, walked character by character
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from storyfi_lite.grammar.check import Check, Report, check_data, check_text
from storyfi_lite.grammar.export import to_gbnf, to_json_schema, to_lark
from storyfi_lite.grammar.schema import Object, as_written, bound_tokens

__all__ = ["Check", "Constraint", "Report"]


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
    def max_tokens_bound(self) -> int:
        """Return a number of tokens that no answer exceeds."""
        return bound_tokens(self.schema)

    @cached_property
    def _written(self) -> Object:
        schema = as_written(self.schema)
        assert isinstance(schema, Object)
        return schema

    def check(self, text: str | bytes, strict: bool = False) -> Report:
        """Check a text; never raises on bad input. With `strict`, against what the grammar writes, else against all that is
        accepted."""
        return check_text(text, self._written if strict else self.schema, self._written, self._rules)

    def check_data(self, data: Any, strict: bool = False) -> Report:
        """Check an object that was parsed elsewhere, by its canonical spelling. `strict` as in `check`."""
        return check_data(data, self._written if strict else self.schema, self._written, self._rules)
