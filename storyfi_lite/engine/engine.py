"""Writes the answers to many requests at once with one llama context, on one thread that owns it.

    submit(job) -> Future      any thread; bounded queue, Busy at once when a job cannot be queued or be in time
    the engine's thread        each step: admit jobs to free slots, fill one batch (a token or more for each running
                               slot, prompt chunks in what room is left), decode, choose, finish

It knows scripts (grammar/script.py) and deadlines; nothing of HTTP, hotkeys, the chain, or what the single tasks ask.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from storyfi_lite.engine.model import Context, Feed, Model
from storyfi_lite.engine.prompt import Conversation
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.sampler import Floats
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.errors import BadInput, Busy, DeadlineExceeded, EngineError, LiteError
from storyfi_lite.futures import settle
from storyfi_lite.grammar.script import Script

log = logging.getLogger(__name__)

MAX_QUEUED = 64
MAX_FAILURES = 3  # context restarts without a finished job between them, then the engine is dead
PROMPT_CHUNK_TOKENS = 64  # of joining prompts in one step while other slots write: their streams must not stall
FORCED_RUN_TOKENS = 8  # a longer run between two choices (the next turn's words) is fed like a joining prompt
MIN_SHARED_TOKENS = 32  # a common beginning shorter than this costs less to compute than to copy
_SPEED_MEMORY = 0.7  # weight of the past in the running means of tokens a second and of lengths


@dataclass(frozen=True)
class EngineJob:
    """Holds one request to the engine. `max_tokens` None: the longest that the grammar allows and the context holds.
    `deadline_s` on time.monotonic()'s clock. Higher `priority` first, then the older. `aim_s`: if `max_tokens` is None, the
    budget is what the engine writes in so many seconds at the speed it has measured. `planned`: the caller has reckoned that it
    will be in time, so the engine's own, coarser estimate refuses nothing. `on_tokens` is told of the answer's tokens as they
    are chosen, on the engine's thread, which waits for it meanwhile."""

    script: Script
    sampling: SamplingParams
    deadline_s: float
    max_tokens: int | None = None
    priority: float = 0.0
    aim_s: float | None = None
    planned: bool = False
    on_tokens: Callable[[Sequence[int]], None] | None = None


@dataclass(frozen=True)
class Generation:
    """Holds a whole answer: its JSON, and the token ids of all turns that it was put together from, each with its end token."""

    text: str
    conversation: Conversation
    tokens: tuple[int, ...]
    max_tokens: int
    queued_s: float
    first_token_s: float  # from its slot to its first token
    total_s: float  # from submit to the end


@dataclass(frozen=True)
class EngineHealth:
    alive: bool
    detail: str
    running: int
    queued: int
    tokens_written: int  # of all answers so far, each counted when it is decoded


@dataclass
class _Request:
    job: EngineJob
    conversation: Conversation
    rule: ChoiceRule
    max_tokens: int
    need_tokens: int  # surely close an answer: its length in characters, nearly
    future: Future[Generation]
    submitted_s: float
    started_s: float = 0.0
    first_token_s: float = 0.0


@dataclass
class _Slot:
    """Holds one sequence of the context. `cached` are the tokens whose cells it holds, `feed` those still to be decoded."""

    sequence: int
    request: _Request | None = None
    cached: list[int] = field(default_factory=list)
    feed: list[int] = field(default_factory=list)
    untouched: bool = False  # nothing of this request was decoded yet: a beginning may still be copied from a neighbour


