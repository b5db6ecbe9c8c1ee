"""Gemini through google-generativeai, over REST. The only file that knows Google.

That library gets no new features; its successor is google-genai. Not here: retries, checks, money (api.py).
"""

from __future__ import annotations

import re
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any

from storyfi_lite.errors import ConfigError
from storyfi_lite.loaders.answers import simple_schema
from storyfi_lite.loaders.api import ApiLoader, Failure, Line, Prompt, Reply, retry_after_s

_BLOCKED = ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")
_connecting = threading.Lock()  # the library's configuration is global


class GeminiLoader(ApiLoader):
    """`GEMINI_API_KEY`; the registry's default is gemini-2.5-flash."""

    vendor = "Gemini"
    provider = "gemini"
    key_variable = "GEMINI_API_KEY"

    def _connect(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # that it gets no new features
                from google.generativeai.client import configure, get_default_generative_client
        except ImportError:
            raise ConfigError("Gemini needs a package that is missing\n  pip install '.[gemini]'") from None
        where = {"api_endpoint": self.settings.base_url} if self.settings.base_url else None
        with _connecting:
            configure(api_key=self._key.reveal(), transport="rest", client_options=where)
            self._client = get_default_generative_client()
            configure(api_key="none")  # nothing else in the process finds the key there
        transport: Any = self._client.transport
        self._current = threading.local()
        _own_session(transport._session, self.settings.workers, lambda used: self._current.line.hold(used))

    def _call(self, prompt: Prompt, timeout_s: float, line: Line) -> Reply:
        from google.generativeai.protos import GenerateContentRequest

        roles = {"user": "user", "assistant": "model"}
        config: dict[str, Any] = {
            "response_mime_type": "application/json",
            "response_schema": gemini_schema(simple_schema(prompt.constraint.json_schema, unions=False)),
        }
        if prompt.max_tokens is not None:
            config["max_output_tokens"] = prompt.max_tokens
        if prompt.temperature is not None:
            config["temperature"] = prompt.temperature
        request = GenerateContentRequest(
            model=f"models/{self.settings.model_name}",
            system_instruction={"parts": [{"text": prompt.system}]},
            contents=[{"role": roles[role], "parts": [{"text": text}]} for role, text in prompt.turns],
            generation_config=config,
        )
        self._current.line = line
        with line.open():
            return _reply(self._client.generate_content(request, retry=None, timeout=timeout_s))

    def _failure(self, error: Exception) -> Failure:
        from google.api_core.exceptions import GoogleAPICallError

        status = getattr(error, "code", None)
        if not isinstance(error, GoogleAPICallError) or not isinstance(status, int):
            return self._cut_off(error)
        body = getattr(error.response, "text", "") if error.response is not None else ""
        wait_s = retry_after_s(getattr(error.response, "headers", {}))
        return self._by_status(status, error.message, wait_s or _retry_delay_s(error), "API_KEY_INVALID" in body)


def gemini_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The subset's names in Gemini's Schema message, which has no additionalProperties and only these
    fields."""
    converted: dict[str, Any] = {"type_": schema["type"].upper()}
    for ours, theirs in (
        ("description", "description"), ("enum", "enum"), ("required", "required"),
        ("minItems", "min_items"), ("maxItems", "max_items"),
    ):  # fmt: skip
        if ours in schema:
            converted[theirs] = schema[ours]
    if "items" in schema:
        converted["items"] = gemini_schema(schema["items"])
    if "properties" in schema:
        converted["properties"] = {key: gemini_schema(item) for key, item in schema["properties"].items()}
    return converted


def _reply(response: Any) -> Reply:
    used = response.usage_metadata
    counted = used.total_token_count > 0
    prompt_tokens = used.prompt_token_count if counted else None
    # the total holds the thinking tokens too, which are paid for as output
    completion_tokens = used.total_token_count - used.prompt_token_count if counted else None
    if response.prompt_feedback.block_reason:
        return Reply(
            "",
            prompt_tokens,
            completion_tokens,
            f"prompt blocked ({response.prompt_feedback.block_reason.name})",
        )
    if not response.candidates:
        return Reply("", prompt_tokens, completion_tokens)
    candidate = response.candidates[0]
    text = "".join(part.text for part in candidate.content.parts)
    reason = getattr(candidate.finish_reason, "name", str(candidate.finish_reason))
    return Reply(text, prompt_tokens, completion_tokens, f"answer blocked ({reason})" if reason in _BLOCKED else "")


def _retry_delay_s(error: Any) -> float:
    """Google says how long to wait in the error's details (RetryInfo) rather than in a header."""
    for detail in error.details:
        delay = detail.get("retryDelay", "") if isinstance(detail, dict) else ""
        if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,9})?s", str(delay)):
            return float(delay[:-1])
    return 0.0


def _own_session(session: Any, workers: int, hold: Callable[[socket.socket], None]) -> None:
    """Takes the library's HTTP session in hand: no retries or redirects of its own (a redirect would carry
    the key to another host), and `hold` is told each call's socket, on the call's thread."""
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool

    def noting(kind: Any) -> Any:
        class Noting(kind):  # type: ignore[misc]
            def request(self, *args: Any, **options: Any) -> None:
                super().request(*args, **options)
                hold(self.sock)

        return Noting

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **options: Any) -> HTTPConnectionPool:
            pool = super().get_connection_with_tls_context(*args, **options)
            if "ConnectionCls" not in vars(pool):
                pool.ConnectionCls = noting(pool.ConnectionCls)
            return pool

    session.mount("https://", Adapter(pool_maxsize=workers))
    session.mount("http://", Adapter(pool_maxsize=workers))
    session.max_redirects = 0
    session._max_refresh_attempts = 0  # google.auth would send a refused request twice more
