"""Walks over the text of one turn, character by character, and says what may come next.

A turn is written in rows. A row is a label that costs no choice ("Title:") and a form: whole sentences, a few words, or a list
of those. The walk also says where a text may end, and how many tokens surely finish it, so that an answer can be closed inside
any budget. All of it follows from the text so far, so a replay comes to the same answers. It knows no JSON and no model.

The rules of a text, beside its length in characters (Unicode code points):

  whole sentences  end only where a sentence ends: after . ! ? … 。 ！ ？, and the quotes and brackets that close after it;
                   quotes and brackets are paired; a sentence that ends too late for one more (`SENTENCE_CHARS`) is the last;
                   begin with a letter, a digit or an opening quote; at most two numbers in a hundred characters, and eight
                   commas and the like in a sentence; six signs between two letters, beside those that end and close, and
                   twelve in sixty characters; do not go over to another row's label
  a few words      begin and end on a letter, or end on ! ?; hold no digits; near the maximum no new word is begun (`WORD_CHARS`);
                   no row of the turn says what another says
  both             letters of the scripts that the request is written in, and Latin, in Chinese and the like for names alone; of
                   other signs punctuation alone, and none of a markup language; no two spaces in a row; at most four digits in a row
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import takewhile

from storyfi_lite.errors import GrammarError
from storyfi_lite.grammar.schema import FORBIDDEN

# Distances in Latin letters; a character of Chinese, Japanese or Korean counts as three.
SENTENCE_CHARS = 150  # room for one more sentence
SHORT_CHARS = 45  # a sentence of so few that it can still be asked for
WORD_CHARS = 12  # room for the rest of a word
WIDE = 3
PRESSURE_CHARS = 80  # so near the maximum a sentence is pressed to end
PRESSURE_NATS = 7.0  # what that is worth in the last character of the room
NUMBERS_CHARS = 100  # in so many at most two numbers begin
MAX_PAUSES = 8  # in a sentence
MAX_SIGNS = 6  # between two letters or digits, beside those that end and close
DENSE_CHARS, DENSE_SIGNS = 60, 12  # in so many characters, spaces apart, at most so many signs
NAME_LETTERS, MAX_LETTERS = 12, 30  # of a word that may be a name; of any word, then it is pressed to end
_DENSE_MASK = (1 << DENSE_CHARS) - 1
PAUSES = ",;:，、；：–—-"  # a hyphen, if a space stands before it

TERMINATORS = ".!?…。！？"
_PAIRS = {'"': '"', "“": "”", "「": "」", "『": "』", "（": "）", "(": ")", "《": "》", "«": "»"}
_OPENERS = tuple(" \n(“「『（《«")  # after these nothing is closed
CLOSERS = "".join(dict.fromkeys(_PAIRS.values()))
_COLONS = (":", "：")  # in Chinese and the like with a quote in the same token: else a list or a play begins
_NO_PROSE = re.compile(rf"[\\{{}}\[\]<>|*#_~^=`@{FORBIDDEN}]")
_NO_LABEL = re.compile(rf"[\d,，、\\{{}}\[\]<>|*#_~^=`@\"“”「」『』（）()《》«».。…;；:：/{FORBIDDEN}]")
LIST_COMMA = ","
_NO_ITEM = ",，、"  # what no item of a list may hold
# After these more must come: no sentence and no label ends on them, unless no other character has room.
_DANGLING = re.compile(
    r"(?:\b(?:a|an|the|of|to|and|or|but|nor|with|for|from|by|at|as|into|onto|than|that|which|who|whose|if|because|while|when"
    r"|where|my|your|his|her|its|our|their|is|are|was|were|be|been|had|has|have|would|could|should|will|can|may|must|not|very"
    r"|this|these|those|every|each|some|more|most|so|such|in|on)|[,;:，；：、—–-]|[和与及把被在从向对是])$",
    re.IGNORECASE,
)
_NO_END = re.compile(r"(?:^|[\s\"“(])(?:Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|[A-Z]|\d{1,2})$")
_TITLE = re.compile(r"(?:^|\s)(?:Mr|Mrs|Ms|Dr|St|Prof)$")  # no name ends so
_DIGITS = re.compile(r"\d{4}$")
_PLAIN = re.compile(r" ?[^\W\d_]+")
TAIL_CHARS = 12
_JOINING = frozenset({"and", "or", "和", "与", "以及"})


@dataclass(frozen=True)
class Prose:
    """Asks for whole sentences. With `paragraphs`, an empty line may stand between two of them."""

    min_chars: int
    max_chars: int
    paragraphs: bool = False


@dataclass(frozen=True)
class Words:
    """Asks for a name, a title, a few words: one line without an end of a sentence."""

    min_chars: int
    max_chars: int


@dataclass(frozen=True)
class Items:
    """Asks for `min_items` to `max_items` different items on one line, with LIST_COMMA between them."""

    item: Words
    min_items: int
    max_items: int


Form = Prose | Words | Items


@dataclass(frozen=True)
class Row:
    """Asks for `label`, as it stands, and then the form's text, with one space before it or none."""

    label: str
    form: Form

    @property
    def need_tokens(self) -> int:
        """Return how many tokens surely suffice, the row's end included: one for each byte of the label and each character."""
        form = self.form
        text = form.min_items * (form.item.min_chars + 1) if isinstance(form, Items) else form.min_chars + 1
        return len(self.label.encode()) + text

    @property
    def bound_tokens(self) -> int:
        """Return a number of tokens that no row exceeds: four bytes a character, and as many spaces as texts."""
        form = self.form
        text = form.max_items * (4 * form.item.max_chars + 2) if isinstance(form, Items) else 4 * form.max_chars + 1
        return len(self.label.encode()) + text + 1