class Engine:
    """Loads the model at once; raises BadInput, DoesNotFit or EngineError. Close it, or use it as a context manager."""

    def __init__(self, path: Path, settings: EngineSettings, chat_template: str | None = None) -> None:
        self.settings = settings
        self.model = Model(path, settings, chat_template)
        try:
            self.chat_template = self.model.chat_template
            self.model.vocabulary.warm_up()
            self._context = Context(self.model, settings)
        except LiteError:
            self.model.close()
            raise
        self._slots = [_Slot(sequence) for sequence in range(settings.n_slots)]
        self._queue: list[tuple[float, int, _Request]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._vocabulary_in_use = threading.Lock()  # it lives in the model, which close() frees
        self._closing = False
        self._dead: str | None = None
        self._failures = 0
        self._tokens_per_s: float | None = None  # of one slot, prompt included
        self._length_share = 1.0  # answers' tokens over those that surely close one: the same for long and short tasks
        self._tokens_written = 0
        self._thread = threading.Thread(target=self._run, name="storyfi-engine", daemon=True)
        self._thread.start()

    # --- any thread --------------------------------------------------------------------------------------------

    def conversation(self, script: Script) -> Conversation:
        return self.chat_template.conversation(self.model.vocabulary, script)

    def submit(self, job: EngineJob) -> Future[Generation]:
        """Queue a job. Raises Busy, BadInput (prompt or budget that cannot work) or EngineError (a dead or closed engine). The Future
        may be cancelled at any time; its slot is free one step later."""
        with self._vocabulary_in_use:
            if self._dead or self._closing:
                raise EngineError(self._dead or "the engine is closed")
            conversation = self.conversation(job.script)
            max_tokens = self._budget(job, conversation)
            rule = ChoiceRule(self.model.vocabulary, conversation, job.script, job.sampling, max_tokens)
        need_tokens = job.script.min_tokens_bound
        request = _Request(job, conversation, rule, max_tokens, need_tokens, Future(), time.monotonic())
        with self._wake:
            if self._dead or self._closing:
                raise EngineError(self._dead or "the engine is closed")
            self._refuse_if_late(request)
            heapq.heappush(self._queue, (-job.priority, next(self._order), request))
            self._wake.notify()
        return request.future

    def _budget(self, job: EngineJob, conversation: Conversation) -> int:
        """Return the answer's token budget. Whatever it is, the answer ends inside it: the grammar's bound, or the closing rule."""
        room = self.settings.n_ctx - len(conversation)
        wanted = job.max_tokens if job.max_tokens is not None else job.script.max_tokens_bound
        if job.max_tokens is None and job.aim_s and self._tokens_per_s:
            wanted = min(wanted, max(job.script.min_tokens_bound, int(job.aim_s * self._tokens_per_s)))
        if room < job.script.min_tokens_bound:
            raise BadInput(
                f"the prompt has {len(conversation)} tokens and the answer needs {job.script.min_tokens_bound}; "
                f"the context holds {self.settings.n_ctx}"
            )
        return min(wanted, room)

    def _refuse_if_late(self, request: _Request) -> None:
        wait_s = self._expected_wait_s(request.job.priority)
        if len(self._queue) >= MAX_QUEUED:
            raise Busy("the queue is full", wait_s)
        if request.job.planned or wait_s is None:
            return
        if time.monotonic() + wait_s + self._expected_s(request) > request.job.deadline_s:
            raise Busy(f"the answer would be late: {wait_s:.0f} s to wait", wait_s)

    def _expected_wait_s(self, priority: float) -> float | None:
        """Return the seconds until a job of this priority gets a slot: those that run and those before it in the queue, each by its own
        length, given to the slots in turn. None until a job has been measured."""
        if self._tokens_per_s is None:
            return None
        running = [slot.request for slot in self._slots]
        free_in_s = [self._expected_s(request) if request else 0.0 for request in running]
        heapq.heapify(free_in_s)
        for _, _, request in sorted(entry for entry in self._queue if -entry[0] >= priority):
            heapq.heapreplace(free_in_s, free_in_s[0] + self._expected_s(request))
        return free_in_s[0]

    def _expected_s(self, request: _Request) -> float:
        """Return the seconds that this job still takes in a slot."""
        assert self._tokens_per_s is not None
        whole = min(request.max_tokens, self._length_share * request.need_tokens)
        return max(0.0, whole - len(request.rule.tokens)) / self._tokens_per_s

    def health(self) -> EngineHealth:
        with self._wake:
            running = sum(slot.request is not None for slot in self._slots)
            alive = self._dead is None and not self._closing
            return EngineHealth(alive, self._dead or "ok", running, len(self._queue), self._tokens_written)

    @contextmanager
    def borrowed(self) -> Iterator[Context]:
        """Lend the context itself, empty, for measuring what llama.cpp does alone. Requests wait meanwhile, and find no prompt
        cached afterwards. Raises EngineError while anything runs or waits."""
        with self._wake:
            if self._dead or self._closing or self._queue or self._busy():
                raise EngineError("the engine's context is in use")
            try:
                self._forget_all()
                yield self._context
            finally:
                self._forget_all()

    def _forget_all(self) -> None:
        for slot in self._slots:
            self._keep(slot, [], 0)

    def close(self) -> None:
        """Finish what runs, fail what waits, free the model. Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._context.close()
        with self._vocabulary_in_use:
            self.model.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the engine's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._admit():
            try:
                self._step()
            except EngineError as error:
                self._recover(error)
            except Exception as error:  # a defect must not leave requests without an answer
                log.exception("the engine failed")
                self._recover(EngineError(f"internal error: {type(error).__name__}"))
            if self._dead:
                break
        self._fail_all(EngineError(self._dead or "the engine is closed"))

    def _admit(self) -> bool:
        """Sleep while there is nothing to do, then give free slots to waiting jobs. Returns False when it is time to stop."""
        with self._wake:
            while not (self._closing or self._queue or self._busy()):
                self._wake.wait()
            ended = self._take_ended()
            started = [] if self._closing else self._fill_slots()
        for request in ended:  # outside of the lock: a Future's callbacks may do anything
            self._end_waiting(request)
        for slot in started:
            self._prepare(slot)
        return bool(self._busy()) or not self._closing

    def _busy(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.request]

    def _take_ended(self) -> list[_Request]:
        """Takes out of the queue what must not wait any longer."""
        now = time.monotonic()
        ended = [
            entry
            for entry in self._queue
            if self._closing or entry[2].future.cancelled() or now >= entry[2].job.deadline_s
        ]
        if ended:
            self._queue = [entry for entry in self._queue if entry not in ended]
            heapq.heapify(self._queue)
        return [request for _, _, request in ended]

    def _end_waiting(self, request: _Request) -> None:
        if request.future.cancelled():
            request.future.set_running_or_notify_cancel()
        elif self._closing:
            _fail(request, EngineError("the engine is closing"))
        else:
            _fail(request, DeadlineExceeded("the deadline passed while the request waited"))

    def _fill_slots(self) -> list[_Slot]:
        """Give each job the free slot that holds most of its prompt's beginning already."""
        started = []
        free = [slot for slot in self._slots if slot.request is None]
        while self._queue and free:
            _, _, request = heapq.heappop(self._queue)
            slot = max(free, key=lambda slot: _common(slot.cached, request.rule.fed))
            free.remove(slot)
            slot.request = request
            request.started_s = time.monotonic()
            started.append(slot)
        return started

    def _prepare(self, slot: _Slot) -> None:
        """Keeps the cells of the longest common beginning and feeds the rest."""
        request = slot.request
        assert request is not None
        try:
            request.rule.force()
            tokens = list(request.rule.fed)
            self._keep(slot, tokens, _common(slot.cached, tokens[:-1]))
            slot.untouched = True
        except LiteError as error:
            self._release(slot, error)

    def _keep(self, slot: _Slot, tokens: list[int], common: int) -> None:
        """Cut the slot's cells to the first `common` of `tokens`, less if the cache cannot be cut there."""
        if not self._context.forget(slot.sequence, common):
            common = 0
            self._context.forget(slot.sequence)
        slot.cached, slot.feed = tokens[:common], tokens[common:]

    def _step(self) -> None:
        """Run one batch: decode, then choose for each slot whose tokens are all in."""
        self._drop_ended()
        self._close_gaps()
        plan = self._plan()
        if not plan:
            return
        # Logits of every last token, wanted or not: llama.cpp multiplies four rows at a time, so that 13 to 15 of 16 cost up
        # to half more than 16 with a large vocabulary, and a graph of the same size is used again.
        feeds = [Feed(slot.sequence, len(slot.cached), chunk, [len(chunk) - 1]) for slot, chunk in plan]
        for (slot, chunk), logits in zip(plan, self._context.decode(feeds), strict=True):
            slot.cached += chunk
            slot.feed = slot.feed[len(chunk) :]
            if slot.request and slot.request.first_token_s:
                self._tokens_written += len(chunk)
            if not slot.feed:
                self._advance(slot, logits[0])

    def _close_gaps(self) -> None:
        """Moves slots down until those in use have consecutive numbers. llama.cpp takes only such sequences together; each gap
        would cost one more pass over the weights in every step, a move is one copy."""
        busy = self._busy()
        for free in self._slots:
            if busy and free.request is None and busy[0].sequence < free.sequence < busy[-1].sequence:
                last = busy.pop()
                self._context.copy(last.sequence, free.sequence)
                free.request, free.cached, free.feed = last.request, list(last.cached), last.feed
                free.untouched = last.untouched
                self._release(last, None)

    def _plan(self) -> list[tuple[_Slot, list[int]]]:
        """Choose the tokens of the next batch. Slots that write come first; joining prompts, the oldest first, share what
        room is left, and no more than a chunk of it while others write."""
        busy = self._busy()
        writing = [slot for slot in busy if slot.request.first_token_s and len(slot.feed) <= FORCED_RUN_TOKENS]  # type: ignore[union-attr]
        joining = sorted((slot for slot in busy if slot not in writing), key=lambda slot: slot.request.started_s)  # type: ignore[union-attr]
        # Equally many tokens of each: llama.cpp takes a batch of unequal sequences in several passes over the weights, which
        # costs more than forced tokens save. Alone, a slot feeds a forced run at once.
        width = min([self._context.n_batch // max(1, len(writing)), *(len(slot.feed) for slot in writing)])
        plan = [(slot, slot.feed[:width]) for slot in writing]
        room = self._context.n_batch - width * len(writing)
        if writing:
            room = min(room, PROMPT_CHUNK_TOKENS)
        for index, slot in enumerate(joining):
            if room > 0 and not (slot.untouched and self._must_wait(slot, joining[:index])):
                slot.untouched = False
                plan.append((slot, slot.feed[:room]))
                room -= len(plan[-1][1])
        return sorted(plan, key=lambda entry: entry[0].sequence)  # llama.cpp splits a batch where numbers do not ascend

    def _must_wait(self, slot: _Slot, older: list[_Slot]) -> bool:
        """Copies the beginning of the prompt from the slot that holds most of it. True if an older one is just computing
        still more of it: then the next step is soon enough."""
        tokens = slot.cached + slot.feed
        worth = len(slot.cached) + MIN_SHARED_TOKENS
        donor = max(self._slots, key=lambda other: _common(other.cached, tokens[:-1]))
        common = _common(donor.cached, tokens[:-1])
        if any(_common(other.cached + other.feed, tokens[:-1]) >= max(common + 1, worth) for other in older):
            return True
        if donor is not slot and common >= worth:
            self._context.copy(donor.sequence, slot.sequence)
            self._keep(slot, tokens, common)
        return False

    def _advance(self, slot: _Slot, logits: Floats) -> None:
        """Chooses the slot's next token. An error here is this request's alone."""
        request = slot.request
        assert request is not None
        try:
            # what is forced comes before the first choice
            told = len(request.rule.tokens) if request.first_token_s else 0
            slot.feed = request.rule.choose(logits)
            if request.job.on_tokens:
                request.job.on_tokens(request.rule.tokens[told:])
            request.first_token_s = request.first_token_s or time.monotonic()
            if request.rule.done:
                self._finish(slot, request)
        except LiteError as error:
            self._release(slot, error)
        except Exception:
            log.exception("a request failed")
            self._release(slot, EngineError("internal error in one request"))

    def _finish(self, slot: _Slot, request: _Request) -> None:
        now = time.monotonic()
        taken_s = now - request.started_s
        self._length_share = _running_mean(
            self._length_share if self._tokens_per_s else None, len(request.rule.tokens) / request.need_tokens
        )
        self._tokens_per_s = _running_mean(self._tokens_per_s, len(request.rule.tokens) / taken_s)
        self._failures = 0
        generation = Generation(
            text=request.rule.text,
            conversation=request.conversation,
            tokens=tuple(request.rule.tokens),
            max_tokens=request.max_tokens,
            queued_s=request.started_s - request.submitted_s,
            first_token_s=request.first_token_s - request.started_s,
            total_s=now - request.submitted_s,
        )
        self._release(slot, None)
        _resolve(request, generation)

    def _drop_ended(self) -> None:
        """Free the slots of requests whose client went away or whose time is up."""
        now = time.monotonic()
        for slot in self._busy():
            assert slot.request is not None
            if slot.request.future.cancelled():
                slot.request.future.set_running_or_notify_cancel()
                self._release(slot, None)
            elif now >= slot.request.job.deadline_s:
                self._release(slot, DeadlineExceeded("the deadline passed while the answer was being written"))

    def _release(self, slot: _Slot, error: LiteError | None) -> None:
        request, slot.request, slot.feed, slot.untouched = slot.request, None, [], False
        if request and error:
            _fail(request, error)

    # --- failure -----------------------------------------------------------------------------------------------

    def _recover(self, error: EngineError) -> None:
        """Go on after a failed decode: first with the same again in smaller batches, then a fresh context into which every running
        request is replayed; after MAX_FAILURES in a row the engine is dead."""
        self._failures += 1
        if self._failures > MAX_FAILURES:
            self._die(f"the engine is dead after {self._failures} failures: {error}; restart the miner")
        elif self._failures == 1 and all(self._context.forget(slot.sequence, len(slot.cached)) for slot in self._slots):
            log.warning("%s; trying again with a smaller batch", error)
            self._context.n_batch = max(len(self._slots), self._context.n_batch // 2)
        else:
            log.warning("%s; starting a fresh context (failure %d of %d)", error, self._failures, MAX_FAILURES)
            self._restart()

    def _restart(self) -> None:
        try:
            self._context.close()
            self._context = Context(self.model, self.settings)
        except LiteError as failed:
            self._die(f"the engine is dead: {failed}")
            return
        self._context.n_batch = max(len(self._slots), self.settings.n_batch >> self._failures)
        for slot in self._slots:
            slot.cached = []
            if slot.request:
                slot.feed, slot.untouched = list(slot.request.rule.fed), False

    def _die(self, why: str) -> None:
        log.error(why)
        self._dead = why

    def _fail_all(self, error: LiteError) -> None:
        with self._wake:
            waiting = [request for _, _, request in self._queue]
            self._queue.clear()
        for slot in self._slots:
            self._release(slot, error)
        for request in waiting:
            _fail(request, error)


def _common(first: list[int], second: list[int]) -> int:
    """Count the tokens that two lists have in common at their beginning."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(index for index in range(shorter) if first[index] != second[index])


def _running_mean(past: float | None, now: float) -> float:
    return now if past is None else _SPEED_MEMORY * past + (1 - _SPEED_MEMORY) * now


def _resolve(request: _Request, generation: Generation) -> None:
    if not settle(request.future, generation):
        log.debug("an answer came after its client left")


def _fail(request: _Request, error: LiteError) -> None:
    if not settle(request.future, error):
        log.debug("a request failed after its client left")
