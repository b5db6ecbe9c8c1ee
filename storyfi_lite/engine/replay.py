"""Replays an answer: what a validator that has the file measures of it, in one prefill (docs/proof.md).

Runs the very rule that generated (engine/rule.py). Says how far the given tokens are from the ones that this file, seed
and grammar choose; what that proves is for validator/proof.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from storyfi_lite.engine.in_step import in_step
from storyfi_lite.engine.model import Context, Feed, Model
from storyfi_lite.engine.prompt import Conversation
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import EngineError, GrammarError

MAX_MARGIN = 5.0  # nats; one position must not decide a mean
MAX_TOGETHER = 64  # answers on one context
SPARE_CELLS = 8


@dataclass(frozen=True)
class Replay:
    """Holds what a replay found. `leads`: for each position that was sampled, the given token's score above that of the best
    other, in nats: negative where this file would have chosen that other, infinite where no other could win. `refuted` says why
    the tokens cannot come from this rule at all, if so."""

    leads: tuple[float, ...]
    refuted: str | None = None

    @cached_property
    def margins(self) -> tuple[float, ...]:
        """Return how far the given tokens lie behind the chosen ones, 0 where they are the same, clipped at MAX_MARGIN; of the
        free positions, where more than one token could win."""
        return tuple(min(max(0.0, -lead), MAX_MARGIN) for lead in self.leads if lead < math.inf)

    @property
    def mean_margin(self) -> float:
        return float(np.mean(self.margins)) if self.margins else 0.0

    @property
    def match_rate(self) -> float:
        return self.margins.count(0.0) / len(self.margins) if self.margins else 0.0


class GivenAnswer:
    """Holds an answer to replay: its tokens, the conversation that asked for it, and a fresh rule."""

    def __init__(self, rule: ChoiceRule, conversation: Conversation, tokens: list[int]) -> None:
        self.opening = list(conversation.opening)
        self.fed, before = conversation.with_answer(tokens, rule.end)
        # where the next token is chosen; after its end an answer has no such place
        self.rows = list(dict.fromkeys(before))
        self.judge = _Judge(rule, tokens)


class Replayer:
    """Replays answers on one context, whose sequences have all cells together: as many answers at once as there are cells for, one
    after the other in batches that are full, so that the weights are read as seldom as can be. What their prompts share is
    computed once, for the next ones too: the answers of a validator's round all answer one request."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._held: list[int] = []  # the tokens that all sequences begin with

    def replay(self, rule: ChoiceRule, conversation: Conversation, tokens: list[int]) -> Replay:
        """Replays one answer. Raises EngineError if llama.cpp fails."""
        return next(self.replay_all([GivenAnswer(rule, conversation, tokens)]))[1]

    def replay_all(self, answers: Sequence[GivenAnswer]) -> Iterator[tuple[int, Replay]]:
        """Replays all answers, those to one request together; yields each one's place in `answers` with what was found. The
        context has cells for the longest. Raises EngineError if llama.cpp fails."""
        for places in _groups(answers, range(len(answers)), self._context.n_cells, self._context.n_sequences):
            self._replay_together([answers[at] for at in places])
            yield from ((at, answers[at].judge.result()) for at in places)

    def _replay_together(self, answers: list[GivenAnswer]) -> None:
        shared = _shared(answers)
        kept = self._keep(shared)
        everyone = Feed(0, kept, shared[kept:], [], self._context.n_sequences)
        own = [
            Feed(at, len(shared), one.fed[len(shared) :], [row - len(shared) for row in one.rows])
            for at, one in enumerate(answers)
        ]
        self._held = []  # nothing is sure while it runs
        for feeds in _batches([everyone, *own], self._context.n_batch):
            found = self._context.decode(feeds)
            for feed, logits in zip(feeds, found, strict=True):
                for row in logits:
                    answers[feed.sequence].judge.look(row)
            if all(one.judge.refuted for one in answers):
                return
        self._held = shared

    def _keep(self, shared: list[int]) -> int:
        """Drop all cells but those that hold the beginning of `shared`; return how many stay in each sequence."""
        kept = _common([self._held, shared])
        for sequence in range(self._context.n_sequences):
            if not self._context.forget(sequence, kept):
                for every in range(self._context.n_sequences):
                    self._context.forget(every)
                return 0
        return kept


