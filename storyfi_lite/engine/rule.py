"""Chooses the tokens of one answer: script, budget, repetition and sampler together, token by token.

The engine asks it for the next token; the replay asks it what it would have chosen and how far the given token is from
that. Both run this code, so they agree. Knows logits and token ids; nothing of batches, slots or llama.cpp contexts.

An answer is the tokens of all turns; each turn ends with the vocabulary's end token, which is not decoded: what comes next
is the end of the turn as the chat template spells it, and the next turn's words. At each position, in this order:
  1. labels, and an end where nothing else may come, are taken as they are;
  2. what was said before loses (sampler.py), and so do what our instructions say (our_words.py) and, in Chinese and the like, Latin
     words that the request does not bring; all ways to end a line count as one; an end gains `pressure`;
  3. a token is allowed if the turn's rules have it (grammar/prose.py) and, after it, the rest can surely be closed within the
     turn's budget: need_tokens(after) <= what remains;
  4. the allowed token with the highest score wins; the lower id on a tie.

A model that may think (Script.think_tokens) does so before its first turn, in any tokens, and at most in half of what the answer's
budget holds beyond all needs; the thought ends like a turn, and repeating it in the answer is not penalized.

A turn's budget is what it needs, and of what the answer's budget holds beyond all needs its share: this turn's longest text
over the longest texts of this and all later turns. What one turn leaves is the later ones'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storyfi_lite.engine.names import Names
from storyfi_lite.engine.our_words import NATS, OurWords
from storyfi_lite.engine.prompt import Conversation
from storyfi_lite.engine.repetition import Repetition
from storyfi_lite.engine.sampler import Floats, Ids, lowest_logit, scores
from storyfi_lite.engine.settings import SamplingParams
from storyfi_lite.errors import BadInput, GrammarError
from storyfi_lite.grammar.prose import NAMES_ONLY, Cursor, bound_tokens, need_tokens
from storyfi_lite.grammar.script import Script
from storyfi_lite.grammar.thought import Thought

if TYPE_CHECKING:
    from storyfi_lite.engine.vocabulary import Vocabulary

_LOOK_TOKENS = 24


class ChoiceRule:
    """Holds the state of one answer. `fed` is all that has to be decoded so far: prompt, answer, and the turns between. Raises
    BadInput at once if the budget is below what closes an answer."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        conversation: Conversation,
        script: Script,
        params: SamplingParams,
        max_tokens: int,
    ) -> None:
        if max_tokens < script.min_tokens_bound:
            raise BadInput(f"max_tokens is {max_tokens}; this answer needs at least {script.min_tokens_bound} to close")
        self.tokens: list[int] = []
        self.fed: list[int] = list(conversation.opening)
        self.sampled_positions: list[int] = []
        self.piece = 0
        self.done = False
        self._vocabulary = vocabulary
        self._conversation = conversation
        self._script = script
        self._params = params
        self._max_tokens = max_tokens
        self._ends = 0  # of turns, and of the thought
        ours = (script.system, *(piece.ask for piece in script.pieces))
        self._our_words = OurWords(vocabulary, ours, script.material)
        self._names = Names(vocabulary, script.names)
        names_only = NAMES_ONLY in script.alphabets
        self._unasked = vocabulary.latin_but(script.material) if names_only else np.empty(0, dtype=np.int64)
        self._begin_thought() if script.think_tokens else self._begin_turn()

    def _begin_thought(self) -> None:
        self._repetition = Repetition(self._params)
        spare = self._max_tokens - self._script.min_tokens_bound
        most = min(self._script.think_tokens, spare // 2)
        self._cursor: Cursor | Thought = Thought(most, self._conversation.thought_mark)
        self._turn_ends_at = most + 1

    def _begin_turn(self) -> None:
        if not self.piece:
            spelled = [self._vocabulary.tokenize(piece.ask, special=False) for piece in self._script.pieces]
            given = self._vocabulary.tokenize(self._script.material, special=False)
            self._repetition = Repetition(self._params, given, spelled)
        pieces = self._script.pieces[self.piece :]
        self._cursor = Cursor(pieces[0].rows, self._script.alphabets)
        needs = [need_tokens(piece.rows) for piece in pieces]
        longest = [bound_tokens(piece.rows) for piece in pieces]
        spare = self._max_tokens - len(self.tokens) - sum(needs)
        self._turn_ends_at = len(self.tokens) + needs[0] + spare * longest[0] // sum(longest)

    @property
    def end(self) -> int:
        """Return the token that ends a turn."""
        return self._vocabulary.end

    @property
    def text(self) -> str:
        """Return the answer's JSON. Raises GrammarError before its end."""
        return answer_of(self._script, self._vocabulary, self.tokens)

    def force(self) -> list[int]:
        """Takes what costs no choice; returns what must be decoded because of it."""
        before = len(self.fed)
        while not self.done:
            if self._cursor.literal:
                for token in self._vocabulary.spelled(self._cursor.literal):
                    self._take(token)
            elif self._cursor.must_end:
                self._take(self._end)
            else:
                break
        return self.fed[before:]

    def choose(self, logits: Floats) -> list[int]:
        """Takes the next token and what it forces; returns what must be decoded before the next choice. Changes `logits`
        (float32, one per token of the vocabulary)."""
        before = len(self.fed)
        self._adjust(logits)
        token = next(self._ranked(logits)[0])
        self.sampled_positions.append(len(self.tokens))
        self._take(token)
        self.force()
        return self.fed[before:]

    def score(self, logits: Floats, given: int) -> float | None:
        """Takes `given`, whatever the rule would have chosen. Returns its score above that of the best other token, in nats:
        negative where that one would have been chosen, infinite where no other could win. None, and nothing is taken, if
        it is not allowed at all."""
        self._adjust(logits)
        ranked, best_allowed = self._ranked(logits)
        self.sampled_positions.append(len(self.tokens))
        if not self._allowed(given):
            return None
        rival = next((token for token in ranked if token != given), None)
        lead = math.inf
        if rival is not None:
            pair = np.array([given, rival])
            both = scores(logits, pair, best_allowed, len(self.tokens), self._params)
            lead = float(both[0] - both[1])
        self._take(given)
        return lead

    def _take(self, token: int) -> None:
        of_label = bool(self._cursor.literal)
        cursor = self._cursor
        word = self._vocabulary.word(token, cursor.after_letter) if isinstance(cursor, Cursor) else None
        self._step(self._cursor, token)
        if of_label or token == self.end:
            self._repetition.cut()
            self._our_words.cut()
        else:
            self._repetition.append(token, word)
            self._our_words.append(token)
        self.tokens.append(token)
        if not self._cursor.done:
            self.fed.append(token)
            return
        self._ends += 1
        self.piece += not isinstance(self._cursor, Thought)
        self.done = self.piece == len(self._script.pieces)
        if not self.done:
            self.fed += self._conversation.bridges[self._ends - 1]
            self._begin_turn()

    def _step(self, cursor: Cursor | Thought, token: int) -> None:
        if token == self._vocabulary.end:
            cursor.end()
        else:
            cursor.advance(self._vocabulary.writes[token])

    # --- which token -------------------------------------------------------------------------------------------

    @property
    def _end(self) -> int:
        """Return the token that ends the row."""
        return self._vocabulary.end if self._cursor.last_row else self._vocabulary.line_feed

    def _adjust(self, logits: Floats) -> None:
        """Lower repeats; count all ways to end a line as one, the likeliest of them; raise ends near the maximum."""
        words, cursor = self._vocabulary, self._cursor
        if isinstance(cursor, Cursor):
            self._lower_what_was_said(logits, cursor)
        else:
            self._repetition.apply(logits, of_prose=False)
            marks = words.marks(self._conversation.thought_mark)
            logits[self._end] = logits[[*words.turn_ends, *marks]].max()
            return
        if cursor.has_paragraphs:
            logits[self._end] = logits[words.turn_ends].max()
        else:
            self._gather_ends(logits, cursor)
            np.maximum.at(logits, words.before_line_feed[1], logits[words.before_line_feed[0]])
        pressure = cursor.pressure(self._remaining - cursor.need_tokens)
        if pressure:
            logits[words.sentence_ends if cursor.is_prose else self._label_ends(cursor)] += np.float32(pressure)

    def _lower_what_was_said(self, logits: Floats, cursor: Cursor) -> None:
        """Lower repeats, but nothing that goes on with a name of the request's; our words, and words that nobody asked for."""
        words, names = self._vocabulary, self._names.going_on(cursor.tail)
        of_names = logits[names]
        self._repetition.apply(logits, cursor.is_prose, free=words.inside_names if cursor.in_name else None)
        logits[names] = of_names
        if cursor.in_endless_word:
            logits[words.inside_words] -= np.float32(NATS)
        self._our_words.apply(logits)
        logits[self._unasked] -= np.float32(NATS)

    def _gather_ends(self, logits: Floats, cursor: Cursor) -> None:
        """Give the end that the row takes here the logit of the likeliest sign by which a model ends such a text. After a name, a
        comma and the like end it too: they lead to the next item of a list, and in a list that has too few yet, so does the end."""
        words = self._vocabulary
        if cursor.is_prose:
            logits[self._end] = logits[words.line_ends].max()
            return
        ends, pauses = logits[words.word_ends].max(), logits[words.pauses].max()
        separator = self._label_ends(cursor)[1:]
        logits[separator] = max(pauses, ends) if cursor.wants_items else pauses
        logits[self._end] = ends if separator else max(ends, pauses)

    def _label_ends(self, cursor: Cursor) -> list[int]:
        separator = cursor.separator
        return [self._end, self._vocabulary.spelled(separator)[0]] if separator else [self._end]

    def _ranked(self, logits: Floats) -> tuple[Iterator[int], float]:
        """Yield the allowed tokens that can win, best score first, and the best allowed logit. Once the best allowed token is
        known, it is known what can win, and only that is asked for, as far as the caller reads."""
        best = self._best_allowed(logits)
        best_allowed = float(logits[best])
        near = np.flatnonzero(logits >= lowest_logit(best_allowed, self._params))
        near = near[logits[near] <= best_allowed]  # what is higher was refused
        order = self._by_score(logits, near, best_allowed)
        return (token for token in order if token == best or self._allowed(token)), best_allowed

    def _best_allowed(self, logits: Floats) -> int:
        """Return the allowed token of the highest logit, mostly among the first few."""
        top = int(logits.argmax())
        if self._allowed(top):
            return top
        for token in _best_first(logits):
            if self._allowed(int(token)):
                return int(token)
        raise GrammarError("no token is allowed here")

    def _by_score(self, logits: Floats, tokens: Ids, best_allowed: float) -> Iterator[int]:
        if len(tokens) == 1:
            return iter((int(tokens[0]),))
        values = scores(logits, tokens, best_allowed, len(self.tokens), self._params)
        return (int(tokens[at]) for at in _best_first(values))

    @property
    def _remaining(self) -> int:
        return self._turn_ends_at - len(self.tokens)

    def _allowed(self, token: int) -> bool:
        after = self._cursor.copy()
        try:
            self._step(after, token)
        except GrammarError:
            return False
        return after.need_tokens <= self._remaining - 1


def answer_of(script: Script, vocabulary: Vocabulary, tokens: Sequence[int]) -> str:
    """Return the JSON that these tokens say. Raises GrammarError."""
    tokens = tokens[thought_length(script, vocabulary, tokens) :]
    texts: list[str] = []
    turn: list[int] = []
    for token in tokens:
        if token == vocabulary.end:
            texts.append(vocabulary.text_of(turn))
            turn = []
        else:
            turn.append(token)
    if turn:
        raise GrammarError("the last turn has no end")
    return script.answer(texts)


def thought_length(script: Script, vocabulary: Vocabulary, tokens: Sequence[int]) -> int:
    """Count how many of an answer's tokens are the thought before it, its end included. Raises GrammarError if it has none."""
    if not script.think_tokens:
        return 0
    length = next((at for at, token in enumerate(tokens) if token == vocabulary.end), None)
    if length is None or length > script.think_tokens:
        raise GrammarError("the thought has no end")
    return length + 1


def _best_first(values: NDArray[Any]) -> Iterator[int]:
    """Places in order of falling value, the lower place on a tie. Sorts a few at first: seldom are more read."""
    rest = np.arange(len(values))
    if len(values) > 4 * _LOOK_TOKENS:
        least = np.partition(values, -_LOOK_TOKENS)[-_LOOK_TOKENS]
        head, rest = np.flatnonzero(values >= least), np.flatnonzero(values < least)
        yield from head[np.argsort(-values[head], kind="stable")]
    yield from rest[np.argsort(-values[rest], kind="stable")]