Rows = tuple[Row, ...]


def need_tokens(rows: Rows) -> int:
    return sum(row.need_tokens for row in rows)


def bound_tokens(rows: Rows) -> int:
    return sum(row.bound_tokens for row in rows)


def values(rows: Rows, text: str) -> list[str | list[str]]:
    """Read a finished turn's text, row by row. Raises GrammarError if it is not these rows."""
    lines = [text] if len(rows) == 1 else text.split("\n")
    if len(lines) != len(rows) or any(not line.startswith(row.label) for row, line in zip(rows, lines, strict=False)):
        raise GrammarError("the text is not the rows of its turn")
    found: list[str | list[str]] = []
    for row, line in zip(rows, lines, strict=True):
        said = line[len(row.label) :].removeprefix(" ")
        if isinstance(row.form, Items):
            found.append([item.removeprefix(" ") for item in said.split(LIST_COMMA)])
        else:
            found.append(said)
    return found


def ends_a_sentence(text: str) -> bool:
    """Return whether a text's last sentence is whole: a terminator, then nothing but what closes quotes and brackets."""
    bare = text.rstrip(CLOSERS + "'’")
    return bare.endswith(tuple(TERMINATORS)) and not (bare.endswith(".") and _NO_END.search(bare[-TAIL_CHARS:-1]))


@cache
def is_wide(char: str) -> bool:
    """Return whether a character is of a script that writes no spaces, where each character says as much as several letters."""
    return (
        "\u2e80" <= char <= "\ud7ff"
        or "\uf900" <= char <= "\ufaff"
        or "\uff00" <= char <= "\uffef"
        or char >= "\U00020000"
    )


@cache
def in_word(char: str) -> bool:
    """Return whether a character belongs to a word of a script that writes spaces: a letter, a digit, or a mark on one."""
    return (char.isalnum() or unicodedata.category(char)[0] == "M") and not is_wide(char)


Alphabets = frozenset[str]
_MORE_LATIN = "MORE LATIN"
NAMES_ONLY = "LATIN NAMES"  # among alphabets: no Latin word begins with a small letter
_HAN, _SIMPLIFIED, _TRADITIONAL, _RARE = "CJK", "CJK SIMPLIFIED", "CJK TRADITIONAL", "CJK RARE"
_SPACED = frozenset({"LATIN", _MORE_LATIN, "CYRILLIC", "GREEK"})
_JAPANESE = frozenset({"HIRAGANA", "KATAKANA", _HAN, _SIMPLIFIED, _TRADITIONAL, _RARE, "IDEOGRAPHIC"})
_WITH_WIDE_SIGNS = _JAPANESE | {"BOPOMOFO", "HANGUL", "YI"}


