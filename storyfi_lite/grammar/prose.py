"""What one turn of a script may write: rows of plain text, walked character by character.

A row is a label that costs no choice ("Title:") and a form: whole sentences, a few words, or a list of those. The walk
says what may come next, where a text may end, and how many tokens surely finish it, so that an answer can be closed
inside any budget. A pure function of the text so far: the replay asks the same questions. Knows no JSON and no model.

The rules of a text, beside its length in characters (Unicode code points):

  whole sentences  end only where a sentence ends: after . ! ? … 。 ！ ？, and the quotes and brackets that close after it;
                   quotes and brackets are paired; a sentence that ends too late for one more (`SENTENCE_CHARS`) is the last
  a few words      end on a letter, a digit or ! ?; near the maximum no new word is begun (`WORD_CHARS`)
  both             begin with a letter, a digit or an opening quote; no two spaces in a row; at most four digits in a row;
                   no sign of a markup language
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass
from functools import cache

from storyfi_lite.errors import GrammarError
from storyfi_lite.grammar.schema import FORBIDDEN

# Distances in Latin letters; a character of Chinese, Japanese or Korean counts as three.
SENTENCE_CHARS = 80  # room for one more sentence
SHORT_CHARS = 45  # a sentence of so few that it can still be asked for
WORD_CHARS = 12  # room for the rest of a word
WIDE = 3
PRESSURE_NATS = 7.0  # what ending gains in the last character of the room

TERMINATORS = ".!?…。！？"
_PAIRS = {'"': '"', "“": "”", "「": "」", "『": "』", "（": "）", "(": ")", "《": "》", "«": "»"}
_OPENERS = tuple(" \n(“「『（《«")  # after these nothing is closed
CLOSERS = "".join(dict.fromkeys(_PAIRS.values()))
_NO_PROSE = re.compile(rf"[\\{{}}\[\]<>|*#_~^=`@{FORBIDDEN}]")
_NO_LABEL = re.compile(rf"[\d,，、\\{{}}\[\]<>|*#_~^=`@\"“”「」『』（）()《》«».。…;；:：/{FORBIDDEN}]")
_SEPARATORS = ",，、"
# After these more must come: no sentence and no label ends on them, unless no other character has room.
_DANGLING = re.compile(
    r"(?:\b(?:a|an|the|of|to|and|or|but|nor|with|for|from|by|at|as|into|onto|than|that|which|who|whose|if|because|while|when"
    r"|where|my|your|his|her|its|our|their|is|are|was|were|be|been|had|has|have|would|could|should|will|can|may|must|not|very"
    r"|this|these|those|every|each|some|more|most|so|such|in|on)|[,;:，；：、—–-]|[和与及把被在从向对是])$",
    re.IGNORECASE,
)
_NO_END = re.compile(r"(?:^|[\s\"“(])(?:Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|[A-Z]|\d{1,2})$")
_DIGITS = re.compile(r"\d{4}$")
_PLAIN = re.compile(r" ?[^\W\d_]+")
_TAIL_CHARS = 12
_JOINING = frozenset({"and", "or", "和", "与", "以及"})


@dataclass(frozen=True)
class Prose:
    """Whole sentences. With `paragraphs`, an empty line may stand between two of them."""

    min_chars: int
    max_chars: int
    paragraphs: bool = False


@dataclass(frozen=True)
class Words:
    """A name, a title, a few words: one line without an end of a sentence."""

    min_chars: int
    max_chars: int


@dataclass(frozen=True)
class Items:
    """`min_items` to `max_items` different ones on one line; after each but the last stands `separator`."""

    item: Words
    min_items: int
    max_items: int
    separator: str = ","


Form = Prose | Words | Items


@dataclass(frozen=True)
class Row:
    """`label` is written as it stands; then comes the form's text, with one space before it or none."""

    label: str
    form: Form

    @property
    def need_tokens(self) -> int:
        """Tokens that surely suffice, the row's end included: one for each byte of the label and each character."""
        return len(self.label.encode()) + _least(self.form) + 1

    @property
    def bound_tokens(self) -> int:
        """No row takes more: four bytes a character, and as many spaces as texts."""
        form = self.form
        if isinstance(form, Items):
            most = form.max_items * (4 * form.item.max_chars + 1 + len(form.separator.encode()))
        else:
            most = 4 * form.max_chars + 1
        return len(self.label.encode()) + most + 1


def _least(form: Form) -> int:
    if isinstance(form, Items):
        return form.min_items * form.item.min_chars + (form.min_items - 1) * len(form.separator.encode())
    return form.min_chars


