"""Spells a story that is laid out (document.py) as Markdown. What the writer wrote stays text: it makes no heading, link or tag."""

from __future__ import annotations

import re
from collections.abc import Iterator

from storyfi_lite.story.document import WORDS, Block, Document, Facts, Heading, Points, Prose, claim_head

_SPECIAL = re.compile(r"([\\`*_\[\]<>&|~#]|^[-+=])")
_NUMBER = re.compile(r"^([0-9]+)([.)])")


def markdown(document: Document) -> str:
    """Write the text, with a line feed at its end."""
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
    return _NUMBER.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", " ".join(text.split())))
