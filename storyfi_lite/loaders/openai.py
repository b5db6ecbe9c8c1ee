"""OpenAI, or any server that speaks its chat completions (`--api.base-url`). The only file that knows the
openai package.

Not here: retries, checks, money (api.py).
"""

from __future__ import annotations

from ssl import SSLContext
from typing import Any

from storyfi_lite.errors import ConfigError
from storyfi_lite.grammar.schema import dump
from storyfi_lite.loaders.answers import simple_schema
from storyfi_lite.loaders.api import ApiLoader, Failure, Line, Prompt, Reply, logger, retry_after_s

VENDOR_URL = "https://api.openai.com/v1"  # said outright: else the package reads OPENAI_BASE_URL by itself


class OpenAILoader(ApiLoader):
    """`OPENAI_API_KEY`; the registry's default is gpt-4-turbo."""

    vendor = "OpenAI"
    provider = "openai"
    key_variable = "OPENAI_API_KEY"

    def _connect(self) -> None:
        self._takes_schema = True
        try:
            import httpx  # the package's own HTTP library
            import openai  # noqa: F401
        except ImportError:
            raise ConfigError("OpenAI needs a package that is missing\n  pip install '.[openai]'") from None
        # once: a call's own would read all certificates again, 20 ms and a megabyte that is freed late
        self._tls = httpx.create_ssl_context()

    def _call(self, prompt: Prompt, timeout_s: float, line: Line) -> Reply:
        from openai import BadRequestError

        if not self._takes_schema:
            return self._chat(prompt, timeout_s, line, with_schema=False)
        try:
            return self._chat(prompt, timeout_s, line, with_schema=True)
        except BadRequestError as error:
            if not _is_about_schema(error):
                raise
        logger.warning("%s takes no JSON schema: asking for a JSON object instead", self.settings.model_name)
        self._takes_schema = False
        return self._chat(prompt, timeout_s, line, with_schema=False)

    def _chat(self, prompt: Prompt, timeout_s: float, line: Line, with_schema: bool) -> Reply:
        from openai import OpenAI

        schema = simple_schema(prompt.constraint.json_schema, unions=True)
        system, response_format = prompt.system, {"type": "json_object"}
        if with_schema:
            form = {"name": "story", "strict": True, "schema": schema}
            response_format = {"type": "json_schema", "json_schema": form}  # type: ignore[dict-item]
        else:
            system += f"\nThe JSON object follows this JSON Schema: {dump(schema)}"
        options: dict[str, Any] = {"model": self.settings.model_name, "response_format": response_format}
        if prompt.max_tokens is not None:
            options["max_tokens"] = prompt.max_tokens
        if prompt.temperature is not None:
            options["temperature"] = prompt.temperature
        turns = [("system", system), *prompt.turns]
        # a client for each call, so that its one connection belongs to this line
        client = OpenAI(
            api_key=self._key.reveal(),
            base_url=self.settings.base_url or VENDOR_URL,
            max_retries=0,
            timeout=timeout_s,
            http_client=_http_client(line, timeout_s, self._tls),
        )
        with client, line.open():
            return _reply(
                client.chat.completions.create(
                    messages=[{"role": role, "content": text} for role, text in turns],  # type: ignore[misc]
                    **options,
                )
            )

    def _failure(self, error: Exception) -> Failure:
        from openai import APIStatusError

        if not isinstance(error, APIStatusError):
            return self._cut_off(error)
        failure = self._by_status(error.status_code, error.message, retry_after_s(error.response.headers))
        if error.code == "insufficient_quota":  # a 429 that waiting does not mend
            words = self._clean(error.message)
            return Failure(
                ConfigError(f"the {self.vendor} account behind {self.key_variable} is out of quota: {words}")
            )
        return failure


def _http_client(line: Line, timeout_s: float, tls: SSLContext) -> Any:
    """The package's own HTTP client, which tells the line each socket that it opens, and follows no
    redirect."""
    from openai import DefaultHttpxClient

    def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            line.hold(info["return_value"].get_extra_info("socket"))

    def watch(request: Any) -> None:
        request.extensions = {**request.extensions, "trace": trace}

    return DefaultHttpxClient(verify=tls, timeout=timeout_s, follow_redirects=False, event_hooks={"request": [watch]})


def _is_about_schema(error: Any) -> bool:
    words = str(error.message).lower()
    return "response_format" in words or "json_schema" in words or "json schema" in words


def _reply(completion: Any) -> Reply:
    """Servers that only look like OpenAI's leave fields out, so nothing is taken for granted."""
    usage = getattr(completion, "usage", None)
    prompt_tokens = _count(getattr(usage, "prompt_tokens", None))
    completion_tokens = _count(getattr(usage, "completion_tokens", None))
    choices = getattr(completion, "choices", None)
    if not choices:
        return Reply("", prompt_tokens, completion_tokens)
    message = getattr(choices[0], "message", None)
    refusal = getattr(message, "refusal", None) or ""
    if choices[0].finish_reason == "content_filter":
        refusal = refusal or "answer blocked (content_filter)"
    text = getattr(message, "content", None)
    return Reply(text if isinstance(text, str) else "", prompt_tokens, completion_tokens, str(refusal))


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