Rows = tuple[Row, ...]


def need_tokens(rows: Rows) -> int:
    return sum(row.need_tokens for row in rows)


def bound_tokens(rows: Rows) -> int:
    return sum(row.bound_tokens for row in rows)


def values(rows: Rows, text: str) -> list[str | list[str]]:
    """What a finished turn's text says, row by row. Raises GrammarError if it is not these rows."""
    lines = [text] if len(rows) == 1 else text.split("\n")
    if len(lines) != len(rows) or any(not line.startswith(row.label) for row, line in zip(rows, lines, strict=False)):
        raise GrammarError("the text is not the rows of its turn")
    found: list[str | list[str]] = []
    for row, line in zip(rows, lines, strict=True):
        said = line[len(row.label) :].removeprefix(" ")
        if isinstance(row.form, Items):
            found.append([item.removeprefix(" ") for item in said.split(row.form.separator)])
        else:
            found.append(said)
    return found


def ends_a_sentence(text: str) -> bool:
    """Whether a text's last sentence is whole: a terminator, then nothing but what closes quotes and brackets."""
    bare = text.rstrip(CLOSERS + "'’")
    return bare.endswith(tuple(TERMINATORS)) and not (bare.endswith(".") and _NO_END.search(bare[-_TAIL_CHARS:-1]))


@cache
def is_wide(char: str) -> bool:
    """Of a script that is written without spaces, in characters that say as much as several letters."""
    return (
        "\u2e80" <= char <= "\ud7ff"
        or "\uf900" <= char <= "\ufaff"
        or "\uff00" <= char <= "\uffef"
        or char >= "\U00020000"
    )


