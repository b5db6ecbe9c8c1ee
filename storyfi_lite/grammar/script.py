"""A script: the turns of a conversation in which a model writes one answer, and how the answer's JSON is put together.

Each turn asks in plain words for one piece; under it lie the rows of text that may answer it (prose.py). The JSON is a pure
function of what the turns say, so whoever has the texts has the answer. Knows no task, no model and no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from storyfi_lite.errors import GrammarError
from storyfi_lite.grammar.prose import Form, Items, Prose, Row, Rows, bound_tokens, need_tokens, values
from storyfi_lite.grammar.schema import Array, Const, Node, Object, Open, Text, Tuple, dump

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Piece:
    """One turn: its name for people, what is asked for, the rows that answer it, and the place of each row's value in the
    JSON."""

    name: str
    ask: str
    rows: Rows
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, name: str, ask: str, *rows: tuple[Path, Row]) -> Piece:
        return cls(name, ask, tuple(row for _, row in rows), tuple(path for path, _ in rows))


@dataclass(frozen=True)
class Script:
    """`system` opens every conversation of a task and language; `material` is what the request brings, and stands before
    the first turn's words. `version` names the script, and ends with a hash of its words (tasks/base.py)."""

    version: str
    system: str
    material: str
    pieces: tuple[Piece, ...]
    schema: Object

    @property
    def asks(self) -> tuple[str, ...]:
        """The user's turns. The first one shows the material."""
        first, *rest = (piece.ask for piece in self.pieces)
        return (f"{self.material}\n\n{first}" if self.material else first, *rest)

    @property
    def min_tokens_bound(self) -> int:
        """The smallest budget at which the answer surely closes, the turns' end tokens included."""
        return sum(need_tokens(piece.rows) for piece in self.pieces)

    @property
    def max_tokens_bound(self) -> int:
        """No answer is longer than this."""
        return sum(bound_tokens(piece.rows) for piece in self.pieces)

    def answer(self, texts: Sequence[str]) -> str:
        """The canonical JSON of what the turns said. Raises GrammarError if they did not say all of it."""
        if len(texts) != len(self.pieces):
            raise GrammarError(f"{len(texts)} turns of {len(self.pieces)}")
        said: dict[Path, Any] = {}
        for piece, text in zip(self.pieces, texts, strict=True):
            said.update(zip(piece.paths, values(piece.rows, text), strict=True))
        return dump(_put(self.schema, (), said))

    def texts(self, answer: Any) -> list[str]:
        """What the turns would say for this answer: the inverse of `answer`, for an answer that has all these places."""
        return ["\n".join(map(_line, piece.rows, (_at(answer, path) for path in piece.paths))) for piece in self.pieces]


def _line(row: Row, value: Any) -> str:
    said = f"{row.form.separator} ".join(value) if isinstance(row.form, Items) else value
    return f"{row.label} {said}" if row.label else said


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def one_turn(ask: str, forms: dict[str, Form], system: str = "", material: str = "") -> Script:
    """A script of a single turn whose answer is an object of these keys."""
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
    """The node's value: what has one right value from the schema, the rest from the turns."""
    if isinstance(node, Const):
        return list(node.value) if isinstance(node.value, tuple) else node.value
    if isinstance(node, Text | Array):
        if path not in said:
            raise GrammarError(f"no turn says {'.'.join(map(str, path))}")
        return said[path]
    return _members(node, path, said)


def _members(node: Object | Open | Tuple, path: Path, said: dict[Path, Any]) -> Any:
    if isinstance(node, Open):
        return _put(node.written, path, said)
    if isinstance(node, Tuple):
        return [_put(item, (*path, index), said) for index, item in enumerate(node.items)]
    return {key: _put(item, (*path, key), said) for key, item in node.fields}


def text_at(schema: Node, path: Path) -> Text | Array:
    """The node that a row fills; where the path ends at an object or a Const, that is a mistake in the script."""
    node = schema
    for step in path:
        node = node.written if isinstance(node, Open) else node
        node = node.items[step] if isinstance(node, Tuple) else dict(node.fields)[step]  # type: ignore[union-attr,index]
    assert isinstance(node, Text | Array)
    return node


def places(schema: Node, path: Path = ()) -> Iterator[Path]:
    """Where texts and lists of texts stand: what the turns must say between them."""
    if isinstance(schema, Text | Array):
        yield path
    elif isinstance(schema, Open):
        yield from places(schema.written, path)
    elif isinstance(schema, Tuple):
        for index, item in enumerate(schema.items):
            yield from places(item, (*path, index))
    elif isinstance(schema, Object):
        for key, item in schema.fields:
            yield from places(item, (*path, key))
