"""The replay: what a validator that has the file measures of an answer, in one prefill (docs/proof.md).

Runs the very rule that generated (engine/rule.py). Says how far the given tokens are from the ones that this file, seed
and grammar choose; what that proves is for validator/proof.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from storyfi_lite.engine.model import Context, Feed
from storyfi_lite.engine.prompt import Conversation
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.sampler import Floats
from storyfi_lite.errors import EngineError, GrammarError

MAX_MARGIN = 5.0  # nats; one position must not decide a mean


@dataclass(frozen=True)
class Replay:
    """`leads`: for each position that was sampled, the given token's score above that of the best other, in nats: negative
    where this file would have chosen that other, infinite where no other could win. `refuted` says why the tokens cannot
    come from this rule at all, if so."""

    leads: tuple[float, ...]
    refuted: str | None = None

    @cached_property
    def margins(self) -> tuple[float, ...]:
        """How far the given tokens lie behind the chosen ones, 0 where they are the same, clipped at MAX_MARGIN; of the
        free positions, where more than one token could win."""
        return tuple(min(max(0.0, -lead), MAX_MARGIN) for lead in self.leads if lead < math.inf)

    @property
    def mean_margin(self) -> float:
        return float(np.mean(self.margins)) if self.margins else 0.0

    @property
    def match_rate(self) -> float:
        return self.margins.count(0.0) / len(self.margins) if self.margins else 0.0


class Replayer:
    """Replays answers on sequence 0 of one context. What an answer's prompt shares with the last one's is not computed
    again: the answers of a validator's round all answer one request."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._held: list[int] = []  # what the sequence's cells hold

    def replay(self, rule: ChoiceRule, conversation: Conversation, tokens: list[int]) -> Replay:
        """Prefills the conversation with the answer's turns in it, and scores each position that was sampled. `rule` is a
        fresh one. The last token's own logits are not needed. Raises EngineError if llama.cpp fails."""
        judge = _Judge(rule, tokens)
        fed, before = conversation.with_answer(tokens, rule.end)
        start = self._keep(list(conversation.opening))
        position = 0
        while position < len(before) and not judge.refuted:
            chunk = fed[start : start + self._context.n_batch]
            count = sum(at < start + len(chunk) for at in before[position:])
            rows = [at - start for at in before[position : position + count]]
            for logits in self._feed(start, chunk, rows):
                judge.look(position, logits)
                if judge.refuted:
                    return judge.result()
                position += 1
            start += len(chunk)
        judge.end()
        return judge.result()

    def _keep(self, prompt: list[int]) -> int:
        """Drops all cells but those that hold the prompt's beginning, its last token excepted; says how many stay."""
        shared = next((at for at, (old, new) in enumerate(zip(self._held, prompt, strict=False)) if old != new), None)
        kept = min(len(self._held), len(prompt) - 1) if shared is None else min(shared, len(prompt) - 1)
        if not self._context.forget(0, kept):
            self._context.forget(0)
            kept = 0
        self._held = self._held[:kept]
        return kept

    def _feed(self, start: int, chunk: list[int], rows: list[int]) -> list[Floats]:
        held, self._held = self._held, []  # nothing is sure while it runs
        logits = self._context.decode([Feed(0, start, chunk, rows)])[0]
        self._held = held + chunk
        return logits


class _Judge:
    def __init__(self, rule: ChoiceRule, tokens: list[int]) -> None:
        self._rule, self._tokens = rule, tokens
        self._leads: list[float] = []
        self.refuted: str | None = None

    def look(self, position: int, logits: np.ndarray) -> None:
        """Position by position; those that the rule forced are only compared."""
        try:
            if position >= len(self._rule.tokens):
                self._take_forced(position)
            if self.refuted or position < len(self._rule.tokens):
                return
            if self._rule.done:
                self.refuted = f"the answer goes on after its end, at token {position}"
                return
            lead = self._rule.score(logits, self._tokens[position])
        except (GrammarError, EngineError) as error:
            self.refuted = f"token {position}: {error}"
            return
        if lead is None:
            self.refuted = f"token {position} is not allowed by the grammar or the budget"
        else:
            self._leads.append(lead)

    def _take_forced(self, position: int) -> None:
        self._rule.force()
        forced = self._rule.tokens[position:]
        if forced and self._tokens[position : position + len(forced)] != forced:
            self.refuted = f"token {position}: the grammar forces other tokens"

    def end(self) -> None:
        if not self.refuted:
            if not self._rule.done:
                self._take_forced(len(self._rule.tokens))
            if not self._rule.done:
                self.refuted = "the answer stops before its end"

    def result(self) -> Replay:
        return Replay(tuple(self._leads), self.refuted)
