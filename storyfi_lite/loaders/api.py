"""What all API loaders share: worker threads, deadline, retries, repair of bad answers, the meter, the claim.

A vendor's file adds two things: one HTTP call, and what its errors mean. The vendor's own structured output
is a help to the model, never trusted: every answer passes our check. This is the only place that retries. Not
here: which loader runs (fallback.py).

Two clocks: `Future`s end by the job's deadline, whatever the call does (a timer ends them); the call is then
cut, so that its worker is free at once. Threads are daemons: a call that hangs never holds up the end of the
process.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from storyfi_lite import tasks
from storyfi_lite.errors import Busy, ConfigError, DeadlineExceeded, LiteError, Unavailable
from storyfi_lite.grammar import Constraint
from storyfi_lite.loaders.answers import read_answer
from storyfi_lite.loaders.base import Answer, Job, LoaderHealth, ModelClaim
from storyfi_lite.loaders.keys import Secret
from storyfi_lite.loaders.meter import Meter, Prices
from storyfi_lite.protocol.messages import ModelInfo

logger = logging.getLogger(__name__)

MAX_DETAIL_CHARS = 300
CLOSE_GRACE_S = 1.0


@dataclass(frozen=True)
class ApiSettings:
    """`prices` and `base_url` are the operator's; `multiplier` is the registry's for this model."""

    model_name: str
    multiplier: float = 0.5
    base_url: str | None = None  # None: the vendor's own
    prices: Prices | None = None
    workers: int = 4
    max_queued: int = 16
    call_timeout_s: float = 55.0
    calls_per_text: int = 5  # the first call and its retries
    max_repairs: int = 2
    first_backoff_s: float = 0.5
    max_backoff_s: float = 8.0
    max_output_tokens: int | None = None  # None: the model's own limit


@dataclass(frozen=True)
class Prompt:
    """`turns` are (role, text), roles `user` and `assistant`."""

    system: str
    turns: tuple[tuple[str, str], ...]
    constraint: Constraint
    max_tokens: int | None
    temperature: float | None


@dataclass(frozen=True)
class Reply:
    """What a vendor answered. Tokens are None where it did not count. `refusal`: why there is no text, in
    its words."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    refusal: str = ""


@dataclass(frozen=True)
class Failure:
    """A call that gave no reply. `free`: the vendor surely charged nothing. `fatal`: no later call will do
    better."""

    error: LiteError
    retry: bool = False
    retry_after_s: float = 0.0
    free: bool = True
    fatal: bool = False


class Line:
    """The one HTTP call that a job may have open. `cut` ends it from another thread, now and for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cut = threading.Event()
        self._sockets: list[socket.socket] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        """Around a call; a socket that it held belongs to others afterwards."""
        if self._is_cut.is_set():
            raise DeadlineExceeded("the request ended before the API was called")
        try:
            yield
        finally:
            with self._lock:
                self._sockets.clear()

    def hold(self, connection: socket.socket) -> None:
        """The open call runs over this socket from now on."""
        with self._lock:
            self._sockets.append(connection)
            if self._is_cut.is_set():
                _shut(connection)

    def cut(self) -> None:
        with self._lock:
            self._is_cut.set()
            for connection in self._sockets:
                _shut(connection)

    def wait(self, seconds: float) -> bool:
        """Sleeps; True as soon as the line is cut."""
        return self._is_cut.wait(seconds)


def _shut(connection: socket.socket) -> None:
    """Wakes the thread that reads from it, which closing would not."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@dataclass(order=True)
