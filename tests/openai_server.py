"""OpenAI's chat completions, as it spells them, for tests/api_server.py's script."""

from __future__ import annotations

import json
from typing import Any

from tests.api_server import Step


def text(content: object, finish: str = "stop", refusal: str | None = None) -> Step:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return reply(
        {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4-turbo",
            "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
        }
    )  # fmt: skip


def blocked() -> Step:
    return text(None, refusal="I'm sorry, I can't assist with that.")


def cut_by_safety() -> Step:
    return text("", finish="content_filter")


def reply(body: Any) -> Step:
    return Step(body=json.dumps(body, ensure_ascii=False).encode())


def error(
    status: int,
    message: str,
    headers: dict[str, str] | None = None,
    code: str | None = None,
    param: str | None = None,
) -> Step:
    problem = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Step(status, json.dumps({"error": problem}).encode(), headers or {})


def bad_key(message: str = "Incorrect API key provided.") -> Step:
    return error(401, message, code="invalid_api_key")


def no_json_schema() -> Step:
    return error(400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.")
