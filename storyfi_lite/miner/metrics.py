"""Records what the miner did: Prometheus series in a registry of their own, and the last few events for the status page.

Label values are few and fixed (tasks, outcomes, reasons): nothing that a peer sends becomes one."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pynvml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from storyfi_lite.loaders.base import Answer, Loader
from storyfi_lite.miner.admission import Admitted, Caller
from storyfi_lite.miner.requests import RequestLog
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator.reward import Reward, reward
from storyfi_lite.validator.score import Context, Score, score
from storyfi_lite.validator.verdict import Verdict
from storyfi_lite.wire.http_status import Refused

log = logging.getLogger(__name__)

KEPT_EVENTS = 20
KEPT_MINUTES = 60
LOG_LINES_PER_REASON = 5  # in each LOG_PERIOD_S; the rest is counted, and said in one line
LOG_PERIOD_S = 10.0
# 30 s: full marks for speed; 60 s: the validator has hung up
SECONDS_BUCKETS = (0.5, 1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60)
FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40)


@dataclass(frozen=True)
class Event:
    """Holds one line of the status page. `at_s` is time.time()."""

    at_s: float
    what: str  # the task, or the reason of a refusal
    who: str
    outcome: str
    seconds: float | None = None
    tokens: int | None = None
    story: tuple[StoryRequest, StoryResponse] | None = None

    @cached_property
    def score(self) -> Score | None:
        """Score the answer with our own validator; None if there is no answer. Takes some milliseconds, once, when the status
        page is first opened."""
        if self.story is None:
            return None
        request, response = self.story
        return score(response, Context(request, self.seconds or 0.0))

    @cached_property
    def rewards(self) -> tuple[Reward, Reward] | None:
        """Return what the answer would earn under the shipped policy, once this miner's claim is proven and before; None if there
        is no answer."""
        if self.story is None or self.score is None:
            return None
        claim = self.story[1]
        return reward(self.score, claim, Verdict("proven", model=claim.model_name)), reward(self.score, claim)

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds else None


@dataclass
class Minute:
    """Sums up one minute. `at`: minutes since 1970; `seconds`: of all its answers together."""

    at: int
    answered: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    lost: int = 0  # admitted, not answered
    refused: int = 0


class Metrics:
    """Counts and logs the requests of one miner."""

    def __init__(
        self, loader: Loader, clock: Callable[[], float] = time.monotonic, requests: RequestLog | None = None
    ) -> None:
        self._kept = requests
        self.registry = CollectorRegistry()
        self.answers: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self.refusals: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self.minutes: deque[Minute] = deque(maxlen=KEPT_MINUTES)
        self.refused_by_reason: dict[str, int] = {}
        self.outcomes: dict[str, int] = {}
        self.started_s = time.time()
        self._clock = clock
        self._logged: dict[str, tuple[float, int]] = {}  # reason -> (period's start, lines in it)
        names: dict[str, Any] = {"registry": self.registry, "namespace": "storyfi"}
        self._requests = Counter("requests", "admitted requests by outcome", ["task", "wire", "outcome"], **names)
        self._refusals = Counter("refusals", "requests that were refused", ["reason"], **names)
        self._seconds = Histogram("answer_seconds", "arrival to last byte", ["task"], buckets=SECONDS_BUCKETS, **names)
        self._first_token = Histogram(
            "first_token_seconds",
            "arrival in the loader to the first token, where it is seen",
            ["task"],
            buckets=FIRST_TOKEN_BUCKETS,
            **names,
        )
        self._tokens = Counter("tokens", "tokens read and written", ["kind"], **names)
        of_tokens = (5, 10, 20, 40, 80, 160, 320)
        self._speed = Histogram("tokens_per_second", "written tokens a second, one answer", buckets=of_tokens, **names)
        self._stake = Counter("caller_stake_tao", "stake of the callers, summed over answered requests", **names)
        self.gauge("jobs_running", "answers being written", lambda: loader.health().running)
        self.gauge("jobs_queued", "requests waiting", lambda: loader.health().queued)
        self.gauge("loader_alive", "1 while the loader can answer", lambda: loader.health().alive)

        def used(figure: str) -> Callable[[], float | None]:
            return lambda: getattr(loader.health().usage, figure, None)

        self.gauge("api_tokens_today", "tokens that the API was charged for, day of UTC", used("tokens"))
        self.gauge("api_usd_today", "US dollars at the operator's --api.price, day of UTC", used("usd"))

    def gauge(self, name: str, text: str, read: Callable[[], float | None]) -> None:
        """Publish the figure that `read` returns at each scrape; NaN if it is None, not known."""

        def figure() -> float:
            return float("nan") if (known := read()) is None else float(known)

        Gauge(name, text, namespace="storyfi", registry=self.registry).set_function(figure)

    def answered(self, admitted: Admitted, wire: str, seconds: float, answer: Answer, response: StoryResponse) -> None:
        task, caller = admitted.request.task_type, admitted.caller
        self._count(task, wire, "answered")
        if self._kept:
            self._kept.add(admitted.request, seconds, "answered", answer.completion_tokens)
        minute = self._this_minute()
        minute.answered += 1
        minute.seconds += seconds
        minute.slowest_s = max(minute.slowest_s, seconds)
        self._seconds.labels(task).observe(seconds)
        if answer.first_token_s is not None:
            self._first_token.labels(task).observe(answer.first_token_s)
        self._tokens.labels("prompt").inc(answer.prompt_tokens)
        self._tokens.labels("completion").inc(answer.completion_tokens)
        self._stake.inc(caller.stake_tao)
        if answer.generation_time_s > 0:
            self._speed.observe(answer.completion_tokens / answer.generation_time_s)
        story = admitted.request, response
        event = Event(time.time(), task, _name(caller), "answered", seconds, answer.completion_tokens, story)
        self.answers.appendleft(event)
        facts = {"task": task, "wire": wire, "caller": event.who, "seconds": round(seconds, 2)}
        log.info("answered", extra={"facts": {**facts, "tokens": answer.completion_tokens}})

    def failed(self, admitted: Admitted, wire: str, seconds: float, outcome: str, error: BaseException) -> None:
        """Record a request that was admitted and not answered. `outcome` is the error type's name."""
        task, who = admitted.request.task_type, _name(admitted.caller)
        self._count(task, wire, outcome)
        if self._kept:
            self._kept.add(admitted.request, seconds, outcome)
        self._this_minute().lost += 1
        self.answers.appendleft(Event(time.time(), task, who, outcome, seconds))
        facts = {"task": task, "wire": wire, "caller": who, "seconds": round(seconds, 2), "outcome": outcome}
        log.warning("not answered: %s", error, extra={"facts": facts})

    def refused(self, refusal: Refused, wire: str, hotkey: str | None, address: str) -> None:
        """Record a request that was not admitted. A flood of one reason is counted in the log, not told line by line."""
        reason = refusal.reason
        self._refusals.labels(reason).inc()
        self._this_minute().refused += 1
        self.refused_by_reason[reason] = self.refused_by_reason.get(reason, 0) + 1
        who = f"{address} {hotkey[:64]}" if hotkey else address
        self.refusals.appendleft(Event(time.time(), reason, who, refusal.detail))
        start_s, lines = self._logged.get(reason, (float("-inf"), 0))
        now_s = self._clock()
        if now_s - start_s >= LOG_PERIOD_S:
            if (unsaid := lines - LOG_LINES_PER_REASON) > 0:
                log.info("refused: %d more like this", unsaid, extra={"facts": {"reason": reason}})
            start_s, lines = now_s, 0
        self._logged[reason] = (start_s, lines + 1)
        if lines < LOG_LINES_PER_REASON:
            facts = {"reason": reason, "wire": wire, "address": address, "hotkey": hotkey and hotkey[:64]}
            log.info("refused: %s", refusal.detail, extra={"facts": facts})

    def _count(self, task: str, wire: str, outcome: str) -> None:
        self._requests.labels(task, wire, outcome).inc()
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _this_minute(self) -> Minute:
        at = int(time.time() // 60)
        if not self.minutes or self.minutes[-1].at != at:
            self.minutes.append(Minute(at))
        return self.minutes[-1]

    def text(self) -> bytes:
        return generate_latest(self.registry)


def _name(caller: Caller) -> str:
    uid = "" if caller.uid is None else f" uid {caller.uid}"
    return f"{caller.hotkey_ss58[:8]}{uid}"


class GpuCollector(Collector):
    """Reads the memory, temperature and load of every NVIDIA GPU at each scrape. `nvml` is the pynvml module; tests give another."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def collect(self) -> Iterator[Metric]:
        nvml = self._nvml
        used = GaugeMetricFamily("storyfi_gpu_memory_used_bytes", "by all programs", labels=["gpu", "name"])
        total = GaugeMetricFamily("storyfi_gpu_memory_bytes", "in all", labels=["gpu", "name"])
        heat = GaugeMetricFamily("storyfi_gpu_temperature_celsius", "of the chip", labels=["gpu", "name"])
        busy = GaugeMetricFamily("storyfi_gpu_busy_ratio", "0 to 1, last second", labels=["gpu", "name"])
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            labels = [str(index), nvml.nvmlDeviceGetName(handle)]
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            used.add_metric(labels, memory.used)
            total.add_metric(labels, memory.total)
            heat.add_metric(labels, nvml.nvmlDeviceGetTemperature(handle, 0))
            busy.add_metric(labels, nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        yield from (used, total, heat, busy)


def watch_gpus(registry: CollectorRegistry) -> bool:
    """Publish the GPUs' figures. Returns False if there is no NVIDIA driver to ask."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    registry.register(GpuCollector(pynvml))
    return True
