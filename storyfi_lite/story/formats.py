"""Spells answers in the formats that a person asks for; each carries what `verify`, `prove` and `--context` need (saved.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyfi_lite.grammar.schema import dump
from storyfi_lite.story.document import lay_out
from storyfi_lite.story.markdown import markdown
from storyfi_lite.story.page import page
from storyfi_lite.story.saved import SavedAnswer, comment

if TYPE_CHECKING:
    from storyfi_lite.validator.verdict import Verdict

_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md"}
_NUMBERS = re.compile(r"\[\n\s+(\d+(?:,\n\s+\d+)*)\n\s+\]")  # only between tokens of JSON: a string holds no line feed


def format_of(path: Path | None) -> str:
    """Return the format that a file's name asks for."""
    return _SUFFIXES.get(path.suffix.lower(), "json") if path else "json"


def spell(
    form: str, user_input: str, answers: Sequence[SavedAnswer], data: dict[str, Any], verdicts: Mapping[str, Verdict]
) -> str:
    """Spell the answers as `md` or `html`, with `data` in a comment at the end; as `json`, `data` itself, compact."""
    if form == "json":
        return dump(data) + "\n"
    document = lay_out(user_input, answers, verdicts)
    return page(document, comment(data)) if form == "html" else f"{markdown(document)}\n{comment(data)}\n"


def for_a_terminal(text: str) -> str:
    """Give each value of JSON a line of its own, but lists of numbers one; leave any other format as it is."""
    if not text.startswith("{"):
        return text
    indented = json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", indented) + "\n"
