"""Spells answers in the formats that a person asks for; each carries what `verify`, `prove` and `--context` need (saved.py).

A page is one HTML file: no script, nothing from elsewhere, for any screen and for paper. What the writer wrote is escaped, always: a
story may contain markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyfi_lite.grammar.schema import dump
from storyfi_lite.story.document import WORDS, Block, Document, Facts, Heading, Points, Prose, claim_head, lay_out
from storyfi_lite.story.saved import SavedAnswer, comment

if TYPE_CHECKING:
    from storyfi_lite.validator.verdict import Verdict

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
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


# --- the page ----------------------------------------------------------------------------------------------------


def page(document: Document, comment: str) -> str:
    """Write the page, with `comment` at its end, where saved.py finds it."""
    words, title = WORDS[document.language], escape(document.title)
    head = claim_head(words)
    claims = [
        _facts(tuple((label, said) for label, said in zip(head, row, strict=True) if said)) for row in document.claims
    ]
    sections = "\n".join(f"<section>\n{chr(10).join(map(_spelled_html, part))}\n</section>" for part in document.parts)
    return f"""<!doctype html>
<html lang="{"zh-Hans" if document.language == "zh" else "en"}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{_STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{escape(document.subtitle)}</p>
</header>
<main>
{sections}
</main>
<footer>
<h2>{words["made"]}</h2>
{chr(10).join(claims)}
<p>{words["how"]}</p>
</footer>
{comment}
</body>
</html>
"""


def _spelled_html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Prose):
        opens = ' class="opens"' if len(block.paragraphs) > 1 and block.paragraphs[0][:1].isalpha() else ""
        return f"<div{opens}>{''.join(f'<p>{escape(text)}</p>' for text in block.paragraphs)}</div>"
    if isinstance(block, Facts):
        return _facts(block.rows)
    assert isinstance(block, Points)
    list_of = "ol" if block.is_numbered else "ul"
    items = "".join(f"<li><b>{escape(first)}</b> <span>{escape(rest)}</span></li>" for first, rest in block.items)
    return f"<{list_of}>{items}</{list_of}>"


def _facts(rows: tuple[tuple[str, str], ...]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(label)}</dt><dd>{escape(said)}</dd>' for label, said in rows)}</dl>"
