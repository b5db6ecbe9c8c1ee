"""Keeps a line of what each admitted request asked and what came of it: no text, no caller. `--traffic` plans with it.

    {"at": 1790000000.1, "task": "blueprint", "language": "zh", "chapters": 1, "tokens": 402, "seconds": 9.3, "outcome": "answered"}

`at` is the time of its arrival. The file is bounded; the oldest lines go first.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from storyfi_lite import files
from storyfi_lite.errors import LiteError
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.tasks.base import language_of

log = logging.getLogger(__name__)

MAX_LINES = 20_000  # some weeks, 3 MB; twice as many stand in the file before it is cut
MOVED_BY = "--state-dir DIRECTORY"


class RequestLog:
    """Appends to one file. What cannot be written is told once, and no request is lost for it."""

    def __init__(self, path: Path) -> None:
        self._path, self._told = path, False
        self._lines = self._cut()

    def add(self, request: StoryRequest, seconds: float, outcome: str, tokens: int = 0) -> None:
        entry = {
            "at": round(time.time() - seconds, 2),
            "task": request.task_type,
            "language": language_of(request.user_input),
            "chapters": len(request.chapter_ids or [1]) if request.task_type == "chapters" else 1,
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "outcome": outcome,
        }
        try:
            if self._lines >= 2 * MAX_LINES:
                self._lines = self._cut()
            with files.writing(self._path, MOVED_BY), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self._lines += 1
        except LiteError as error:
            if not self._told:
                log.warning("%s; requests are not kept until then", error)
            self._told = True

    def _cut(self) -> int:
        """Leave the last lines, and count them. A line that a stop cut short is dropped."""
        with files.writing(self._path, MOVED_BY):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                text = self._path.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                return 0
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("}\n")][-MAX_LINES:]
        if kept != lines:
            files.write_text(self._path, "".join(kept), MOVED_BY)
        return len(kept)
