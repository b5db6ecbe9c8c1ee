"""Finds the tokens that go on with a name which the request brings and the text has begun: they are free of all that lowers repeats, or
the people of a story would not keep their names. Knows text and the vocabulary; no logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from storyfi_lite.engine.sampler import Ids
from storyfi_lite.grammar.prose import TAIL_CHARS, in_word

if TYPE_CHECKING:
    from storyfi_lite.engine.vocabulary import Vocabulary


class Names:
    """Holds the names. They are told from other words by their text, whatever tokens spell it."""

    def __init__(self, vocabulary: Vocabulary, names: Iterable[str]) -> None:
        self._vocabulary = vocabulary
        self._names = tuple(names)

    def going_on(self, text: str) -> Ids:
        """Return the tokens that go on with a name, if one is begun where the text ends. `text`: at least its last TAIL_CHARS."""
        begun = {rest[:end] for rest in self._rests(text) for end in range(1, len(rest) + 1)}
        return self._vocabulary.that_spell(begun)

    def _rests(self, text: str) -> Iterator[str]:
        for name in self._names:
            for said in range(1, len(name)):
                begun = name[:said][-TAIL_CHARS:]
                inside_another = in_word(name[0]) and in_word(text[: -len(begun)][-1:] or " ")
                if text.endswith(begun) and not inside_another:
                    yield name[said:]