@lru_cache(maxsize=65536)
def _alphabet(letter: str) -> str:
    """Return the first word of the letter's name in Unicode, which names its script; for Latin that few languages write, such as
    Vietnamese, _MORE_LATIN, and nothing for what none writes. Of Chinese characters it says which of the everyday sets have them:
    GB 2312, which is simplified, Big5, which is traditional, both, or none."""
    script = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    if script == _HAN:
        simplified, traditional = (_is_encoded(letter, charset) for charset in ("gb2312", "big5"))
        either = _SIMPLIFIED if simplified else _TRADITIONAL if traditional else _RARE
        return _HAN if simplified and traditional else either
    if script != "LATIN" or letter < "\u0180":
        return script
    return _MORE_LATIN if letter < "\u0250" or "\u1e00" <= letter < "\u1f00" else ""


def _is_encoded(letter: str, charset: str) -> bool:
    try:
        return bool(letter.encode(charset))
    except UnicodeEncodeError:
        return False


def alphabets_of(text: str, beside: str = "") -> Alphabets:
    """Return the scripts of a text's letters, and Latin's commoner letters, in which every language may write a name. Where a script
    without spaces writes no Latin words, only names and the like may be Latin: NAMES_ONLY, they begin with a capital letter. Chinese is
    simplified or traditional, as the text is; if it does not tell, as what is told `beside` it; if neither does, it may be both."""
    found = frozenset(_alphabet(char) for char in text if char.isalpha())
    if any(map(is_wide, text)) and not any(map(_is_small_latin, text)):
        found |= {NAMES_ONLY}
    found |= {"LATIN"}
    if found & {"HIRAGANA", "KATAKANA"}:
        return found | _JAPANESE
    if found & _JAPANESE:
        either = frozenset({_SIMPLIFIED, _TRADITIONAL})
        found |= {_HAN} | (found & either or frozenset(map(_alphabet, beside)) & either or either)
    return found


def _is_small_latin(char: str) -> bool:
    return char.islower() and _alphabet(char) in ("LATIN", _MORE_LATIN)


def is_of(text: str, alphabets: Alphabets) -> bool:
    """Return whether a text holds nothing but letters of these scripts (of any, if none is named), digits and their punctuation."""
    return all(_takes(_kind(char), alphabets) for char in text)


_DIGIT, _SIGN, _WIDE_SIGN = "0", ".", "。"  # no alphabet's names
_WIDE_TWINS = "！（），：；？"  # of ASCII's signs, those that are written wide; no halfwidth ones
_SIGNS = " –—‘’“”…"  # of those that no script calls its own


@lru_cache(maxsize=65536)
def _kind(char: str) -> str | None:
    """Return a letter's alphabet, or _DIGIT; of a sign _SIGN, if every script writes it, else with the name of the one that does, or
    _WIDE_SIGN; None for what no text has."""
    if char.isalpha():
        return _alphabet(char)
    if char in "0123456789":
        return _DIGIT
    category = unicodedata.category(char)
    if is_wide(char):
        twin = "\uff00" < char < "\uffa0" and char not in _WIDE_TWINS
        return _WIDE_SIGN if char == "〇" or (category[0] in "MP" and not twin) else None
    if char in _SIGNS or (char < "\u0370" and category[0] in "MP"):
        return _SIGN
    return _SIGN + _alphabet(char) if category[0] in "MP" else None


def _takes(kind: str | None, alphabets: Alphabets) -> bool:
    if kind is None or not alphabets:
        return kind is not None
    if kind == _WIDE_SIGN:
        return not alphabets.isdisjoint(_WITH_WIDE_SIGNS)
    return kind in (_DIGIT, _SIGN) or kind.removeprefix(_SIGN) in alphabets


