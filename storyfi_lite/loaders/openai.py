"""Calls OpenAI, or any server with OpenAI's chat completions (`--api.base-url`). No other file knows the openai package.

Not here: retries, checks, money (api.py).
"""

from __future__ import annotations

import re
from typing import Any

from storyfi_lite.errors import ConfigError, Unavailable
from storyfi_lite.grammar.schema import dump
from storyfi_lite.loaders.answers import simple_schema
from storyfi_lite.loaders.client import ApiClient, ErrorInBody, Failure, Forms, Prompt, Reply, logger
from storyfi_lite.loaders.connection import httpx_client
from storyfi_lite.models.fetch import retry_after_s

_FILTERED = "content_filter"  # Azure's refuses with an error, not with an answer
# A refused parameter -> how servers speak of it; where they name several, the first that was sent is meant.
_SPOKEN_OF = {
    "max_tokens": r"max_(completion_)?tokens",
    "temperature": r"temperature",
    "reasoning_effort": r"reasoning|effort",
    "response_format": r"response_format|json.?schema|json_object|structured output|grammar|schema",
}


class OpenAIClient(ApiClient):
    """Calls through the openai package. A parameter that the model refuses is renamed or left out; its `Forms` remember that."""

    vendor = "OpenAI"
    key_variable = "OPENAI_API_KEY"
    vendor_url = "https://api.openai.com/v1"

    def _connect(self) -> None:
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ImportError:
            raise ConfigError("OpenAI needs a package that is missing\n  pip install '.[openai]'") from None
        self._forms = {
            "max_tokens": Forms("max_tokens", "max_completion_tokens"),
            "temperature": Forms("temperature"),
            "reasoning_effort": Forms("none", "minimal", "low"),
            "response_format": Forms("json_schema", "json_object"),
        }
        # the address is said outright: else the package reads OPENAI_BASE_URL by itself
        self._client = OpenAI(
            api_key=self.key.get_secret_value(),
            base_url=self.url,
            max_retries=0,
            http_client=httpx_client(DefaultHttpxClient),
        )

    def look_up(self, timeout_s: float) -> None:
        from openai import APIStatusError

        try:
            self._client.models.retrieve(self.model_name, timeout=timeout_s)
        except APIStatusError as error:
            if "scope" not in _words(error):  # a key that may write but not look up is a good key
                raise

    def call(self, prompt: Prompt, timeout_s: float) -> Reply:
        from openai import APIStatusError

        while True:
            forms = {name: forms.best for name, forms in self._forms.items()}
            try:
                request = self._request(prompt, forms)
                return _reply(self._client.chat.completions.create(**request, timeout=timeout_s))
            except APIStatusError as error:
                if not self._refused(error, forms):
                    raise

    def _request(self, prompt: Prompt, forms: dict[str, Any]) -> dict[str, Any]:
        schema = simple_schema(prompt.constraint.json_schema, unions=True)
        system, format_name = prompt.system, forms["response_format"]
        request: dict[str, Any] = {"model": self.model_name}
        if format_name == "json_schema":
            form = {"name": "story", "strict": True, "schema": schema}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        else:
            system += f"\nThe JSON object follows this JSON Schema: {dump(schema)}"
            if format_name:
                request["response_format"] = {"type": format_name}
        for name, value in (("max_tokens", prompt.max_tokens), ("temperature", prompt.temperature)):
            if value is not None and forms[name]:
                request[forms[name]] = value
        if forms["reasoning_effort"]:
            request["reasoning_effort"] = forms["reasoning_effort"]
        turns = [("system", system), *prompt.turns]
        return request | {"messages": [{"role": role, "content": text} for role, text in turns]}

    def _refused(self, error: Any, forms: dict[str, Any]) -> bool:
        """Move on to the next form of the parameter that the server refuses. Returns False if the error is about something else."""
        if error.status_code not in (400, 422) or error.code == _FILTERED:
            return False
        words = f"{error.param} {_words(error)}".lower()
        for name, pattern in _SPOKEN_OF.items():
            if re.search(pattern, words) and self._forms[name].refuse(forms[name]):
                logger.info("%s does not take %s %s: %s", self.model_name, name, forms[name], self.clean(_words(error)))
                return True
        return False

    def _failure(self, error: Exception) -> Failure | None:
        from openai import APIStatusError

        if not isinstance(error, APIStatusError):
            return None
        words, wait_s = self.clean(_words(error)), retry_after_s(error.response.headers) or 0.0
        if error.code == "insufficient_quota":  # a 429 that waiting does not mend
            return self.quota_spent(words, wait_s)
        if error.code == _FILTERED:
            return Failure(Unavailable(f"the {self.vendor} API refused to write this story: {words}"))
        return self.by_status(error.status_code, words, wait_s)


def _words(error: Any) -> str:
    """Return the server's words, without what the package puts around them."""
    return str(error.body["message"] if isinstance(error.body, dict) and "message" in error.body else error.message)


def _reply(completion: Any) -> Reply:
    """Read a completion. Any field may be missing: servers that imitate OpenAI leave some out."""
    usage = getattr(completion, "usage", None)
    prompt_tokens = _count(getattr(usage, "prompt_tokens", None))
    completion_tokens = _count(getattr(usage, "completion_tokens", None))
    choices = getattr(completion, "choices", None)
    choice = choices[0] if choices else None
    if problem := getattr(completion, "error", None):
        _raise(problem, is_paid=bool(completion_tokens))
    if problem := getattr(choice, "error", None):  # the model had begun to write
        _raise(problem, is_paid=completion_tokens != 0)
    if choice is None:
        return Reply("", prompt_tokens, completion_tokens)
    message = getattr(choice, "message", None)
    reason = getattr(choice, "finish_reason", None)
    refusal = getattr(message, "refusal", None) or (f"answer blocked ({reason})" if reason == _FILTERED else "")
    thought = _count(getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", None)) or 0
    content = getattr(message, "content", None)
    if isinstance(content, list):  # of parts; thoughts are parts of other types
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(str(part.get("text", "")) for part in parts)
    text = content if isinstance(content, str) else ""
    return Reply(text, prompt_tokens, completion_tokens, thought, str(refusal), is_cut=reason == "length")


def _raise(problem: Any, is_paid: bool) -> None:
    fields = problem if isinstance(problem, dict) else {"message": problem}
    code = fields.get("code")
    raise ErrorInBody(code if isinstance(code, int) else 500, str(fields.get("message") or problem), is_paid)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
