"""Defines what a vendor's file adds to the API loader: one HTTP call, and what its errors mean.

The vendor's own structured output helps the model but is never trusted: every answer passes our check. Not here: retries,
repair, money (api.py).
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from storyfi_lite.errors import Busy, ConfigError, LiteError, Unavailable
from storyfi_lite.grammar import Constraint
from storyfi_lite.loaders.base import NotAgain
from storyfi_lite.loaders.connection import WebPage
from storyfi_lite.loaders.keys import Secret
from storyfi_lite.loaders.meter import Prices
from storyfi_lite.models.registry import ApiModel
from storyfi_lite.proxies import proxy_for

logger = logging.getLogger(__name__)

MAX_DETAIL_CHARS = 300
QUOTA_REST_S = 300.0


@dataclass(frozen=True)
class ApiSettings:
    """Holds an API model and how this operator uses it: `prices` and `base_url` are the operator's."""

    model: ApiModel
    base_url: str | None = None  # None: the vendor's own
    prices: Prices | None = None
    workers: int = 4
    max_queued: int = 16
    call_timeout_s: float = 55.0
    calls_per_text: int = 5  # the first call and its retries
    max_repairs: int = 2
    first_backoff_s: float = 0.5
    max_backoff_s: float = 8.0


@dataclass(frozen=True)
class Prompt:
    """Holds what is sent. `turns` are (role, text), roles `user` and `assistant`."""

    system: str
    turns: tuple[tuple[str, str], ...]
    constraint: Constraint
    max_tokens: int | None
    temperature: float | None


@dataclass(frozen=True)
class Reply:
    """Holds a vendor's answer. Tokens are None if the vendor did not count; `completion_tokens` include `thought_tokens`.
    `refusal`: the vendor's words on why there is no text. `is_cut`: the text ends at a token limit."""

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    thought_tokens: int = 0
    refusal: str = ""
    is_cut: bool = False


@dataclass(frozen=True)
class Failure:
    """Says why a call gave no reply. `free`: the vendor surely charged nothing. `fatal`: no later call can succeed.
    `not_found`: the model is unknown; fatal if that is said several times in a row (api.py). `rest_s`: a quota is spent, and until
    then every call would fail."""

    error: LiteError
    retry: bool = False
    retry_after_s: float = 0.0
    free: bool = True
    fatal: bool = False
    not_found: bool = False
    rest_s: float = 0.0


@dataclass
class ErrorInBody(Exception):
    """Holds an error that came with HTTP status 200. `is_paid`: the vendor counted tokens for the call."""

    status: int
    words: str
    is_paid: bool = False


class Forms:
    """Keeps the forms of one parameter that are left to try, best first; the last, None, leaves the parameter out. A form that
    the model refused is never sent again. Thread-safe."""

    def __init__(self, *forms: Any) -> None:
        self._forms = [*forms, None]
        self._lock = threading.Lock()

    @property
    def best(self) -> Any:
        return self._forms[0]

    def refuse(self, form: Any) -> bool:
        """Remove `form`, unless another thread already did. Returns False if nothing is left to change."""
        with self._lock:
            if form is not None and self._forms[0] == form:
                del self._forms[0]
            return form is not None


class ApiClient(ABC):
    """Calls one vendor's API. Subclasses: gemini.GenaiClient, gemini.GenerativeAiClient, openai.OpenAIClient. Their methods
    raise their packages' errors; `explain` turns any error into a Failure."""

    vendor: ClassVar[str]
    key_variable: ClassVar[str]
    vendor_url: ClassVar[str]

    def __init__(self, key: Secret, settings: ApiSettings) -> None:
        """Make the package's client. Raises ConfigError if the package is missing or a proxy setting unusable. Calls no network."""
        self.key, self.settings, self.model_name = key, settings, settings.model.key
        self._connect()

    @abstractmethod
    def _connect(self) -> None: ...

    @abstractmethod
    def look_up(self, timeout_s: float) -> None:
        """Ask for the model's description, which costs nothing. Raises if the vendor does not give it."""

    @abstractmethod
    def call(self, prompt: Prompt, timeout_s: float) -> Reply:
        """Ask for one answer, on this thread; `timeout_s` bounds each wait. Parameters that the model refuses are renamed or left
        out, now and in every later call."""

    @abstractmethod
    def _failure(self, error: Exception) -> Failure | None:
        """Say what the package's own error means; None for an error that is no HTTP answer."""

    @property
    def url(self) -> str:
        return self.settings.base_url or self.vendor_url

    def clean(self, text: object) -> str:
        """Prepare a vendor's words for our log: mask the key, join the lines, then shorten."""
        return " ".join(self.key.scrub(str(text)).split())[:MAX_DETAIL_CHARS]

    def explain(self, error: Exception) -> Failure:
        """Say what any error of a call means."""
        for cause in (error, error.__cause__):  # packages wrap what our connection raises
            if isinstance(cause, LiteError):
                return Failure(cause, fatal=isinstance(cause, ConfigError))
            if isinstance(cause, WebPage):
                hint = "  does this network want a sign-in first?"
                if self.settings.base_url:
                    hint = "  --api.base-url must name the API, often with /v1 at its end"
                came = f"answered with a web page, not with JSON: {self.clean(cause)}"
                return Failure(Unavailable(f"the {self.vendor} API at {urlsplit(self.url).netloc} {came}\n{hint}"))
            if isinstance(cause, ErrorInBody):
                failure = self.by_status(cause.status, cause.words)
                return Failure(failure.error, retry=failure.retry and not cause.is_paid, free=not cause.is_paid)
        if answered := self._failure(error):
            return answered
        # no HTTP answer: a time-out, a connection refused or cut, a body that is not the vendor's JSON
        proxy = proxy_for(self.url)
        way = f" through the proxy of {proxy}" if proxy else f" from {self.url}" if self.settings.base_url else ""
        detail = f"the {self.vendor} API gave no whole answer{way} ({type(error).__name__})"
        return Failure(Unavailable(detail), retry=True, free=False)

    def quota_spent(self, words: object, wait_s: float = 0.0) -> Failure:
        """Explain a 429 that does not pass in seconds, whatever wait the vendor names: the day's quota, or the account's credit."""
        said = f"the {self.vendor} account behind {self.key_variable} is out of quota: {self.clean(words)}"
        return Failure(NotAgain(said), rest_s=max(wait_s, QUOTA_REST_S))

    def by_status(self, status: int, words: object, retry_after_s: float = 0.0, bad_key: bool = False) -> Failure:
        """Say what an HTTP status means for us."""
        said = f"the {self.vendor} API answered {status}: {self.clean(words) or 'nothing more'}"
        if status == 429:
            return Failure(Busy(said, retry_after_s or None), retry=True, retry_after_s=retry_after_s)
        if status >= 500 or status == 408:
            return Failure(Unavailable(said), retry=True, retry_after_s=retry_after_s)
        if bad_key or status in (401, 403):
            return Failure(ConfigError(f"{said}\n  check {self.key_variable} and its account"), fatal=True)
        if status in (404, 410):
            model, host = self.settings.model, urlsplit(self.url).netloc
            hint = f"{model.end}: --api.model {model.successor}" if model.end else "another model: --api.model NAME"
            gone = ConfigError(f"{said}\n  {model.key} is not to be had at {host}; {hint}")
            return Failure(gone, retry=status == 404, fatal=status == 410, not_found=True)
        return Failure(ConfigError(said))