class Cursor:
    """Follows one turn, in letters of `alphabets`. `advance` takes a token's bytes, `end` the turn's end; both raise GrammarError where the rules forbid it."""

    __slots__ = (
        "_alphabets", "_chars", "_count", "_dense", "_ended", "_form", "_items", "_labelled", "_letters", "_numbers", "_open", "_partial", "_pauses", "_row", "_rows", "_said", "_seen", "_spoken", "_tail", "_text",
        "_wide", "done", "literal",
    )  # fmt: skip

    def __init__(self, rows: Rows, alphabets: Alphabets = frozenset()) -> None:
        self._rows = rows
        self._alphabets = alphabets
        self._spoken = _labels_spoken(rows)
        self._said: frozenset[str] = frozenset()  # names and titles: none is written twice in a turn
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
        self.literal = row.label  # what must come now, and costs no choice; empty inside a text
        self._labelled = bool(row.label)
        self._items: Items | None = row.form if isinstance(row.form, Items) else None
        self._form: Prose | Words = row.form.item if isinstance(row.form, Items) else row.form
        self._count = 0  # of the items that are finished
        self._seen = self._said if self._items is None else frozenset()
        self._begin_text()

    def _begin_text(self) -> None:
        self._chars = 0
        self._partial = b""  # of one UTF-8 character
        self._tail = ""  # the last characters, the space before the text included
        self._text = ""  # of a name or an item, to tell it from the others
        self._letters = 0  # in a row, of a script that writes spaces
        self._ended = False  # a terminator, then nothing but closing quotes and brackets
        self._pauses = 0  # in this sentence
        self._dense = 0  # the last DENSE_CHARS characters, spaces apart, as bits: 1 for a sign
        self._numbers = (-NUMBERS_CHARS, -NUMBERS_CHARS)  # where the last two began
        self._open = ""  # what must be closed, innermost last
        self._wide = False

    # --- questions ---------------------------------------------------------------------------------------------

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
        """Return what leads to the next item of a list; empty where none may come."""
        return LIST_COMMA if self._items and self._count + 1 < self._items.max_items else ""

    @property
    def wants_items(self) -> bool:
        """Return whether the list still has too few items, the one in hand counted."""
        return self._items is not None and self._count + 1 < self._items.min_items

    @property
    def may_end(self) -> bool:
        """Return whether the row may end here."""
        return not self.wants_items and not self.literal and self._text_may_end

    @property
    def must_end(self) -> bool:
        """Return whether the row has to end here: nothing else may come, or it would not be worth beginning."""
        if not self.may_end:
            return False
        if self.is_prose:
            return self.room < SENTENCE_CHARS
        return self._chars == self._form.max_chars and not self.separator

    @property
    def _text_may_end(self) -> bool:
        if self._partial or self._chars < self._form.min_chars:
            return False
        if self.is_prose:
            return self._ended and not self._open and self._tail[-1:] != "\n"
        return self._label_is_whole

    @property
    def _dangles(self) -> bool:
        """Return whether the text stands at a word after which more must come."""
        return bool(_DANGLING.search(self._tail))

    @property
    def _label_is_whole(self) -> bool:
        last = self._tail[-1:] or " "
        whole = last.isalnum() or last in "!?！？" or unicodedata.category(last).startswith("M")
        whole = whole and not self._dangles and not _TITLE.search(self._tail)
        return whole and self._text.casefold() not in self._seen

    @property
    def room(self) -> int:
        """Return how many characters the text may still have, in Latin letters."""
        return (self._form.max_chars - self._chars) * (WIDE if self._wide else 1)

    def pressure(self, slack_tokens: int) -> float:
        """Return the nats that an end gains here: 0 at first, PRESSURE_NATS where no character or token is left."""
        form = self._form
        if self._dangles:
            return 0.0
        if self.is_prose:
            window = min(PRESSURE_CHARS, (form.max_chars - form.min_chars) * (WIDE if self._wide else 1))
        else:
            window = (form.max_chars * 2 // 3) * (WIDE if self._wide else 1)
        room = min(self.room, slack_tokens) if self._chars >= form.min_chars else self.room
        return PRESSURE_NATS * (1 - room / window) if room < window else 0.0

    @property
    def need_tokens(self) -> int:
        """Return how many tokens surely suffice to finish all rows: one for each byte of structure and each missing character."""
        if self.done:
            return 0
        need = len(self.literal.encode()) + self._text_need + 1
        if self._items is not None:
            missing = max(0, self._items.min_items - self._count - 1)
            need += missing * (self._items.item.min_chars + 1)
        return need + sum(row.need_tokens for row in self._rows[self._row + 1 :])

    @property
    def _text_need(self) -> int:
        if self.literal or not self._partial:
            more = 3 if self.is_prose and self._dangles else 0  # then it takes a …, byte by byte
            least = self._form.min_chars - self._chars
            if self._ended and self._wants_letter and least == len(self._open) + 1:
                least += 1  # a letter must come, and an end after it
            return max(least, self._closing) + more + _more_bytes(self._open)
        least = self._form.min_chars - self._chars - 1
        ways = (max(least, chars) + _more_bytes(opened) for chars, opened in self._after(self._partial))
        return _character_bytes(self._partial) - len(self._partial) + min(ways)

    def _after(self, partial: bytes) -> list[tuple[int, str]]:
        """Return what the character that begins with these bytes may lead to, each way as the number of characters that then end
        the text, and what is open. The character may be any; what closes the innermost quote; or a …."""
        if not self.is_prose:
            return [(0 if _may_become(partial, self._alphabets, begins_text=True) else 1, "")]
        opened = self._open
        ways = [(len(opened) + 1, opened)]
        if opened and opened[-1].encode().startswith(partial) and self._tail[-1:] not in _OPENERS:
            ways.append((len(opened) - 1 + (not self._ended), opened[:-1]))
        ends = self._may_terminate and self._tail[-1:] not in (" ", "\n") and not (self._ended and self._wants_letter)
        if ends and "…".encode().startswith(partial):
            ways.append((len(opened), opened))
        return ways

    @property
    def _wants_letter(self) -> bool:
        """Return whether a letter or a digit must come, or what ends and closes."""
        return self._is_dense or _signs_at_end(self._tail) >= MAX_SIGNS

    @property
    def _is_dense(self) -> bool:
        return self._dense.bit_count() >= DENSE_SIGNS

    @property
    def _may_terminate(self) -> bool:
        """Return whether a sentence may end here: where the text may end, or another sentence has room, and the text is no heap of signs."""
        may_be_last = self._chars + 1 + len(self._open) >= self._form.min_chars
        room = self.room - (WIDE if self._wide else 1)
        return may_be_last or (room >= SHORT_CHARS and not self._is_dense)

    @property
    def _closing(self) -> int:
        """Return how many characters end the text here, if it is long enough."""
        if self.is_prose:
            return len(self._open) + (2 if self._tail[-1:] in (" ", "\n") else not self._ended)
        return 0 if self._label_is_whole else 1

    # --- steps -------------------------------------------------------------------------------------------------

    def end(self) -> None:
        self._expect(self.may_end and self.last_row)
        self.done = True

    def advance(self, data: bytes) -> None:
        joins = self._items is not None and not self._chars and data.strip().decode(errors="ignore") in _JOINING
        self._expect(bool(data) and not self.done and not joins)
        data = self._partial + data
        try:
            text, length = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            raise GrammarError("no UTF-8") from None
        lone_space = text == " " and not (self._tail or self.literal)
        # before a name a lone space means a digit to a model, which then finds the way to a name no more
        self._expect(not lone_space or self._digits_first)
        pending, self._partial = data[length:], b""
        if self._chars and _PLAIN.fullmatch(text):
            self._run(text)
        else:
            for char in text:
                self._take(char)
        self._expect(not (self.is_prose and self._wide and self._tail[-1:] in _COLONS))
        if pending:
            self._begin_char(pending)

    def _begin_char(self, pending: bytes) -> None:
        self._partial = pending
        if self.literal:
            self._expect(self.literal.encode().startswith(pending))
            return
        begins = not self._chars
        closes = not begins and len(self._after(pending)) > 1
        of_letter = begins or self._wants_letter
        digits = self._digits_first if begins else self.is_prose
        self._expect(closes or _may_become(pending, self._alphabets, of_letter, digits))
        # a letter may always come; that one of a few signs may is not said
        self._expect(closes or _may_become(pending, self._alphabets, begins_text=True) or self._may_finish(pending))
        self._expect(pending[0] != 0xED or pending[1:] < b"\xa0")  # half of a surrogate pair, which is no character
        reserve = min(chars for chars, _ in self._after(pending))
        self._expect(self._chars + 1 + reserve <= self._form.max_chars)

    def _may_finish(self, pending: bytes) -> bool:
        """Return whether one of the characters that begin with these bytes may come here."""
        if len(pending) < _character_bytes(pending):
            # what no text of these scripts has is passed over at once: F0 alone begins a quarter of a million characters
            taken = _may_become(pending, self._alphabets)
            return taken and any(self._may_finish(pending + bytes([byte])) for byte in range(0x80, 0xC0))
        after = self.copy()
        after._partial = b""
        try:
            after._take(pending.decode())
        except (GrammarError, UnicodeDecodeError):
            return False
        return True

    def _run(self, text: str) -> None:
        """Take letters, behind a space or not, at once: most tokens are such."""
        self._expect(text.isascii() or is_of(text, self._alphabets))
        self._latin_begins(text.lstrip(" ")[0], after=" " if text[0] == " " else self._tail[-1:])
        if text[0] == " ":
            self._space()
        self._ended = False
        self._wide = is_wide(text[-1])
        self._dense = self._dense << len(text) & _DENSE_MASK
        self._append(text)

    @property
    def _digits_first(self) -> bool:
        """Return whether the text may begin with a number. What a label asks for may not: after "Past:" a small model writes years,
        and then no word any more."""
        return self.is_prose and not self._labelled

    @property
    def after_letter(self) -> bool:
        """Return whether a letter stands before what comes next, in the same text."""
        return self._tail[-1:].isalnum()

    @property
    def tail(self) -> str:
        """Return the text's last TAIL_CHARS; nothing inside a character."""
        return "" if self._partial else self._tail

    @property
    def in_name(self) -> bool:
        """Return whether a word of a script that writes spaces is in hand, and no longer than names are."""
        return 0 < self._letters <= NAME_LETTERS

    @property
    def in_endless_word(self) -> bool:
        """Return whether a word is in hand that is longer than any: a small model that may not say its words again runs them together."""
        return self._letters > MAX_LETTERS and _alphabet(self._tail[-1]) in _SPACED

    def _take(self, char: str) -> None:
        if self.literal:
            self._expect(self.literal[0] == char)
            self.literal = self.literal[1:]
        elif not self._chars and char == " ":
            self._expect(not self._tail)
            self._tail = " "
        elif char == "\n":
            self._line_feed()
        elif self._items is not None and char == LIST_COMMA:
            self._expect(self._text_may_end and bool(self.separator))
            self._count += 1
            self._seen |= {self._text.casefold()}
            self._begin_text()
        else:
            self._write(char)

    def _line_feed(self) -> None:
        if self.has_paragraphs:
            self._expect(self._ended and not self._open and self.room >= SENTENCE_CHARS)
            self._expect(not self._tail.endswith("\n\n"))
            ended = self._ended
            self._append("\n")
            self._ended = ended  # so that a second one may follow
            return
        self._expect(self.may_end and not self.last_row)
        if self._items is None and not self.is_prose:
            self._said |= {self._text.casefold()}
        self._row += 1
        self._begin_row()

    def _latin_begins(self, char: str, after: str) -> None:
        if NAMES_ONLY in self._alphabets and _is_small_latin(char):
            self._expect(bool(after) and after.isalpha() and not is_wide(after))

    def _write(self, char: str) -> None:
        self._expect(is_of(char, self._alphabets))
        self._latin_begins(char, after=self._tail[-1:])
        if not self._chars:
            begins = char.isalnum() if self._digits_first else char.isalpha()
            self._expect(begins or (self.is_prose and char in _PAIRS))
        if self.is_prose:
            self._write_prose(char)
        else:
            forbidden = _NO_LABEL.match(char) or (self._items is not None and char in _NO_ITEM)
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
        self._pace(char, last)
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
        if ended:
            self._pauses = 0
        self._wide = is_wide(char) or (self._wide and not char.isalnum())
        self._append(char)

    def _pace(self, char: str, last: str) -> None:
        """Bound pauses in a sentence, and numbers."""
        if char in PAUSES and (char != "-" or last == " "):
            self._expect(self._pauses < MAX_PAUSES)
            self._pauses += 1
        if char.isdigit() and not last.isdigit():
            width = WIDE if self._wide else 1
            self._expect((self._chars - self._numbers[0]) * width >= NUMBERS_CHARS)
            self._numbers = (self._numbers[1], self._chars)

    def _terminates(self, char: str) -> bool:
        """Take the end of a sentence, which may stand where the text may end or another sentence has room."""
        self._expect(self._may_terminate)
        self._expect(self._tail[-1:] not in (" ", "\n"))
        self._expect(char == "…" or not self._dangles or self._form.max_chars - self._chars < 2 + len(self._open))
        return char != "." or not _NO_END.search(self._tail)

    def _space(self) -> None:
        self._expect(self._tail[-1:] not in (" ", "\n"))
        if self._chars >= self._form.min_chars or self.is_prose:
            self._expect(self.room > WORD_CHARS or self._dangles)

    def _signs(self, char: str) -> None:
        needed = char in CLOSERS or (char in TERMINATORS and not self._ended)
        self._expect(char.isalnum() or char == " " or needed or not self._wants_letter)
        self._expect(not (char.isdigit() and _DIGITS.search(self._tail)))
        self._expect(char.isalnum() or self._tail[-3:] != char * 3)
        self._expect(char not in PAUSES or self._tail.count(char) < 3)  # no A-B-C-D-E
        if not char.isspace():
            self._dense = (self._dense << 1 | (not char.isalnum())) & _DENSE_MASK

    def _append(self, text: str) -> None:
        self._chars += len(text)
        self._tail = (self._tail + text)[-TAIL_CHARS:]
        of_word = in_word(text[-1]) and text[-1].isalpha()
        self._letters = (self._letters if text.isalpha() else 0) + len(text.lstrip(" ")) if of_word else 0
        if self.is_prose:
            self._expect(not (self._spoken and self._spoken.search(self._tail)))
        else:
            self._text += text
        self._expect(self._chars + self._closing <= self._form.max_chars)

    @staticmethod
    def _expect(condition: bool) -> None:
        if not condition:
            raise GrammarError("the rules do not write this here")


@lru_cache(maxsize=256)
def _labels_spoken(rows: Rows) -> re.Pattern[str] | None:
    """Return how a text ends that goes over to another row by itself, as a model does that finds this one too long: with a label and
    its colon, or in a script without spaces, where a label is seldom a sentence's beginning, with that alone."""
    labels = sorted({row.label[:-1][-TAIL_CHARS + 1 :] for row in rows if row.label})
    if not labels:
        return None
    every, wide = (
        "|".join(map(re.escape, some)) for some in (labels, [one for one in labels if any(map(is_wide, one))])
    )
    at_beginning = rf"|[{TERMINATORS}]\s?(?:{wide})" if wide else ""
    return re.compile(rf"(?:(?:{every})\s?[:：]{at_beginning})$")


def _signs_at_end(text: str) -> int:
    """Count the signs after the last letter or digit."""
    return sum(not char.isspace() for char in takewhile(lambda char: not char.isalnum(), reversed(text)))


def _more_bytes(closers: str) -> int:
    """Return how many bytes these characters take beyond one each."""
    return len(closers.encode()) - len(closers)


@lru_cache(maxsize=65536)
def _may_become(beginning: bytes, alphabets: Alphabets, begins_text: bool = False, of_prose: bool = False) -> bool:
    """Return whether a character with these first bytes is of the alphabets, and may begin such a text if it has to."""
    kinds = _kinds(beginning)
    letters = {kind for kind in kinds if kind[:1] not in (_DIGIT, _SIGN, _WIDE_SIGN)}
    if letters & alphabets if alphabets else letters:
        return True
    if begins_text:
        return of_prose and _DIGIT in kinds
    return any(_takes(kind, alphabets) for kind in kinds - letters)


@lru_cache(maxsize=65536)
def _kinds(beginning: bytes) -> frozenset[str]:
    """Return what the characters with these first bytes are (`_kind`)."""
    size = _character_bytes(beginning)
    if len(beginning) < size - 1:
        return frozenset().union(*(_kinds(beginning + bytes([byte])) for byte in range(0x80, 0xC0)))
    code = beginning[0] & (0x7F >> size)
    for byte in beginning[1:]:
        code = code << 6 | byte & 0x3F
    first = code << 6
    if first < (0x80, 0x800, 0x10000)[size - 2] or 0x40000 <= first < 0xE0000 or first >= 0xF0000:
        return frozenset()  # spelled longer than need be; planes that are empty or private; beyond Unicode
    chars = (chr(code) for code in range(first, first + 64) if not 0xD800 <= code < 0xE000)
    return frozenset(kind for kind in map(_kind, chars) if kind is not None)


def _character_bytes(beginning: bytes) -> int:
    """Return the length of the UTF-8 character that begins so, in bytes (RFC 3629)."""
    return 2 if beginning[0] < 0xE0 else 3 if beginning[0] < 0xF0 else 4