class Cursor:
    """Feed it a token's bytes with `advance`, the end with `end`; each raises GrammarError where the rules forbid it."""

    __slots__ = (
        "_chars", "_count", "_ended", "_form", "_items", "_literal", "_open", "_partial", "_row", "_rows", "_seen",
        "_tail", "_text", "_wide", "done",
    )  # fmt: skip

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._row = 0
        self.done = False
        self._begin_row()

    def copy(self) -> Cursor:
        other = object.__new__(Cursor)
        for name in Cursor.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def _begin_row(self) -> None:
        row = self._rows[self._row]
        self._literal = row.label
        self._items: Items | None = row.form if isinstance(row.form, Items) else None
        self._form: Prose | Words = row.form.item if isinstance(row.form, Items) else row.form
        self._count = 0  # of the items that are finished
        self._seen: frozenset[str] = frozenset()
        self._begin_text()

    def _begin_text(self) -> None:
        self._chars = 0
        self._partial = b""  # of one UTF-8 character
        self._tail = ""  # the last characters, the space before the text included
        self._text = ""  # of an item, to tell it from the others
        self._ended = False  # a terminator, then nothing but closing quotes and brackets
        self._open = ""  # what must be closed, innermost last
        self._wide = False

    # --- questions ---------------------------------------------------------------------------------------------

    @property
    def literal(self) -> str:
        """What must come now, and costs no choice; empty inside a text."""
        return self._literal

    @property
    def last_row(self) -> bool:
        return self._row == len(self._rows) - 1

    @property
    def is_prose(self) -> bool:
        return isinstance(self._form, Prose)

    @property
    def has_paragraphs(self) -> bool:
        return isinstance(self._form, Prose) and self._form.paragraphs

    @property
    def separator(self) -> str:
        """What goes on to the next item of a list; empty elsewhere."""
        return self._items.separator if self._items else ""

    @property
    def may_end(self) -> bool:
        """Whether the row may end here."""
        enough = self._items is None or self._count + 1 >= self._items.min_items
        return enough and not self._literal and self._text_may_end

    @property
    def must_end(self) -> bool:
        """Nothing else may come, or it would not be worth beginning."""
        if not self.may_end:
            return False
        if self.is_prose:
            return self.room < SENTENCE_CHARS
        more = self._items is not None and self._count + 1 < self._items.max_items
        return self._chars == self._form.max_chars and not more

    @property
    def _text_may_end(self) -> bool:
        if self._partial or self._chars < self._form.min_chars:
            return False
        if self.is_prose:
            return self._ended and not self._open and self._tail[-1:] != "\n"
        return self._label_is_whole

    @property
    def _dangles(self) -> bool:
        """Whether the text stands at a word after which more must come."""
        return bool(_DANGLING.search(self._tail))

    @property
    def _label_is_whole(self) -> bool:
        last = self._tail[-1:] or " "
        whole = last.isalnum() or last in "!?！？" or unicodedata.category(last).startswith("M")
        return whole and not self._dangles and self._text.casefold() not in self._seen

    @property
    def room(self) -> int:
        """Characters that the text may still have, in Latin letters."""
        return (self._form.max_chars - self._chars) * (WIDE if self._wide else 1)

    def pressure(self, slack_tokens: int) -> float:
        """Nats that an end gains here: none at first, PRESSURE_NATS where no character or token is left."""
        form = self._form
        if self._dangles:
            return 0.0
        if self.is_prose:
            window = min(SENTENCE_CHARS, (form.max_chars - form.min_chars) * (WIDE if self._wide else 1))
        else:
            window = (form.max_chars * 2 // 3) * (WIDE if self._wide else 1)
        room = min(self.room, slack_tokens) if self._chars >= form.min_chars else self.room
        return PRESSURE_NATS * (1 - room / window) if room < window else 0.0

    @property
    def need_tokens(self) -> int:
        """Tokens that surely suffice to finish all rows: a token a byte of structure, a letter for each missing character."""
        if self.done:
            return 0
        need = len(self._literal.encode()) + self._text_need + 1
        if self._items is not None:
            missing = max(0, self._items.min_items - self._count - 1)
            need += missing * (self._items.item.min_chars + len(self._items.separator.encode()))
        return need + sum(row.need_tokens for row in self._rows[self._row + 1 :])

    @property
    def _text_need(self) -> int:
        if self._literal or not self._partial:
            more = 3 if self.is_prose and self._dangles else 0  # then it takes a …, byte by byte
            return max(self._form.min_chars - self._chars, self._closing) + more + _more_bytes(self._open)
        least = self._form.min_chars - self._chars - 1
        ways = (max(least, chars) + _more_bytes(opened) for chars, opened in self._after(self._partial))
        return _missing_bytes(self._partial) + min(ways)

    def _after(self, partial: bytes) -> list[tuple[int, str]]:
        """What a character that begins so may be, and then how many end the text, and what is open: any character; what
        closes the innermost quote; a …, for who has single bytes only."""
        if not self.is_prose:
            return [(0 if _may_be_alnum(partial) else 1, "")]
        opened = self._open
        ways = [(len(opened) + 1, opened)]
        if opened and opened[-1].encode().startswith(partial) and self._tail[-1:] not in _OPENERS:
            ways.append((len(opened) - 1 + (not self._ended), opened[:-1]))
        if "…".encode().startswith(partial) and self._tail[-1:] not in (" ", "\n"):
            ways.append((len(opened), opened))
        return ways

    @property
    def _closing(self) -> int:
        """Characters that end the text here, its length apart."""
        if self.is_prose:
            return len(self._open) + (2 if self._tail[-1:] in (" ", "\n") else not self._ended)
        return 0 if self._label_is_whole else 1

    # --- steps -------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """The end of the last row."""
        self._expect(self.may_end and self.last_row)
        self.done = True

    def advance(self, data: bytes) -> None:
        self._expect(bool(data) and not self.done)
        if self._items is not None and not self._chars and data.strip().decode(errors="ignore") in _JOINING:
            self._expect(False)
        text, length = self._decoded(self._partial + data)
        pending = (self._partial + data)[length:]
        self._partial = b""
        if self._chars and _PLAIN.fullmatch(text):
            self._run(text)
        else:
            for char in text:
                self._take(char)
        if pending:
            self._begin_char(pending)

    def _begin_char(self, pending: bytes) -> None:
        self._partial = pending
        if self._literal:
            self._expect(self._literal.encode().startswith(pending))
            return
        self._expect(self._chars > 0 or _may_be_alnum(pending))
        reserve = min(chars for chars, _ in self._after(pending))
        self._expect(_missing_bytes(pending) > 0 and self._chars + 1 + reserve <= self._form.max_chars)

    def _decoded(self, data: bytes) -> tuple[str, int]:
        try:
            return codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            raise GrammarError("no UTF-8") from None

    def _run(self, text: str) -> None:
        """Letters, behind a space or not: most of all tokens, at once."""
        if text[0] == " ":
            self._space()
        self._ended = False
        self._wide = is_wide(text[-1])
        self._append(text)

    def _take(self, char: str) -> None:
        if self._literal:
            self._expect(self._literal[0] == char)
            self._literal = self._literal[1:]
        elif not self._chars and char == " ":
            self._expect(not self._tail)
            self._tail = " "
        elif char == "\n":
            self._line_feed()
        elif self._items is not None and char == self._items.separator:
            self._next_item(self._items)
        else:
            self._write(char)

    def _next_item(self, items: Items) -> None:
        self._expect(self._text_may_end and self._count + 1 < items.max_items)
        self._count += 1
        self._seen |= {self._text.casefold()}
        self._begin_text()

    def _line_feed(self) -> None:
        if self.has_paragraphs:
            self._expect(self._ended and not self._open and self.room >= SENTENCE_CHARS)
            self._expect(not self._tail.endswith("\n\n"))
            ended = self._ended
            self._append("\n")
            self._ended = ended  # so that a second one may follow
            return
        self._expect(self.may_end and not self.last_row)
        self._row += 1
        self._begin_row()

    def _write(self, char: str) -> None:
        if not self._chars:
            self._expect(char.isalnum() or (self.is_prose and char in _PAIRS))
        if self.is_prose:
            self._write_prose(char)
        else:
            forbidden = _NO_LABEL.match(char) or (self._items is not None and char in _SEPARATORS)
            self._expect(not forbidden)
            if char == " ":
                self._space()
            self._signs(char)
            self._wide = is_wide(char)
            self._append(char)

    def _write_prose(self, char: str) -> None:
        self._expect(not _NO_PROSE.match(char))
        ended = False
        last = self._tail[-1:]
        if char == " ":
            self._space()
        elif char in TERMINATORS:
            ended = self._terminates(char)
        elif self._open and char == self._open[-1]:
            self._expect(last not in _OPENERS)
            self._open, ended = self._open[:-1], self._ended
        elif char in _PAIRS:
            self._expect(last in " \n—–-“(" or not self._chars or is_wide(last or " "))
            self._expect(len(self._open) < 2 and char not in self._open)
            self._open += _PAIRS[char]
        elif char in "'’":
            ended = self._ended
        else:
            self._expect(char not in CLOSERS and not (last == " " and char in ",，"))
            self._expect(char not in "-–—," or self.room > WORD_CHARS)
        self._signs(char)
        self._ended = ended
        self._wide = is_wide(char) or (self._wide and not char.isalnum())
        self._append(char)

    def _terminates(self, char: str) -> bool:
        """A sentence may end where the text may, or where another one has room."""
        width = WIDE if self._wide else 1
        enough = self._chars + 1 + len(self._open) >= self._form.min_chars
        self._expect(enough or self.room - width >= SHORT_CHARS)
        self._expect(self._tail[-1:] not in (" ", "\n"))
        self._expect(char == "…" or not self._dangles or self._form.max_chars - self._chars < 2 + len(self._open))
        return char != "." or not _NO_END.search(self._tail)

    def _space(self) -> None:
        self._expect(self._tail[-1:] not in (" ", "\n"))
        if self._chars >= self._form.min_chars or self.is_prose:
            self._expect(self.room > WORD_CHARS or self._dangles)

    def _signs(self, char: str) -> None:
        self._expect(not (char.isdigit() and _DIGITS.search(self._tail)))
        self._expect(char.isalnum() or self._tail[-3:] != char * 3)

    def _append(self, text: str) -> None:
        self._chars += len(text)
        self._tail = (self._tail + text)[-_TAIL_CHARS:]
        if self._items is not None:
            self._text += text
        self._expect(self._chars + self._closing <= self._form.max_chars)

    @staticmethod
    def _expect(condition: bool) -> None:
        if not condition:
            raise GrammarError("the rules do not write this here")


def _more_bytes(closers: str) -> int:
    """Beyond one a character."""
    return len(closers.encode()) - len(closers)


@cache
def _may_be_alnum(partial: bytes) -> bool:
    """Whether a letter or digit begins with these bytes of UTF-8."""
    missing = _missing_bytes(partial)
    first, last = partial + b"\x80" * missing, partial + b"\xbf" * missing
    low, high = (int.from_bytes(end, "big") for end in (first, last))
    return missing > 0 and any(
        chr(code).isalnum() for code in range(_code(low, len(first)), _code(high, len(last)) + 1)
    )


def _code(utf8: int, length: int) -> int:
    """The code point that so many bytes spell, whether or not they are the shortest spelling."""
    lead = (utf8 >> 8 * (length - 1)) & (0x7F >> length)
    tail = sum(((utf8 >> 8 * at) & 0x3F) << 6 * at for at in range(length - 1))
    return min(lead << 6 * (length - 1) | tail, 0x10FFFF)


def _missing_bytes(partial: bytes) -> int:
    """How many bytes complete this beginning of a UTF-8 character; -1 if none can (RFC 3629, table 3-7 of Unicode)."""
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
