"""Formats log lines: one line an event on stderr, as text for people or as JSON for collectors.

Events carry their facts in `extra={"facts": {...}}`; nothing secret is ever put there, and control characters
in what a peer sent cannot start a new line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

from storyfi_lite.terminal import printable

LogFormat = Literal["text", "json"]


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        tail = "".join(f" {key}={_one_line(value)}" for key, value in facts.items())
        line = f"{_utc(record)} {record.levelname.lower():7} {_one_line(record.getMessage())}{tail}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def setup(log_format: LogFormat) -> None:
    """Send log lines to stderr: ours at INFO and above, those of libraries at WARNING and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("storyfi_lite").setLevel(logging.INFO)
    # uvicorn warns once for every malformed request: a stranger must not be able to fill the disk
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def _utc(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))


def _one_line(value: object) -> str:
    """Join lines, which are words of our own, with spaces, and escape every other character that a terminal would obey."""
    return printable(" ".join(line.strip() for line in str(value).splitlines()))
