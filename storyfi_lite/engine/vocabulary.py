"""Holds a model's vocabulary: token ids <-> bytes, and which tokens end a sentence, a line, a turn. Built once for each loaded model.

Uses llama.cpp's vocabulary functions only; needs no context, so a vocab-only model will do.
"""

from __future__ import annotations

import ctypes
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from storyfi_lite.engine.repetition import Word
from storyfi_lite.engine.sampler import Ids
from storyfi_lite.errors import BadInput, EngineError, GrammarError
from storyfi_lite.grammar.prose import CLOSERS, TERMINATORS, in_word, is_wide

_LINE_END = re.compile(rb" *\n[ \n]*")
# What a vocabulary needs so that every text can be begun and ended: ASCII, and the bytes of Chinese in UTF-8.
_SPELLING = [bytes([byte]) for byte in (0x0A, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xE2, 0xEA), 0xEF)]
_SENTENCE_END = re.compile(rf"[^{TERMINATORS}]*[{TERMINATORS}][{re.escape(CLOSERS)}]*")

_LATIN_WORD = re.compile(r"[A-Za-z]+")
_STOPS = ".。"
_PAUSES = ",，、;；:：/|"
_LONG_LETTERS = 4
_NONE: Ids = np.empty(0, dtype=np.int64)


