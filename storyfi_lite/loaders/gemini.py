"""Calls Gemini over REST. No other file knows Google.

Two packages can make the calls. google-genai is used if it is installed. google-generativeai works too, but gets no new
features: it cannot switch thinking off, so a model that thinks does so at our cost and inside our token limit.
Requests and replies are the REST interface's JSON in both. Not here: retries, checks, money (api.py).
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import warnings
from dataclasses import replace
from typing import Any

from storyfi_lite.errors import ConfigError
from storyfi_lite.grammar.schema import dump
from storyfi_lite.loaders.answers import simple_schema
from storyfi_lite.loaders.client import ApiClient, ApiSettings, ErrorInBody, Failure, Forms, Prompt, Reply, logger
from storyfi_lite.loaders.connection import httpx_client, own_requests_session
from storyfi_lite.loaders.keys import Secret
from storyfi_lite.models.fetch import retry_after_s
from storyfi_lite.proxies import proxy_fault

_ROLES = {"user": "user", "assistant": "model"}
_ENDS = ("STOP", "MAX_TOKENS")
_BLOCKED = ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")
_connecting = threading.Lock()  # google-generativeai's configuration is global


def gemini_client(key: Secret, settings: ApiSettings) -> ApiClient:
    """Make a client with the better package of those that are installed. Raises ConfigError if there is none."""
    try:
        found = importlib.util.find_spec("google.genai")
    except (ImportError, ValueError):
        found = None
    if found:
        return GenaiClient(key, settings)
    logger.warning("%s may think at your cost: pip install google-genai to switch that off", settings.model.key)
    return GenerativeAiClient(key, settings)


class _GeminiClient(ApiClient):
    vendor = "Gemini"
    key_variable = "GEMINI_API_KEY"
    vendor_url = "https://generativelanguage.googleapis.com"

    def _by_google(self, status: int, message: object, headers: Any, details: list[Any], body: str) -> Failure:
        wait_s = retry_after_s(headers) or 0.0
        for detail in details:  # RetryInfo: Google says there how long to wait, not in a header
            delay = str(detail.get("retryDelay", "")) if isinstance(detail, dict) else ""
            if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,9})?s", delay):
                wait_s = wait_s or float(delay[:-1])
        if status == 400 and "FAILED_PRECONDITION" in body:  # the country, or billing that is not set up
            said = f"the {self.vendor} API does not serve this account: {self.clean(message)}"
            return Failure(ConfigError(said), fatal=True)
        if status == 429 and "PerDay" in body:
            return self.quota_spent(message, wait_s)
        return self.by_status(status, message, wait_s, "API_KEY_INVALID" in body)


class GenaiClient(_GeminiClient):
    """Calls through google-genai, with thinking off or at its least."""

    def _connect(self) -> None:
        import httpx
        from google.genai import Client

        self._least_thought = Forms({"thinkingBudget": 0}, {"thinkingLevel": "MINIMAL"}, {"thinkingLevel": "LOW"})
        self._schema = Forms("response_schema")
        # said outright: else the package reads the address from its environment, and takes v1, which lacks schemas
        where: Any = {"base_url": self.url, "api_version": "v1beta", "httpx_client": httpx_client(httpx.Client)}
        self._client: Any = Client(vertexai=False, api_key=self.key.get_secret_value(), http_options=where)

    def look_up(self, timeout_s: float) -> None:
        self._client.models.get(model=self.model_name, config={"http_options": {"timeout": int(timeout_s * 1000)}})

    def call(self, prompt: Prompt, timeout_s: float) -> Reply:
        from google.genai.errors import ClientError

        while True:
            thinking, with_schema = self._least_thought.best, self._schema.best
            try:
                return self._generate(prompt, timeout_s, thinking, bool(with_schema))
            except ClientError as error:
                words = str(error.message).lower() if error.code == 400 else ""
                refused = ("think" in words or "budget" in words) and self._least_thought.refuse(thinking)
                if not (refused or ("schema" in words and self._schema.refuse(with_schema))):
                    raise
                logger.info("%s does not take %s", self.model_name, thinking if refused else with_schema)

    def _generate(self, prompt: Prompt, timeout_s: float, thinking: Any, with_schema: bool) -> Reply:
        schema = gemini_schema(simple_schema(prompt.constraint.json_schema, unions=False))
        config: dict[str, Any] = {
            "system_instruction": prompt.system,
            "response_mime_type": "application/json",
            "max_output_tokens": prompt.max_tokens,
            "temperature": prompt.temperature,
            "thinking_config": thinking,
            "should_return_http_response": True,  # its own reading fails at reasons that it does not know
            "http_options": {"timeout": max(1, int(timeout_s * 1000))},
        }
        if with_schema:
            config["response_schema"] = schema
        else:
            config["system_instruction"] += f"\nThe JSON object follows this JSON Schema: {dump(schema)}"
        contents: Any = [{"role": _ROLES[role], "parts": [{"text": text}]} for role, text in prompt.turns]
        response = self._client.models.generate_content(model=self.model_name, contents=contents, config=config)
        return _reply(json.loads(response.sdk_http_response.body))

    def _failure(self, error: Exception) -> Failure | None:
        from google.genai.errors import APIError

        if not isinstance(error, APIError):
            return None
        problem = error.details.get("error", {}) if isinstance(error.details, dict) else {}
        details = problem.get("details", []) if isinstance(problem, dict) else []
        headers = getattr(error.response, "headers", {})
        return self._by_google(error.code, error.message, headers, details, json.dumps(error.details))


class GenerativeAiClient(_GeminiClient):
    """Calls through google-generativeai."""

    def _connect(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # that it gets no new features
                from google.generativeai import client as library
        except ImportError:
            raise ConfigError("Gemini needs a package that is missing\n  pip install '.[gemini]'") from None
        where = {"api_endpoint": self.settings.base_url} if self.settings.base_url else None
        with _connecting:
            library.configure(api_key=self.key.get_secret_value(), transport="rest", client_options=where)
            self._stories: Any = library.get_default_generative_client()
            self._models: Any = library.get_default_model_client()
            library.configure(api_key="none")  # nothing else in the process finds the key there
        transports: list[Any] = [self._stories.transport, self._models.transport]
        for transport in transports:
            own_requests_session(transport._session, self.settings.workers)

    def look_up(self, timeout_s: float) -> None:
        self._models.get_model(name=f"models/{self.model_name}", retry=None, timeout=timeout_s)

    def call(self, prompt: Prompt, timeout_s: float) -> Reply:
        from google.generativeai.protos import GenerateContentRequest

        config = {
            "responseMimeType": "application/json",
            "responseSchema": gemini_schema(simple_schema(prompt.constraint.json_schema, unions=False)),
            "maxOutputTokens": prompt.max_tokens,
            "temperature": prompt.temperature,
        }
        body = {
            "model": f"models/{self.model_name}",
            "systemInstruction": {"parts": [{"text": prompt.system}]},
            "contents": [{"role": _ROLES[role], "parts": [{"text": text}]} for role, text in prompt.turns],
            "generationConfig": {name: value for name, value in config.items() if value is not None},
        }
        request = GenerateContentRequest.from_json(json.dumps(body))
        response = self._stories.generate_content(request, retry=None, timeout=timeout_s)
        return _reply(json.loads(type(response).to_json(response, use_integers_for_enums=False)))

    def _failure(self, error: Exception) -> Failure | None:
        from google.api_core.exceptions import GoogleAPICallError
        from requests.exceptions import InvalidProxyURL, InvalidSchema

        if isinstance(error, InvalidProxyURL | InvalidSchema):
            return Failure(proxy_fault(error), fatal=True)
        status = getattr(error, "code", None)
        if not isinstance(error, GoogleAPICallError) or not isinstance(status, int):
            return None
        body, headers = getattr(error.response, "text", ""), getattr(error.response, "headers", {})
        words = error.message.partition("alt=json%3Benum-encoding%3Dint: ")[2] or error.message  # less the address
        return self._by_google(status, words, headers, list(error.details), body)


def gemini_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Write a simple schema as Gemini's Schema message, which has no additionalProperties and only these fields."""
    kept = ("description", "enum", "required", "minItems", "maxItems")
    converted: dict[str, Any] = {"type": schema["type"].upper()} | {key: schema[key] for key in kept if key in schema}
    if "items" in schema:
        converted["items"] = gemini_schema(schema["items"])
    if "properties" in schema:
        converted["properties"] = {key: gemini_schema(item) for key, item in schema["properties"].items()}
    return converted