class _Work:
    rank: tuple[float, int]
    job: Job = field(compare=False)
    future: Future[Answer] = field(compare=False, default_factory=Future)
    line: Line = field(compare=False, default_factory=Line)
    _ended: threading.Event = field(compare=False, default_factory=threading.Event)
    _lock: threading.Lock = field(compare=False, default_factory=threading.Lock)

    def end(self, outcome: Answer | LiteError) -> None:
        """The first outcome counts. Until then the Future is pending, so that it can be cancelled at any
        time."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Answer):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)


class ApiLoader(ABC):
    """Implements `Loader`. Subclasses: GeminiLoader, OpenAILoader."""

    vendor: ClassVar[str]
    provider: ClassVar[str]
    key_variable: ClassVar[str]

    def __init__(self, key: Secret, settings: ApiSettings, meter: Meter) -> None:
        """Raises ConfigError. Calls no network."""
        meter.check_prices(settings.prices)
        self.settings = settings
        self._key, self._meter = key, meter
        self._ready = threading.Condition()
        self._queue: list[_Work] = []
        self._running: set[int] = set()
        self._order = itertools.count()
        self._closed = False
        self._dead_because = ""
        self._connect()
        self._threads = [
            threading.Thread(target=self._work, name=f"{self.provider}-{number}", daemon=True)
            for number in range(settings.workers)
        ]
        for thread in self._threads:
            thread.start()

    # --- what a vendor's file adds ---

    @abstractmethod
    def _connect(self) -> None:
        """Imports the client library; raises ConfigError if it is missing."""

    @abstractmethod
    def _call(self, prompt: Prompt, timeout_s: float, line: Line) -> Reply:
        """One HTTP call on this thread; `timeout_s` bounds each wait of it, `line` all of it."""

    @abstractmethod
    def _failure(self, error: Exception) -> Failure:
        """What the client library's error means."""

    # --- Loader ---

    @property
    def claim(self) -> ModelClaim:
        name = self.settings.model_name
        info = ModelInfo(mode="api", name=name, version=name, provider=self.provider)
        return ModelClaim("APIFallbackLoader", name, info, 0.0, self.settings.multiplier)

    def submit(self, job: Job) -> Future[Answer]:
        remaining_s = job.deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise Busy("the request's deadline has passed already")
        with self._ready:
            if self._closed:
                raise Unavailable(f"the {self.vendor} loader is closed")
            self._drop_ended()
            if len(self._queue) >= self.settings.max_queued:
                raise Busy(f"{len(self._queue)} requests already wait for the {self.vendor} API")
            work = _Work((-job.priority, next(self._order)), job)
            late = DeadlineExceeded(f"the {self.vendor} API did not answer in time")
            timer = threading.Timer(remaining_s, work.end, [late])
            timer.daemon = True
            work.future.add_done_callback(lambda future: timer.cancel())
            work.future.add_done_callback(lambda future: work.line.cut())
            timer.start()
            heapq.heappush(self._queue, work)
            self._ready.notify()
        return work.future

    def health(self) -> LoaderHealth:
        with self._ready:
            self._drop_ended()
            used = self._meter.usage
            if self._closed:
                return LoaderHealth(False, "closed", len(self._running), 0, used)
            spent = f"{used.tokens:,} tokens and ${used.usd:.4f} used today"
            detail = self._dead_because or f"{self.vendor} API, {self.settings.model_name}: {spent}"
            return LoaderHealth(not self._dead_because, detail, len(self._running), len(self._queue), used)

    def close(self) -> None:
        """Waits for what runs, each to its deadline at most; refuses what waits."""
        with self._ready:
            self._closed = True
            waiting, self._queue = self._queue, []
            self._ready.notify_all()
        for work in waiting:
            work.end(Unavailable(f"the {self.vendor} loader is closing"))
        for thread in self._threads:
            thread.join(self.settings.call_timeout_s + CLOSE_GRACE_S)

    # --- the workers ---

    def _drop_ended(self) -> None:
        live = [work for work in self._queue if not work.future.done()]
        if len(live) != len(self._queue):
            heapq.heapify(live)
            self._queue = live

    def _work(self) -> None:
        while (work := self._next()) is not None:
            work.end(self._outcome(work))
            with self._ready:
                self._running.discard(id(work))

    def _next(self) -> _Work | None:
        with self._ready:
            while not self._queue and not self._closed:
                self._ready.wait()
            if self._closed:
                return None
            work = heapq.heappop(self._queue)
            self._running.add(id(work))
            return work

    def _outcome(self, work: _Work) -> Answer | LiteError:
        try:
            return self._answer(work)
        except LiteError as error:
            return error
        except Exception as error:
            logger.error("a fault in the %s loader:\n%s", self.vendor, self._key.scrub(traceback.format_exc()))
            fault = LiteError(f"the {self.vendor} loader failed ({type(error).__name__}); its log has the details")
        return fault  # outside the handler: nothing of the client library hangs on it

    def _answer(self, work: _Work) -> Answer:
        """Raises the job's error. Asks again, naming the problems, where the text breaks the task's rules."""
        started_s = time.monotonic()
        job = work.job
        task = tasks.get(job.request.task_type)
        constraint, messages = task.constraint(job.request), task.messages(job.request)
        limits = [limit for limit in (self.settings.max_output_tokens, job.request.max_tokens) if limit]
        turns: tuple[tuple[str, str], ...] = (("user", messages.user),)
        prompt_tokens = completion_tokens = 0
        problems: tuple[str, ...] = ()
        for _ in range(1 + self.settings.max_repairs):
            prompt = Prompt(messages.system, turns, constraint, min(limits, default=None), job.temperature)
            reply = self._reply(work, prompt)
            prompt_tokens += reply.prompt_tokens or 0
            completion_tokens += reply.completion_tokens or 0
            if reply.refusal:
                raise Unavailable(f"the {self.vendor} API refused to write this story: {self._clean(reply.refusal)}")
            text, problems = read_answer(reply.text, constraint)
            if text is not None:
                seconds = time.monotonic() - started_s
                return Answer(text, self.claim, seconds, prompt_tokens, completion_tokens)
            logger.warning("an answer of the %s API was not valid: %s", self.vendor, self._clean("; ".join(problems)))
            if reply.text.strip():
                turns = (*turns[:1], ("assistant", reply.text), ("user", _repair(problems)))
        raise Unavailable(
            f"the {self.vendor} API gave no valid answer in {1 + self.settings.max_repairs} attempts; "
            f"the last one's problems: {self._clean('; '.join(problems))}"
        )

    def _reply(self, work: _Work, prompt: Prompt) -> Reply:
        """Retries what may pass by itself, with exponential backoff and jitter, or as long as the vendor
        says."""
        settings = self.settings
        for attempt in itertools.count(1):
            outcome = self._metered(work, prompt)
            if isinstance(outcome, Reply):
                return outcome
            if outcome.fatal:
                self._dead_because = str(outcome.error)
                logger.error("the %s API can't be used any more: %s", self.vendor, outcome.error)
            backoff_s = min(settings.max_backoff_s, settings.first_backoff_s * 2 ** (attempt - 1))
            wait_s = max(outcome.retry_after_s, backoff_s * random.uniform(0.5, 1.0))
            last = attempt >= settings.calls_per_text or wait_s >= work.job.deadline_s - time.monotonic()
            if not outcome.retry or last:
                raise outcome.error
            logger.warning("%s; trying again in %.1f s", outcome.error, wait_s)
            if work.line.wait(wait_s):
                raise DeadlineExceeded("the request ended while the API was asked to wait")
        raise AssertionError("unreachable")

    def _metered(self, work: _Work, prompt: Prompt) -> Reply | Failure:
        timeout_s = min(self.settings.call_timeout_s, work.job.deadline_s - time.monotonic())
        if timeout_s <= 0:
            raise DeadlineExceeded(f"the {self.vendor} API did not answer in time")
        sent_bytes = len(prompt.system.encode()) + sum(len(text.encode()) for _, text in prompt.turns)
        # a token is about 3 bytes of text; the answer has at most a token a character, of 4 bytes
        expected = prompt.max_tokens or prompt.constraint.max_tokens_bound // 4
        charge = self._meter.charge(sent_bytes // 3, expected, self.settings.prices)
        outcome = self._attempt(work, prompt, timeout_s)
        if isinstance(outcome, Failure):
            if outcome.free:
                self._meter.settle(charge, 0, 0)
        elif outcome.prompt_tokens is not None and outcome.completion_tokens is not None:
            self._meter.settle(charge, outcome.prompt_tokens, outcome.completion_tokens)
        return outcome

    def _attempt(self, work: _Work, prompt: Prompt, timeout_s: float) -> Reply | Failure:
        """Errors become values here: a raised one would carry the client library's error, and with it the
        request."""
        try:
            return self._call(prompt, timeout_s, work.line)
        except LiteError as error:
            return Failure(error)
        except Exception as error:
            return self._failure(error)

    # --- for the vendors' files ---

    def _clean(self, text: object) -> str:
        """A vendor's words for our log: one line, the key masked, then shortened (in this order)."""
        return " ".join(self._key.scrub(str(text)).split())[:MAX_DETAIL_CHARS]

    def _by_status(self, status: int, words: object, retry_after_s: float = 0.0, bad_key: bool = False) -> Failure:
        """The one table from HTTP status to what we do."""
        said = f"the {self.vendor} API answered {status}: {self._clean(words) or 'nothing more'}"
        if status == 429:
            wait_s = retry_after_s or None
            return Failure(Busy(said, wait_s), retry=True, retry_after_s=retry_after_s)
        if status >= 500 or status == 408:
            return Failure(Unavailable(said), retry=True, retry_after_s=retry_after_s)
        hint = f"check {self.key_variable}, the model name {self.settings.model_name!r} and the account"
        return Failure(ConfigError(f"{said}\n{hint}"), fatal=bad_key or status in (401, 403, 404))

    def _cut_off(self, error: Exception) -> Failure:
        """No whole answer: time-out, connection refused or cut, half a body, a body that is not the
        vendor's JSON."""
        detail = f"the {self.vendor} API gave no whole answer ({type(error).__name__})"
        return Failure(Unavailable(detail), retry=True, free=False)


def retry_after_s(headers: Any) -> float:
    """The `Retry-After` header in seconds; 0 where there is none, or a date (vendors send seconds)."""
    try:
        return max(0.0, min(float(headers.get("retry-after", 0)), 86_400.0))
    except (TypeError, ValueError):
        return 0.0


def _repair(problems: tuple[str, ...]) -> str:
    listed = "\n".join(f"- {problem}" for problem in problems)
    return (
        f"That answer breaks these rules:\n{listed}\n"
        "Write the whole answer again with all of them mended: "
        "one JSON object and nothing around it, same language."
    )
