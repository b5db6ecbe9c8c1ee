"""Walks over the canonical form of an answer, byte by byte: says where it stands, and how many tokens are needed to finish.

The engine's closing rule asks `need_tokens`; the check asks whether bytes are exactly what the grammar writes. It is
plain Python over the schema, independent of llguidance and of llama.cpp's grammars, so each can be tested on the other.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from functools import cache

from storyfi_lite.errors import GrammarError
from storyfi_lite.grammar.schema import FORBIDDEN, Array, Node, Text, pieces

_FORBIDDEN = re.compile(f"[{FORBIDDEN}]")
_QUOTE, _BACKSLASH, _SPACE = 0x22, 0x5C, 0x20
_PLAIN = re.compile(rb"[ !#-\[\]-~\x80-\xff]+")  # bytes that stand for themselves in a text


@dataclass(frozen=True)
class _Step:
    """Describes one stretch of the answer: `literal` or `text`, then the step `next`. A step with neither is a fork: a comma leads
    to `more`, anything else to `next`. `need_tokens` counts from this step's start to the answer's end."""

    literal: bytes
    text: Text | None
    more: int | None
    next: int
    need_tokens: int
    bound_tokens: int


@cache
def _program(schema: Node) -> tuple[_Step, ...]:
    """List the steps in reverse order of writing, so that a step's successors exist before it; the last is the start."""
    steps = [_Step(b"", None, None, 0, 0, 0)]  # the end

    def add(literal: bytes = b"", text: Text | None = None, more: int | None = None, then: int = 0) -> int:
        need, bound = steps[then].need_tokens, steps[then].bound_tokens
        if text is not None:
            need, bound = need + text.min_chars + 2, bound + 4 * text.max_chars + 2
        elif more is not None:
            bound = max(bound, steps[more].bound_tokens)
        else:
            need, bound = need + len(literal), bound + len(literal)
        steps.append(_Step(literal, text, more, then, need, bound))
        return len(steps) - 1

    def write(node: Node, then: int) -> int:
        for piece in reversed(pieces(node)):
            if isinstance(piece, str):
                then = add(piece.encode(), then=then)
            elif isinstance(piece, Text):
                then = add(text=piece, then=then)
            else:
                then = array(piece, then)
        return then

    def array(node: Array, then: int) -> int:
        then = add(b"]", then=then)
        end = then
        for _ in range(node.max_items - node.min_items):
            then = add(more=add(b",", then=write(node.item, then)), then=end)
        for _ in range(node.min_items - 1):
            then = add(b",", then=write(node.item, then))
        return add(b"[", then=write(node.item, then))

    write(schema, 0)
    return tuple(steps)


class Cursor:
    """Follows an answer. `advance` takes bytes, and raises GrammarError on the first that the grammar would not write."""

    __slots__ = ("_chars", "_escape", "_inside", "_offset", "_partial", "_program", "_step")

    def __init__(self, schema: Node) -> None:
        self._program = _program(schema)
        self._step = len(self._program) - 1
        self._offset = 0  # in a literal
        self._inside = False  # past a text's opening quote
        self._chars = 0
        self._escape = False
        self._partial = b""  # of one UTF-8 character

    def copy(self) -> Cursor:
        other = object.__new__(Cursor)
        for name in Cursor.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    @property
    def done(self) -> bool:
        return self._step == 0

    @property
    def need_tokens(self) -> int:
        """Return how many tokens surely suffice to finish: one for each missing byte of structure, one for each character still
        required (a letter), and one for each missing byte of a character that has begun."""
        step = self._program[self._step]
        if not self._inside:
            return step.need_tokens - self._offset
        assert step.text is not None
        open_character = _missing_bytes(self._partial) if self._partial else int(self._escape)
        chars = self._chars + (open_character > 0)
        return open_character + max(0, step.text.min_chars - chars) + 1 + self._program[step.next].need_tokens

    @property
    def max_tokens_bound(self) -> int:
        """Return the tokens of the longest answer from the start of this step: one a byte, four bytes a character."""
        return self._program[self._step].bound_tokens

    def advance(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            step = self._program[self._step]
            if step.text is not None and self._inside:
                at = self._advance_text(step.text, data, at)
            elif step.text is not None:
                self._expect(data[at] == _QUOTE)
                self._inside, self._chars, at = True, 0, at + 1
            elif step.more is not None:
                self._step = step.more if data[at] == 0x2C else step.next
            else:
                at = self._advance_literal(step, data, at)

    def _advance_literal(self, step: _Step, data: bytes, at: int) -> int:
        self._expect(step.literal != b"")  # the end: nothing may follow
        want = step.literal[self._offset : self._offset + len(data) - at]
        self._expect(data.startswith(want, at))
        self._offset += len(want)
        if self._offset == len(step.literal):
            self._go(step.next)
        return at + len(want)

    def _advance_text(self, text: Text, data: bytes, at: int) -> int:
        byte = data[at]
        if self._escape:
            self._expect(byte in b'"\\' or (byte == 0x6E and text.newlines and self._chars > 0))
            self._escape = False
            return self._count(text, 1, at + 1)
        if self._partial:
            return self._advance_utf8(text, data, at)
        if byte == _QUOTE:
            self._expect(self._chars >= text.min_chars)
            self._inside = False
            self._go(self._program[self._step].next)
            return at + 1
        if byte == _BACKSLASH:
            self._expect(self._chars < text.max_chars)
            self._escape = True
            return at + 1
        plain = _PLAIN.match(data, at)
        self._expect(plain is not None and (self._chars > 0 or byte != _SPACE))
        assert plain is not None
        return self._advance_run(text, data, at, plain[0])

    def _advance_run(self, text: Text, data: bytes, at: int, run: bytes) -> int:
        """Read whole characters at once; a character that the end of the data cuts off is kept as begun."""
        try:
            chars, length = codecs.utf_8_decode(run, "strict", False)
        except UnicodeDecodeError:
            chars, length = "", 0
        if not length:
            return self._advance_utf8(text, data, at)
        self._expect(not _FORBIDDEN.search(chars))
        return self._count(text, len(chars), at + length)

    def _advance_utf8(self, text: Text, data: bytes, at: int) -> int:
        self._expect(self._chars < text.max_chars)
        self._partial += data[at : at + 1]
        missing = _missing_bytes(self._partial)
        self._expect(missing >= 0)
        if missing == 0:
            self._expect(not _FORBIDDEN.match(self._partial.decode()))
            self._partial = b""
            self._count(text, 1, at)
        return at + 1

    def _count(self, text: Text, chars: int, at: int) -> int:
        self._chars += chars
        self._expect(self._chars <= text.max_chars)
        return at

    def _go(self, step: int) -> None:
        self._step, self._offset = step, 0

    @staticmethod
    def _expect(condition: bool) -> None:
        if not condition:
            raise GrammarError("the grammar does not write this byte here")


def _missing_bytes(partial: bytes) -> int:
    """Return how many bytes complete this beginning of a UTF-8 character; -1 if none can (RFC 3629, table 3-7 of Unicode)."""
    lead = partial[0]
    length = 2 if 0xC2 <= lead <= 0xDF else 3 if 0xE0 <= lead <= 0xEF else 4 if 0xF0 <= lead <= 0xF4 else 0
    if not length or any(not 0x80 <= byte <= 0xBF for byte in partial[1:]):
        return -1
    if len(partial) > 1:
        low = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80)
        high = {0xED: 0x9F, 0xF4: 0x8F}.get(lead, 0xBF)
        if not low <= partial[1] <= high:
            return -1
    return length - len(partial)
