"""Gemini's answers, as its REST interface spells them, for tests/api_server.py's script."""

from __future__ import annotations

import json
from typing import Any

from tests.api_server import Step


def text(content: str, finish: str = "STOP") -> Step:
    return reply(
        {
            "candidates": [
                {
                    "content": {"role": "model", "parts": [{"text": content}]},
                    "finishReason": finish,
                    "index": 0,
                }
            ],
            "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 40, "totalTokenCount": 150},
            "modelVersion": "gemini-2.5-flash",
        }
    )


def blocked() -> Step:
    return reply(
        {
            "promptFeedback": {"blockReason": "SAFETY"},
            "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9},
        }
    )


def cut_by_safety() -> Step:
    return reply({"candidates": [{"finishReason": "SAFETY", "index": 0}]})


def reply(body: Any) -> Step:
    return Step(body=json.dumps(body, ensure_ascii=False).encode())


def error(status: int, message: str, headers: dict[str, str] | None = None, details: list[Any] | None = None) -> Step:
    names = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 410: "NOT_FOUND",
             429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}  # fmt: skip
    problem = {"code": status, "message": message, "status": names[status], "details": details or []}
    return Step(status, json.dumps({"error": problem}).encode(), headers or {})


def bad_key(message: str = "API key not valid. Please pass a valid API key.") -> Step:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
    }
    return error(400, message, details=[info])


def retry_info(delay: str) -> list[Any]:
    return [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