class Vocabulary:
    """Reads a model's vocabulary. `handle` is llama.cpp's pointer to it; the model that owns it must outlive this object.
    Raises BadInput, here or when it is first used, if a story cannot be written with it."""

    def __init__(self, handle: Any) -> None:
        if llama_cpp.llama_vocab_type(handle) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise BadInput("the model has no vocabulary; take a model that writes")
        self._handle = handle
        self.size = llama_cpp.llama_vocab_n_tokens(handle)
        self._bytes = [self._piece(token) for token in range(self.size)]

    def _piece(self, token: int, special: bool = True) -> bytes:
        """Return the token's bytes. The buffer grows as asked for: llama-cpp-python's own is 32 bytes and loses longer pieces."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            written = llama_cpp.llama_token_to_piece(self._handle, token, buffer, size, 0, special)
            if written >= 0:
                return buffer.raw[:written]
            size = -written

    def bytes_of(self, token: int) -> bytes:
        return self._bytes[token]

    def text_of(self, tokens: Iterable[int]) -> str:
        """Return the text that the tokens spell. Raises GrammarError if that is no UTF-8."""
        try:
            return b"".join(self._bytes[token] for token in tokens).decode()
        except (UnicodeDecodeError, IndexError):
            raise GrammarError("the tokens spell no text") from None

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the token ids of `text`. With `special` false, text that looks like a control token stays text."""
        data = text.encode()
        room = len(data) + 8
        while True:
            ids = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self._handle, data, len(data), ids, room, False, special)
            if count >= 0:
                return list(ids[:count])
            if -count <= room:
                raise EngineError("llama.cpp could not tokenize the prompt")
            room = -count  # more tokens than bytes: a vocabulary that spells a space as three byte tokens

    def spelled(self, text: str) -> list[int]:
        """Return token ids whose bytes are exactly `text`: some tokenizers put a space before whatever they are given."""
        want = text.encode()
        for before in ("", "\n"):
            ids = self.tokenize(before + text, special=False)
            while ids and len(b"".join(map(self.bytes_of, ids))) > len(want):
                ids.pop(0)
            if b"".join(map(self.bytes_of, ids)) == want:
                return ids
        return [self._by_bytes[want[at : at + 1]] for at in range(len(want))]

    @property
    def bos(self) -> int | None:
        """Return the token that every prompt of this model starts with, if there is one."""
        wanted = llama_cpp.llama_vocab_get_add_bos(self._handle)
        return int(llama_cpp.llama_vocab_bos(self._handle)) if wanted else None

    def special_text(self, which: str) -> str:
        """Return the text of the `bos` or `eos` token, for chat templates; empty if the model has none."""
        token = getattr(llama_cpp, f"llama_vocab_{which}")(self._handle)
        return self._bytes[token].decode(errors="replace") if 0 <= token < self.size else ""

    # --- what a text may hold ----------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Makes now the tables that the first choices would make."""
        _ = self._by_bytes, self.end, self.line_feed, self.line_ends, self.word_ends, self.pauses
        _ = self.before_line_feed, self.sentence_ends, self._beginnings, self.inside_words, self.inside_names

    @cached_property
    def writes(self) -> list[bytes]:
        """Return each token's bytes in a text: none, if it is a control token."""
        control = [llama_cpp.llama_vocab_is_control(self._handle, token) for token in range(self.size)]
        return [b"" if hidden else piece for hidden, piece in zip(control, self._bytes, strict=True)]

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        found = {piece: token for token, piece in reversed(list(enumerate(self.writes)))}
        missing = [piece for piece in _SPELLING if piece not in found]
        if missing:
            raise BadInput(
                f"the model's vocabulary cannot spell every text: of {len(_SPELLING)} bytes that it takes, {len(missing)} have "
                f"no token, {missing[0]!r} among them; take a model that writes"
            )
        return found

    @cached_property
    def end(self) -> int:
        """Return the token that ends a turn. Raises BadInput if the model has none."""
        for token in (llama_cpp.llama_vocab_eot(self._handle), llama_cpp.llama_vocab_eos(self._handle)):
            if 0 <= token < self.size and not self.writes[token]:
                return int(token)
        raise BadInput("the model's vocabulary has no token that ends a turn")

    @cached_property
    def line_feed(self) -> int:
        return self.spelled("\n")[0]

    @cached_property
    def turn_ends(self) -> Ids:
        """Return the tokens by which a model may end its turn."""
        return self._ids(token for token in range(self.size) if llama_cpp.llama_vocab_is_eog(self._handle, token))

    def marks(self, text: str) -> list[int]:
        """Return the tokens by which a model writes this mark, if it has one for it or for its beginning; none if it spells it."""
        first, *others = self.tokenize(text, special=True)
        return [first] if not others or not self.writes[first] else []

    @cached_property
    def line_ends(self) -> Ids:
        """Return the tokens that end a turn or a line."""
        return self._ids(
            [*self.turn_ends, *(token for token, piece in enumerate(self.writes) if _LINE_END.fullmatch(piece))]
        )

    @cached_property
    def word_ends(self) -> Ids:
        """Return the tokens that end a turn, a line, or a title or a name as if it were a sentence."""
        return self._ids([*self.line_ends, *self._signs(_STOPS)])

    @cached_property
    def pauses(self) -> Ids:
        """Return the tokens after which another item of a list may come."""
        return self._ids(self._signs(_PAUSES))

    def _signs(self, signs: str) -> Iterable[int]:
        spelled = {sign.encode() for sign in signs}
        return (token for token, piece in enumerate(self.writes) if piece.strip() in spelled)

    def word(self, token: int, after_letter: bool) -> Word | None:
        """Return what word the token begins, if any: a space and letters do, and a capital, even inside a word ("KaraSakura");
        _LONG_LETTERS or more make it a long one; signs and digits count as a short one. Letters of a script without spaces begin a long one where they are two or more, or the first of a clause
        (not `after_letter`): inside it a lone one is as often a particle; its signs are as frequent there, and begin none."""
        text = self.writes[token].decode(errors="replace")
        letters = text.removeprefix(" ")
        if not letters.isalpha():
            return Word.SHORT if letters.strip() and all(map(_is_sign, letters)) else None
        if letters != text or text[0].isupper():
            return Word.LONG if len(letters) >= _LONG_LETTERS else Word.SHORT
        return Word.LONG if all(map(is_wide, text)) and (len(text) > 1 or not after_letter) else None

    def beginning(self, unit: str, inside: bool = False) -> Ids:
        """Return the tokens that begin a unit of text (our_words.py): those that are this word (in small letters; the tokens' may be
        of any case), after a space or, unless another word is in hand (`inside`), without; or all that begin with these characters of
        a script that writes no spaces."""
        every, in_hand = self._beginnings.get(unit, (_NONE, _NONE))
        return in_hand if inside else every

    @cached_property
    def _beginnings(self) -> dict[str, tuple[Ids, Ids]]:
        """All tokens that begin a unit, and those that may while another word is in hand."""
        found: defaultdict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for token, piece in enumerate(self.writes):
            text = piece.decode(errors="ignore")
            letters = text.removeprefix(" ")
            wide = is_wide(letters[:1] or " ")
            if not letters or not (wide or all(map(in_word, letters))):
                continue
            for unit in [letters[:end] for end in range(1, len(letters) + 1)] if wide else [letters.lower()]:
                every, in_hand = found[unit]
                every.append(token)
                if wide or letters != text:
                    in_hand.append(token)
        return {unit: (self._ids(every), self._ids(in_hand)) for unit, (every, in_hand) in found.items()}

    def that_spell(self, texts: Iterable[str]) -> Ids:
        """Return the tokens that are these texts; those that no token is are left out."""
        found = (self._by_bytes.get(text.encode()) for text in texts)
        return self._ids(token for token in found if token is not None)

    @cached_property
    def inside_words(self) -> NDArray[np.bool_]:
        """Return for each token whether it can go on a word of a script that writes spaces."""
        return np.array([in_word(piece[:4].decode(errors="ignore")[:1] or " ") for piece in self.writes])

    @cached_property
    def inside_names(self) -> NDArray[np.bool_]:
        """Return for each token whether it can go on a name that is begun, by a letter that is no capital."""
        capital = [piece[:4].decode(errors="ignore")[:1].isupper() for piece in self.writes]
        return self.inside_words & ~np.array(capital)

    def latin_but(self, text: str) -> Ids:
        """Return the tokens that begin with a letter of ASCII, after a space or not, but for those that spell a word of the text."""
        spelled = set()
        for word in set(_LATIN_WORD.findall(text)):
            ends = range(1, len(word) + 1)
            spelled |= {word[start:end] for end in ends for start in range(end)}
        return self._ids(token for token, letters in self._latin if letters not in spelled)

    @cached_property
    def _latin(self) -> list[tuple[int, str]]:
        pieces = ((token, piece.removeprefix(b" ")) for token, piece in enumerate(self.writes))
        return [(token, piece.decode(errors="ignore")) for token, piece in pieces if piece[:1].isalpha()]

    @cached_property
    def before_line_feed(self) -> tuple[Ids, Ids]:
        """Return the tokens that end with line feeds, and for each the token without them."""
        pairs = [
            (token, self._by_bytes[piece.rstrip(b"\n")])
            for token, piece in enumerate(self.writes)
            if piece.endswith(b"\n") and piece.strip() and piece.rstrip(b"\n") in self._by_bytes
        ]
        return self._ids(token for token, _ in pairs), self._ids(bare for _, bare in pairs)

    @cached_property
    def sentence_ends(self) -> Ids:
        """Return the tokens that end with the end of a sentence."""
        spelled = enumerate(piece.decode(errors="replace") for piece in self.writes)
        return self._ids(token for token, text in spelled if _SENTENCE_END.fullmatch(text))

    def _ids(self, tokens: Iterable[int]) -> Ids:
        return np.array(list(tokens), dtype=np.int64)


def _is_sign(char: str) -> bool:
    return not char.isalpha() and not is_wide(char) and char != "\N{REPLACEMENT CHARACTER}"