class StepReplayer:
    """Replays answers with weights that stay in their file: in as many contexts at once as were planned, which go through the
    layers in step, so that the file is read as seldom as can be."""

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        self._model, self._settings = model, settings

    def replay_all(self, answers: Sequence[GivenAnswer]) -> Iterator[tuple[int, Replay]]:
        """Replay as Replayer does. Answers for which one batch has too little room come one after the other: while a context
        computes a second batch, it still holds what the first one's logits took."""
        planned = self._settings
        sizes = [len(one.fed) + SPARE_CELLS for one in answers]
        short = [at for at, size in enumerate(sizes) if size <= planned.n_batch]
        long = [at for at, size in enumerate(sizes) if size > planned.n_batch]
        all_cells = max(planned.n_ctx * planned.n_contexts, *sizes)
        for places, cells, at_once in ((short, planned.n_batch, planned.n_contexts), (long, all_cells, 1)):
            groups = list(_groups(answers, places, cells, MAX_TOGETHER))
            for start in range(0, len(groups), at_once):
                works = [partial(self._replay, answers, group, cells) for group in groups[start : start + at_once]]
                for found in in_step(works):
                    yield from found

    def _replay(
        self, answers: Sequence[GivenAnswer], places: list[int], cells: int, after_layer: Callable[[], None]
    ) -> list[tuple[int, Replay]]:
        settings = replace(self._settings, n_ctx=cells)
        with closing(Context(self._model, settings, len(places), after_layer=after_layer)) as context:
            found = Replayer(context).replay_all([answers[at] for at in places])
            return [(places[which], replay) for which, replay in found]


def _groups(answers: Sequence[GivenAnswer], places: Sequence[int], cells: int, most: int) -> Iterator[list[int]]:
    """Group these places of the answers, those to one request together: as many at a time as so many cells hold, at least one."""
    order = sorted(places, key=lambda at: answers[at].opening)
    while order:
        count = 1
        while count < min(len(order), most):
            group = [answers[at] for at in order[: count + 1]]
            shared = len(_shared(group))
            if shared + sum(len(one.fed) - shared for one in group) > cells:
                break
            count += 1
        yield order[:count]
        order = order[count:]


def _shared(answers: list[GivenAnswer]) -> list[int]:
    """Return what all prompts begin with, the last token left out: it predicts an answer's first one."""
    openings = [one.opening[:-1] for one in answers]
    return openings[0][: _common(openings)]


def _common(lists: list[list[int]]) -> int:
    """Count the tokens that all begin with."""
    columns = zip(*lists, strict=False)
    return next((at for at, column in enumerate(columns) if len(set(column)) > 1), min(map(len, lists)))


def _batches(feeds: list[Feed], n_batch: int) -> Iterator[list[Feed]]:
    """Cut what is to be fed into batches of at most so many tokens."""
    batch: list[Feed] = []
    room = n_batch
    for feed in feeds:
        done = 0
        while done < len(feed.tokens):
            part = feed.tokens[done : done + room]
            rows = [row - done for row in feed.rows if done <= row < done + len(part)]
            batch.append(Feed(feed.sequence, feed.start + done, part, rows, feed.shared_by))
            done, room = done + len(part), room - len(part)
            if not room:
                yield batch
                batch, room = [], n_batch
    if batch:
        yield batch


class _Judge:
    def __init__(self, rule: ChoiceRule, tokens: list[int]) -> None:
        self._rule, self._tokens = rule, tokens
        self._position = 0
        self._leads: list[float] = []
        self.refuted: str | None = None

    def look(self, logits: np.ndarray) -> None:
        """Compare position by position; those that the rule forced are only compared."""
        if self.refuted:
            return
        position, self._position = self._position, self._position + 1
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

    def result(self) -> Replay:
        """Return what was found, once all logits were looked at."""
        if not self.refuted:
            if not self._rule.done:
                self._take_forced(len(self._rule.tokens))
            if not self._rule.done:
                self.refuted = "the answer stops before its end"
            elif self._position < len(self._tokens):
                self.refuted = f"the answer goes on after its end, at token {self._position}"
        return Replay(tuple(self._leads), self.refuted)
