"""Spells a story that is laid out (document.py) as one HTML page: no script, nothing from elsewhere, for any screen and for paper.

What the writer wrote is escaped, always: a story may contain markup.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from storyfi_lite.story.document import WORDS, Block, Document, Facts, Heading, Points, Prose, claim_head

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def page(document: Document, comment: str) -> str:
    """Write the page, with `comment` at its end, where saved.py finds it."""
    words, title = WORDS[document.language], escape(document.title)
    head = claim_head(words)
    claims = [
        _facts(tuple((label, said) for label, said in zip(head, row, strict=True) if said)) for row in document.claims
    ]
    sections = "\n".join(f"<section>\n{chr(10).join(map(_spelled, part))}\n</section>" for part in document.parts)
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


def _spelled(block: Block) -> str:
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
