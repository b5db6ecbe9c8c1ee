"""The choice rule of one answer: grammar, budget, repetition and sampler together, token by token.

The engine asks it for the next token; the replay asks it what it would have chosen and how far the given token is from
that. Both run this code, so they agree. Knows logits and token ids; nothing of batches, slots or llama.cpp contexts.

At position i of an answer with a budget of B tokens, in this order:
  1. tokens that the grammar forces are taken as they are;
  2. the logits are lowered by the repetition penalty;
  3. a token is allowed if the grammar's mask has it and, after it, the rest can surely be closed within the budget:
     need_tokens(after) <= B - i - 1 (grammar/cursor.py);
  4. the allowed token with the highest score wins; the lower id on a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storyfi_lite.engine.sampler import Floats, Ids, Repetition, lowest_logit, scores
from storyfi_lite.engine.settings import SamplingParams
from storyfi_lite.errors import BadInput, GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from storyfi_lite.engine.vocabulary import Vocabulary
    from storyfi_lite.grammar import Constraint

_LOOK_TOKENS, _LOOK_NATS = 24, 12.0  # asking for so many tokens costs less than one mask
_SAFE_RISE = 8  # no token raises need_tokens above the start's by more: an opened array item is less than the whole


@dataclass(frozen=True)
class Scored:
    """A given token against the rule. `margin`: best score minus the given one's, in nats; None if the token is not
    allowed at all. `free`: whether another token could have won."""

    margin: float | None
    match: bool
    free: bool


class ChoiceRule:
    """State of one answer. Raises BadInput at once if the budget is below what closes an answer."""

    def __init__(self, vocabulary: Vocabulary, constraint: Constraint, params: SamplingParams, max_tokens: int) -> None:
        self.tokens: list[int] = []
        self.sampled_positions: list[int] = []
        self._vocabulary = vocabulary
        self._params = params
        self._max_tokens = max_tokens
        self._matcher: LLMatcher = vocabulary.matcher(constraint)
        self._cursor = constraint.cursor()
        self._repetition = Repetition(params)
        if max_tokens < self._cursor.need_tokens:
            raise BadInput(
                f"max_tokens is {max_tokens}; this answer needs at least {self._cursor.need_tokens} to close"
            )
        self._largest_need = self._cursor.need_tokens + _SAFE_RISE

    @property
    def done(self) -> bool:
        return self._cursor.done

    @property
    def text(self) -> str:
        return self._vocabulary.text_of(self.tokens)

    def force(self) -> list[int]:
        """Takes and returns the tokens that the grammar forces now."""
        inside_text = self._cursor.in_text and self._cursor.text_room_chars[1] > 0
        forced = [] if inside_text or self.done else self._matcher.compute_ff_tokens()
        for token in forced:
            self._take(token)
        return forced

    def choose(self, logits: Floats) -> int:
        """Takes and returns the next token. Changes `logits` (float32, one per token of the vocabulary)."""
        self._repetition.apply(logits)
        token = self._select(logits)
        self.sampled_positions.append(len(self.tokens))
        self._take(token)
        return token

    def score(self, logits: Floats, given: int) -> Scored:
        """Takes `given`, whatever the rule would have chosen; a token that is not allowed is not taken."""
        self._repetition.apply(logits)
        ranked, best_allowed = self._ranked(logits)
        best = next(ranked)
        free = next(ranked, None) is not None
        result = Scored(None, False, free)
        if self._allowed(given):
            pair = np.array([best, given])
            both = scores(logits, pair, best_allowed, len(self.tokens), self._params)
            result = Scored(max(0.0, float(both[0] - both[1])), best == given, free)
        self.sampled_positions.append(len(self.tokens))
        if result.margin is not None:
            self._take(given)
        return result

    def _take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise GrammarError(f"the grammar's matcher failed: {self._matcher.get_error()}")
        self._cursor.advance(self._vocabulary.bytes_of(token))
        self._repetition.append(token)
        self.tokens.append(token)

    # --- which token -------------------------------------------------------------------------------------------

    def _select(self, logits: Floats) -> int:
        return next(self._ranked(logits)[0])

    def _ranked(self, logits: Floats) -> tuple[Iterator[int], float]:
        """The allowed tokens that can win, best score first, and the best allowed logit. What the full mask would give,
        mostly without it: where the best allowed token is among the likeliest, it is known without a mask what can win,
        and only that is asked for, as far as the caller reads."""
        best = self._best_allowed(logits)
        if best is None:
            kept, best_allowed = self._candidates(logits)
            return self._by_score(logits, kept, best_allowed), best_allowed
        best_allowed = float(logits[best])
        near = np.flatnonzero(logits >= lowest_logit(best_allowed, self._params))
        near = near[logits[near] <= best_allowed]  # what is higher was refused
        order = self._by_score(logits, near, best_allowed)
        return (token for token in order if token == best or self._allowed(token)), best_allowed

    def _best_allowed(self, logits: Floats) -> int | None:
        """The allowed token of the highest logit, if a few questions to the grammar find it."""
        top = int(logits.argmax())
        if self._allowed(top):
            return top
        near = np.flatnonzero(logits >= logits[top] - _LOOK_NATS)
        likeliest = islice(_best_first(logits[near]), 1, _LOOK_TOKENS)
        return next((token for at in likeliest if self._allowed(token := int(near[at]))), None)

    def _by_score(self, logits: Floats, tokens: Ids, best_allowed: float) -> Iterator[int]:
        if len(tokens) == 1:
            return iter((int(tokens[0]),))
        values = scores(logits, tokens, best_allowed, len(self.tokens), self._params)
        return (int(tokens[at]) for at in _best_first(values))

    def _candidates(self, logits: Floats) -> tuple[Ids, float]:
        """From the full mask: the allowed tokens that can win, ascending, and the best allowed logit."""
        allowed = self._vocabulary.mask(self._matcher)
        unsure = self._take_unsure(allowed)
        best = float(np.where(allowed, logits, -np.inf).max())
        for token in unsure[np.argsort(-logits[unsure], kind="stable")]:
            if logits[token] < lowest_logit(best, self._params):
                break
            if self._closes_after(int(token)):
                allowed[token] = True
                best = max(best, float(logits[token]))
        if best == -np.inf:
            raise GrammarError("no token is allowed here")
        return np.flatnonzero(allowed & (logits >= lowest_logit(best, self._params))), best

    def _allowed(self, token: int) -> bool:
        if self._matcher.validate_tokens([token]) != 1:
            return False
        return self._budget_is_wide or self._closes_after(token)

    # --- the budget --------------------------------------------------------------------------------------------

    @property
    def _remaining(self) -> int:
        return self._max_tokens - len(self.tokens)

    @property
    def _budget_is_wide(self) -> bool:
        return self._remaining > self._largest_need

    def _closes_after(self, token: int) -> bool:
        after = self._cursor.copy()
        try:
            after.advance(self._vocabulary.bytes_of(token))
        except GrammarError:
            return False
        return after.need_tokens <= self._remaining - 1

    def _take_unsure(self, allowed: NDArray[np.bool_]) -> Ids:
        """Clears in the mask what the budget forbids, and returns, cleared as well, what must be looked at one by one.
        Tokens of whole plain characters are most of a text's mask: they are settled together."""
        if self._budget_is_wide:
            return np.empty(0, dtype=np.int64)
        if not self._cursor.in_text:
            unsure = np.flatnonzero(allowed)
            allowed[:] = False
            return unsure
        chars = self._vocabulary.plain_chars
        required, _ = self._cursor.text_room_chars
        need = self._cursor.need_tokens - np.minimum(chars, required)
        unsure = np.flatnonzero(allowed & (chars == 0))
        allowed &= (chars > 0) & (need <= self._remaining - 1)
        return unsure


def _best_first(values: NDArray[Any]) -> Iterator[int]:
    """Places in order of falling value, the lower place on a tie. Sorts a few at first: seldom are more read."""
    rest = np.arange(len(values))
    if len(values) > 4 * _LOOK_TOKENS:
        least = np.partition(values, -_LOOK_TOKENS)[-_LOOK_TOKENS]
        head, rest = np.flatnonzero(values >= least), np.flatnonzero(values < least)
        yield from head[np.argsort(-values[head], kind="stable")]
    yield from rest[np.argsort(-values[rest], kind="stable")]
