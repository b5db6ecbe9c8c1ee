"""Defines the form of an answer by six node types, from which every grammar and check is derived.

An answer is compact JSON with fixed key order, so it has exactly one spelling for each value. Each node says two things:
what the grammar *writes* (narrow, where the network pays most) and, in `accept` and its like, what the check *accepts* from
any miner (all that was asked for, up to a generous cap). `as_written` makes the check as narrow as the grammar.
Nothing here knows a model, a tokenizer or a task.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TypeAlias

# Characters that no text may hold: what JSON forbids raw, then control, line/paragraph separator, bidi override and
# byte-order characters, which hide or reorder what a reader sees. Written once, as a regular expression's class body
# with \uXXXX escapes, which Python, JSON Schema and (translated) llguidance and GBNF all understand.
FORBIDDEN = r"\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069\ufeff"

# What is accepted where nothing else is said: caps against abuse, far above what an honest answer holds.
MAX_ACCEPTED_CHARS = 5_000
MAX_ACCEPTED_ITEMS = 20


@dataclass(frozen=True)
class Text:
    """Describes a string of `min_chars` to `max_chars` Unicode code points, the first of which is not a space.
    With `newlines` it may hold the escape for a line feed. With `sentences` it is prose: a script writes it to the end of a
    sentence (prose.py), which the exported grammars cannot say. A machine short of time may write as few as `brief_min_chars`.
    The check accepts any text that is not blank and has from the first to the second number of characters in `accept`."""

    min_chars: int
    max_chars: int
    newlines: bool = False
    accept: tuple[int, int] = (1, MAX_ACCEPTED_CHARS)
    sentences: bool = False
    brief_min_chars: int | None = None

    @property
    def least_chars(self) -> int:
        return self.brief_min_chars or self.min_chars


@dataclass(frozen=True)
class Const:
    """Fixes a value: an id, a number, a list of ids. With `accept`, the check accepts any number from
    the first to the second, because the protocol does; the grammar still writes `value`."""

    value: str | int | float | tuple[int, ...]
    accept: tuple[float, float] | None = None

    @property
    def plain(self) -> str | int | float | list[int]:
        """Return the value as JSON's types have it."""
        return list(self.value) if isinstance(self.value, tuple) else self.value


@dataclass(frozen=True)
class Array:
    """Repeats one node `min_items` to `max_items` times, at least once. `accept`: the bounds of the check."""

    item: Node
    min_items: int
    max_items: int
    accept: tuple[int, int] = (1, MAX_ACCEPTED_ITEMS)


@dataclass(frozen=True)
class Tuple:
    """Lists nodes in order. With `accept`, the check accepts from the first to the second number of items; items beyond the last
    node must fit the last node. With `any_order`, the check accepts objects with these `id`s in any order."""

    items: tuple[Node, ...]
    accept: tuple[int, int] | None = None
    any_order: bool = False


@dataclass(frozen=True)
class Object:
    """Holds keys in a fixed order. The check accepts any order. Keys of `optional` may be missing; those of them that are not
    among `fields` may have any value, because other miners of the network write them."""

    fields: tuple[tuple[str, Node], ...]
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Open:
    """Makes the grammar write `written`, while the check accepts any object of at least `min_entries` non-empty values, with keys
    among `keys` if given."""

    written: Object
    min_entries: int = 1
    keys: tuple[str, ...] | None = None


Node: TypeAlias = "Text | Const | Array | Tuple | Object | Open"


def as_written(node: Node) -> Node:
    """Return the node with a check that accepts only what the grammar writes, brief or not, in any key order and white space."""
    if isinstance(node, Text):
        return replace(node, accept=(node.least_chars, node.max_chars))
    if isinstance(node, Const):
        return Const(node.value)
    if isinstance(node, Array):
        return Array(as_written(node.item), node.min_items, node.max_items, (node.min_items, node.max_items))
    if isinstance(node, Tuple):
        return Tuple(tuple(map(as_written, node.items)))
    if isinstance(node, Open):
        return as_written(node.written)
    return Object(tuple((key, as_written(item)) for key, item in node.fields))


BRIEF_CHARS = 40  # room above a text's minimum, enough to end a sentence in most scripts


def as_brief(node: Node) -> Node:
    """Return the node with each text near its shortest and each list at its shortest."""
    if isinstance(node, Text):
        least = node.least_chars
        room = max(BRIEF_CHARS, least // 8)
        return replace(node, min_chars=least, max_chars=min(node.max_chars, least + room))
    if isinstance(node, Array):
        return replace(node, item=as_brief(node.item), max_items=node.min_items)
    if isinstance(node, Tuple):
        return replace(node, items=tuple(map(as_brief, node.items)))
    if isinstance(node, Open):
        written = as_brief(node.written)
        assert isinstance(written, Object)
        return replace(node, written=written)
    if isinstance(node, Object):
        return replace(node, fields=tuple((key, as_brief(item)) for key, item in node.fields))
    return node


def dump(value: object) -> str:
    """Write a JSON value in its canonical spelling: compact, raw UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def pieces(node: Node) -> list[str | Text | Array]:
    """Flatten the node into a row of literals, texts and arrays; adjacent literals are joined."""
    row: list[str | Text | Array] = []
    for part in _pieces(node):
        if isinstance(part, str) and row and isinstance(row[-1], str):
            row[-1] += part
        else:
            row.append(part)
    return row


def _pieces(node: Node) -> list[str | Text | Array]:
    if isinstance(node, Text | Array):
        return [node]
    if isinstance(node, Const):
        return [dump(node.plain)]
    if isinstance(node, Open):
        return _pieces(node.written)
    if isinstance(node, Tuple):
        opening, closing = "[", "]"
        members = [(",", item) for item in node.items]
    else:
        opening, closing = "{", "}"
        members = [(f",{dump(key)}:", item) for key, item in node.fields]
    row: list[str | Text | Array] = [opening]
    for index, (lead, item) in enumerate(members):
        row += [lead if index else lead[1:], *_pieces(item)]
    return [*row, closing]


def bound_tokens(node: Node) -> int:
    """Return a number of tokens that no answer exceeds: one a byte, four bytes a character."""
    total = 0
    for piece in pieces(node):
        if isinstance(piece, str):
            total += len(piece.encode())
        elif isinstance(piece, Text):
            total += 4 * piece.max_chars + len('""')
        else:
            total += (
                bound_tokens(piece.item) + 1
            ) * piece.max_items + 1  # a bracket or a comma before each, and a bracket
    return total
