"""A model's vocabulary: token ids <-> bytes, and llguidance's tokenizer over it. Built once for each loaded model.

Uses llama.cpp's vocabulary functions only; needs no context, so a vocab-only model will do.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from storyfi_lite.errors import EngineError, GrammarError
from storyfi_lite.grammar.export import TEXT_SLICES
from storyfi_lite.grammar.schema import FORBIDDEN

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from storyfi_lite.grammar import Constraint

_PLAIN = re.compile(rf'[^"\\{FORBIDDEN}]+')


class Vocabulary:
    """`handle` is llama.cpp's vocabulary pointer; the model that owns it must outlive this object."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.size = llama_cpp.llama_vocab_n_tokens(handle)
        self._bytes = [self._piece(token) for token in range(self.size)]

    def _piece(self, token: int, special: bool = True) -> bytes:
        """The token's bytes. The buffer grows as asked for: llama-cpp-python's own is 32 bytes and loses longer pieces."""
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
        """Raises GrammarError if the tokens spell no UTF-8."""
        try:
            return b"".join(self._bytes[token] for token in tokens).decode()
        except (UnicodeDecodeError, IndexError):
            raise GrammarError("the tokens spell no text") from None

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids of `text`. With `special` false, text that looks like a control token stays text."""
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

    @property
    def bos(self) -> int | None:
        """The token that every prompt of this model starts with, if there is one."""
        wanted = llama_cpp.llama_vocab_get_add_bos(self._handle)
        return int(llama_cpp.llama_vocab_bos(self._handle)) if wanted else None

    def special_text(self, which: str) -> str:
        """The text of the `bos` or `eos` token, for chat templates; empty if the model has none."""
        token = getattr(llama_cpp, f"llama_vocab_{which}")(self._handle)
        return self._bytes[token].decode(errors="replace") if 0 <= token < self.size else ""

    # --- grammar -----------------------------------------------------------------------------------------------

    def build_tokenizer(self) -> None:
        """Does now what else the first `matcher` would do: 0.3 s for 49k tokens, 2 s for 262k."""
        self._tokenizer  # noqa: B018

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        import warnings

        from llguidance.llamacpp import lltokenizer_from_vocab

        with (
            warnings.catch_warnings()
        ):  # it calls a function that llama-cpp-python calls deprecated, once for each token
            warnings.simplefilter("ignore", DeprecationWarning)
            return lltokenizer_from_vocab(self._handle, slices=TEXT_SLICES)

    def matcher(self, constraint: Constraint) -> LLMatcher:
        """A fresh matcher. Raises GrammarError: llguidance itself only marks the object."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, constraint.lark, log_level=0)
        if matcher.is_error():
            raise GrammarError(f"the grammar does not compile: {matcher.get_error()}")
        return matcher

    def mask(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """Which tokens the grammar allows next. Drops the interpreter's lock while it is computed."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            raise GrammarError(f"the grammar's matcher failed: {matcher.get_error()}")
        return np.unpackbits(bits, bitorder="little")[: self.size].view(np.bool_)

    @cached_property
    def plain_chars(self) -> NDArray[np.int64]:
        """For each token: how many characters it spells, if they are whole and stand for themselves in a text; else 0."""
        return np.array([_plain_chars(piece) for piece in self._bytes], dtype=np.int64)


def _plain_chars(piece: bytes) -> int:
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return 0
    return len(text) if _PLAIN.fullmatch(text) else 0
