"""Holds the turns of a conversation in which a model writes one answer, and puts the answer's JSON together from them.

Each turn asks in plain words for one piece, and names the rows of text that answer it (prose.py). The JSON follows from the
turns' texts alone, so whoever has the texts has the answer. It knows no task, no model and no tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import getitem
from typing import Any

from storyfi_lite.errors import GrammarError
from storyfi_lite.grammar.prose import (
    LIST_COMMA,
    Alphabets,
    Form,
    Items,
    Prose,
    Row,
    Rows,
    bound_tokens,
    need_tokens,
    values,
)
from storyfi_lite.grammar.schema import Array, Const, Node, Object, Open, Text, Tuple, dump

Path = tuple[str | int, ...]
BETWEEN_PARTS = "\n\n"  # of a text that several turns write


@dataclass(frozen=True)
class Piece:
    """Holds one turn. `name`: for people; `ask`: the words that ask for it; `rows`: what answers it; `paths`: the place of each
    row's value in the JSON. A text that is too long to be written well in one piece has the same place in several turns."""

    name: str
    ask: str
    rows: Rows
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, name: str, ask: str, *rows: tuple[Path, Row]) -> Piece:
        return cls(name, ask, tuple(row for _, row in rows), tuple(path for path, _ in rows))


@dataclass(frozen=True)
class Script:
    """Holds all turns of one answer. `system` opens every conversation of a task and language; `material` is what the request
    brings, and stands before the first turn's words. `version` names the script, and ends with a hash of its words
    (tasks/base.py). `alphabets`: the scripts of its letters (prose.py). `names`: of the people whom the request brings."""

    version: str
    system: str
    material: str
    pieces: tuple[Piece, ...]
    schema: Object
    alphabets: Alphabets = frozenset()
    names: tuple[str, ...] = ()
    think_tokens: int = 0

    def thinking(self, tokens: int | None) -> Script:
        """Return the script for a model that may think so many tokens before its first turn. A thought is no part of the answer."""
        return replace(self, think_tokens=tokens or 0)

    @property
    def asks(self) -> tuple[str, ...]:
        """Return the user's side of the turns. The first one shows the material."""
        first, *rest = (piece.ask for piece in self.pieces)
        return (f"{self.material}\n\n{first}" if self.material else first, *rest)

    @property
    def min_tokens_bound(self) -> int:
        """Return the smallest token budget at which the answer surely closes, the turns' end tokens included."""
        return sum(need_tokens(piece.rows) for piece in self.pieces) + bool(self.think_tokens)

    @property
    def max_tokens_bound(self) -> int:
        """Return a number of tokens that no answer exceeds."""
        return sum(bound_tokens(piece.rows) for piece in self.pieces) + self.think_tokens + bool(self.think_tokens)

    def answer(self, texts: Sequence[str]) -> str:
        """Write the canonical JSON of what the turns said. Raises GrammarError if they did not say all of it."""
        if len(texts) != len(self.pieces):
            raise GrammarError(f"{len(texts)} turns of {len(self.pieces)}")
        said: dict[Path, Any] = {}
        for piece, text in zip(self.pieces, texts, strict=True):
            for path, value in zip(piece.paths, values(piece.rows, text), strict=True):
                if path in said and isinstance(value, str):
                    value = BETWEEN_PARTS.join(filter(None, (said[path], value)))
                said[path] = value
        return dump(_put(self.schema, (), said))

    def texts(self, answer: Any) -> list[str]:
        """Return what the turns would say for this answer: the inverse of `answer`, for an answer that has all these places. Where a
        text of several turns has too few parts, some turns say nothing."""
        turns = Counter(path for piece in self.pieces for path in piece.paths)
        said = {path: _parts(reduce(getitem, path, answer), count) for path, count in turns.items()}
        return [
            "\n".join(_line(row, next(said[path])) for row, path in zip(piece.rows, piece.paths, strict=True))
            for piece in self.pieces
        ]


def _parts(value: Any, count: int) -> Iterator[Any]:
    """Yield the value, or a text in so many parts."""
    if count == 1:
        return iter((value,))
    parts = value.split(BETWEEN_PARTS, count - 1)
    return iter((*parts, *[""] * (count - len(parts))))


def _line(row: Row, value: Any) -> str:
    said = f"{LIST_COMMA} ".join(value) if isinstance(row.form, Items) else value
    return f"{row.label} {said}" if row.label else said


def one_turn(ask: str, forms: dict[str, Form], system: str = "", material: str = "") -> Script:
    """Make a script of a single turn whose answer is an object of these keys."""
    labels = {key: f"{key}:" if len(forms) > 1 else "" for key in forms}
    rows = [((key,), Row(labels[key], form)) for key, form in forms.items()]
    schema = Object(tuple((key, _node(form)) for key, form in forms.items()))
    return Script("one turn", system, material, (Piece.of("", ask, *rows),), schema)


def _node(form: Form) -> Text | Array:
    if isinstance(form, Items):
        return Array(Text(form.item.min_chars, form.item.max_chars), form.min_items, form.max_items)
    if isinstance(form, Prose):
        return Text(form.min_chars, form.max_chars, newlines=form.paragraphs, sentences=True)
    return Text(form.min_chars, form.max_chars)


def _put(node: Node, path: Path, said: dict[Path, Any]) -> Any:
    """Return the node's value: what has one right value from the schema, the rest from the turns."""
    if isinstance(node, Const):
        return node.plain
    if isinstance(node, Text | Array):
        if path not in said:
            raise GrammarError(f"no turn says {'.'.join(map(str, path))}")
        return said[path]
    if isinstance(node, Open):
        return _put(node.written, path, said)
    if isinstance(node, Tuple):
        return [_put(item, (*path, index), said) for index, item in enumerate(node.items)]
    return {key: _put(item, (*path, key), said) for key, item in node.fields}


def text_at(schema: Node, path: Path) -> Text | Array:
    """Return the node that a row fills. A path that ends at an object or a Const is a mistake in the script."""
    node = schema
    for step in path:
        node = node.written if isinstance(node, Open) else node
        node = node.items[step] if isinstance(node, Tuple) else dict(node.fields)[step]  # type: ignore[union-attr,index]
    assert isinstance(node, Text | Array)
    return node
