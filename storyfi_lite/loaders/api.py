"""Writes stories through an API: asks, repairs bad answers, retries, counts the money, and ends when the model is gone.

No other module retries calls. Not here: the queue and its threads (jobs.py), a vendor's calls and errors (client.py and
the vendors' files), which loader runs (fallback.py).
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
import traceback
from concurrent.futures import Future

from storyfi_lite import tasks
from storyfi_lite.errors import ConfigError, DeadlineExceeded, LiteError, Unavailable
from storyfi_lite.loaders.answers import read_answer
from storyfi_lite.loaders.base import Answer, Job, LoaderHealth, ModelClaim, NotAgain
from storyfi_lite.loaders.client import ApiClient, Failure, Prompt, Reply
from storyfi_lite.loaders.connection import Line
from storyfi_lite.loaders.jobs import JobQueue
from storyfi_lite.loaders.meter import Meter
from storyfi_lite.protocol.messages import ModelInfo

logger = logging.getLogger(__name__)

LOOK_UP_S = 5.0
NOT_FOUND_IN_A_ROW = 3  # a gateway between may say 404 once; a model that is gone says it every time
REPAIR = """That answer breaks these rules:
{problems}
Write the whole answer again with all of them mended: one JSON object and nothing around it, same language."""


class ApiLoader:
    """Implements `Loader` over one vendor's client."""

    def __init__(self, client: ApiClient, meter: Meter) -> None:
        """Start the workers. Raises ConfigError if the meter needs prices. Calls no network."""
        meter.check_prices(client.settings.prices)
        self._client, self._meter, self.settings = client, meter, client.settings
        self._api = f"{client.vendor} API"
        self._dead_because = ""
        self._not_found = 0
        self._rests = (0.0, "")  # until when, on time.monotonic()'s clock, and why
        self._jobs = JobQueue(self._api, self._outcome, self.settings.workers, self.settings.max_queued)

    def look_up(self) -> None:
        """Ask once, at no cost, whether key and model are good. Raises ConfigError if they are not. No answer is only logged, and
        so is a self-hosted server without such a look-up."""
        line = Line()
        timer = threading.Timer(LOOK_UP_S, line.cut)
        timer.start()
        try:
            with line.open():
                self._client.look_up(LOOK_UP_S)
            return
        except Exception as error:
            failure = self._client.explain(error)
        finally:
            timer.cancel()
        if failure.fatal or (failure.not_found and self.settings.base_url is None):
            raise failure.error
        logger.info("whether the %s has %s is not known yet: %s", self._api, self.settings.model.key, failure.error)

    # --- Loader ---

    @property
    def claim(self) -> ModelClaim:
        model = self.settings.model
        info = ModelInfo(mode="api", name=model.key, version=model.key, provider=model.provider)
        return ModelClaim("APIFallbackLoader", model.key, info, 0.0, model.multiplier)

    def submit(self, job: Job) -> Future[Answer]:
        return self._jobs.submit(job)

    def health(self) -> LoaderHealth:
        running, queued = self._jobs.counts()
        used = self._meter.usage
        if self._jobs.closed:
            return LoaderHealth(False, "closed", running, 0, used)
        spent = f"{used.tokens:,} tokens and ${used.usd:.4f} used today"
        rests = self._rests[1] if time.monotonic() < self._rests[0] else ""
        detail = self._dead_because or rests or f"{self._api}, {self.settings.model.key}: {spent}"
        return LoaderHealth(not self._dead_because, detail, running, queued, used)

    def close(self) -> None:
        self._jobs.close(self.settings.call_timeout_s)

    # --- one job ---

    def _outcome(self, job: Job, line: Line) -> Answer | LiteError:
        try:
            return self._answer(job, line)
        except LiteError as error:
            return error
        except Exception as error:
            logger.error("a fault in the %s loader:\n%s", self._api, self._client.key.scrub(traceback.format_exc()))
            fault = LiteError(f"the {self._api} loader failed ({type(error).__name__}); its log has the details")
        return fault  # outside the handler: nothing of the client library hangs on it

    def _answer(self, job: Job, line: Line) -> Answer:
        """Write one answer, asking again with the problems named if the text breaks the task's rules. Raises the job's error."""
        started_s = time.monotonic()
        task = tasks.get(job.request.task_type)
        constraint, messages = task.constraint(job.request), task.messages(job.request)
        turns: tuple[tuple[str, str], ...] = (("user", messages.user),)
        prompt_tokens = completion_tokens = 0
        was_empty = False
        problems: tuple[str, ...] = ()
        for _ in range(1 + self.settings.max_repairs):
            prompt = Prompt(messages.system, turns, constraint, job.request.max_tokens, job.temperature)
            reply = self._reply(job, line, prompt)
            prompt_tokens += reply.prompt_tokens or 0
            completion_tokens += reply.completion_tokens or 0
            if reply.refusal:
                refusal = self._client.clean(reply.refusal)
                raise Unavailable(f"the {self._api} refused to write this story: {refusal}")
            text, problems = read_answer(reply.text, constraint)
            if text is not None:
                seconds = time.monotonic() - started_s
                return Answer(text, self.claim, seconds, prompt_tokens, completion_tokens)
            if reply.is_cut:  # asking again would not help
                own = (
                    f"the request's limit of {prompt.max_tokens:,} tokens"
                    if prompt.max_tokens
                    else "its own token limit"
                )
                said = f"ended the answer of {self.settings.model.key} at {own}{_count(reply)}"
                raise Unavailable(f"the {self._api} {said}")
            problem = self._client.clean("; ".join(problems))
            logger.warning("an answer of the %s was not valid: %s", self._api, problem)
            if reply.text.strip():
                listed = "\n".join(f"- {problem}" for problem in problems)
                turns = (*turns[:1], ("assistant", reply.text), ("user", REPAIR.format(problems=listed)))
            elif was_empty or reply.completion_tokens != 0:  # the same again would be paid again
                raise NotAgain(f"the {self._api} gave no text{_count(reply) or ', and did not say why'}")
            was_empty = not reply.text.strip()
        raise Unavailable(
            f"the {self._api} gave no valid answer in {1 + self.settings.max_repairs} attempts; "
            f"the last one's problems: {self._client.clean('; '.join(problems))}"
        )

    # --- one call, and the next if that may help ---

    def _reply(self, job: Job, line: Line, prompt: Prompt) -> Reply:
        """Call the API, and again after faults that may pass, with exponential backoff and jitter or after the vendor's own wait."""
        settings = self.settings
        for attempt in itertools.count(1):
            outcome = self._metered(job, line, prompt)
            if isinstance(outcome, Reply):
                self._not_found = 0
                return outcome
            self._judge(outcome)
            remaining_s = job.deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise DeadlineExceeded(f"the {self._api} did not answer in time")
            backoff_s = min(settings.max_backoff_s, settings.first_backoff_s * 2 ** (attempt - 1))
            wait_s = max(outcome.retry_after_s, backoff_s * random.uniform(0.5, 1.0))
            last = attempt >= settings.calls_per_text or wait_s >= remaining_s
            if not outcome.retry or last or self._dead_because:
                raise outcome.error
            logger.warning("%s; trying again in %.1f s", str(outcome.error).partition("\n")[0], wait_s)
            if line.wait(wait_s):
                raise DeadlineExceeded("the request ended while the API was asked to wait")
        raise AssertionError("unreachable")

    def _judge(self, failure: Failure) -> None:
        """Mark the loader dead if no later call can succeed, and let it rest while none can."""
        if failure.rest_s:
            self._rests = (time.monotonic() + failure.rest_s, str(failure.error))
            logger.warning("%s; not asked again for %.0f s", failure.error, failure.rest_s)
        self._not_found = self._not_found + 1 if failure.not_found else 0
        if (failure.fatal or self._not_found >= NOT_FOUND_IN_A_ROW) and not self._dead_because:
            self._dead_because = str(failure.error)
            logger.error("the %s can't be used any more: %s", self._api, failure.error)

    def _metered(self, job: Job, line: Line, prompt: Prompt) -> Reply | Failure:
        if self._dead_because:  # jobs that waited while another one found out
            raise ConfigError(self._dead_because)
        if time.monotonic() < self._rests[0]:
            raise NotAgain(self._rests[1])
        timeout_s = min(self.settings.call_timeout_s, job.deadline_s - time.monotonic())
        if timeout_s <= 0:
            raise DeadlineExceeded(f"the {self._api} did not answer in time")
        sent_bytes = len(prompt.system.encode()) + sum(len(text.encode()) for _, text in prompt.turns)
        # a token is about 3 bytes of text; the answer has at most a token a character, of 4 bytes
        expected = prompt.max_tokens or prompt.constraint.max_tokens_bound // 4
        charge = self._meter.charge(sent_bytes // 3, expected, self.settings.prices)
        outcome: Reply | Failure
        try:
            with line.open():
                outcome = self._client.call(prompt, timeout_s)
        except Exception as error:
            outcome = self._client.explain(error)
            if not outcome.free and line.is_connected:
                outcome = Failure(NotAgain(str(outcome.error)), free=False)
        if isinstance(outcome, Failure):
            if outcome.free or not line.is_connected:
                self._meter.settle(charge, 0, 0)
        elif outcome.prompt_tokens is not None and outcome.completion_tokens is not None:
            self._meter.settle(charge, outcome.prompt_tokens, outcome.completion_tokens)
        return outcome


def _count(reply: Reply) -> str:
    written = f", {reply.completion_tokens:,} tokens written" if reply.completion_tokens else ""
    return written + (f", {reply.thought_tokens:,} of them thinking" if reply.thought_tokens else "")
