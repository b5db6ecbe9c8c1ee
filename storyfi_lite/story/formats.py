"""Spells answers in the formats that a person asks for; each carries what `verify`, `prove` and `--context` need (saved.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyfi_lite.grammar.schema import dump
from storyfi_lite.story.document import WORDS, Block, Document, Facts, Heading, Points, Prose, claim_head, lay_out
from storyfi_lite.story.page import page
from storyfi_lite.story.saved import SavedAnswer, comment

if TYPE_CHECKING:
    from storyfi_lite.validator.verdict import Verdict

_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md"}
_NUMBERS = re.compile(r"\[\n\s+(\d+(?:,\n\s+\d+)*)\n\s+\]")  # only between tokens of JSON: a string holds no line feed
_MARKS = re.compile(r"([\\`*_\[\]<>&|~#]|^[-+=])")  # of Markdown
_ITEM = re.compile(r"^([0-9]+)([.)])")


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


def markdown(document: Document) -> str:
    """Write a story as Markdown, with a line feed at its end. What the writer wrote stays text: it makes no heading, link or tag."""
    words = WORDS[document.language]
    blocks = ["\n".join(_spelled(block)) for part in document.parts for block in part]
    lines = [f"# {_plain(document.title)}", *([f"*{_plain(document.subtitle)}*"] if document.subtitle else []), *blocks]
    if document.claims:
        table = [claim_head(words), ("---",) * len(claim_head(words)), *(map(_plain, row) for row in document.claims)]
        lines += ["---", f"## {words['made']}", "\n".join(f"| {' | '.join(row)} |" for row in table), words["how"]]
    return "\n\n".join(lines) + "\n"


def _spelled(block: Block) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"{'#' * block.level} {_plain(block.text)}"
    elif isinstance(block, Prose):
        yield "\n\n".join(map(_plain, block.paragraphs))
    elif isinstance(block, Facts):
        yield from (f"- **{_plain(label)}** {_plain(said)}" for label, said in block.rows)
    elif isinstance(block, Points):
        for number, (first, rest) in enumerate(block.items, 1):
            yield f"{f'{number}.' if block.is_numbered else '-'} **{_plain(first)}** {_plain(rest)}"


def _plain(text: str) -> str:
    return _ITEM.sub(r"\1\\\2", _MARKS.sub(r"\\\1", " ".join(text.split())))