def _reply(body: Any) -> Reply:
    """Read the first candidate's text without its thoughts. Unknown reasons for its end, words or numbers, are allowed for."""
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")
    if problem := body.get("error"):
        raise ErrorInBody(
            int(problem.get("code", 500)), problem.get("message", problem), bool(body.get("usageMetadata"))
        )
    used = body.get("usageMetadata") or {}
    prompt_tokens, total = used.get("promptTokenCount", 0), used.get("totalTokenCount")
    # the total holds the thinking tokens too, which are paid for as output
    reply = Reply(
        "",
        prompt_tokens if total else None,
        total - prompt_tokens if total else None,
        used.get("thoughtsTokenCount", 0),
    )
    candidates, feedback = body.get("candidates"), body.get("promptFeedback")
    if not candidates:
        blocked = f"prompt blocked ({feedback.get('blockReason', 'no reason given')})" if feedback else ""
        return replace(reply, refusal=blocked)
    reason = candidates[0].get("finishReason")
    parts = (candidates[0].get("content") or {}).get("parts") or []
    text = "".join(part.get("text", "") for part in parts if not part.get("thought"))
    if reason in _BLOCKED or (not text and reason not in _ENDS):
        return replace(reply, refusal=f"answer blocked ({reason or 'no reason given'})")
    return replace(reply, text=text, is_cut=reason == "MAX_TOKENS")
