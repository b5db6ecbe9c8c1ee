"""Spells a story that is laid out (document.py) as one HTML page: no script, nothing from elsewhere, for any screen and for paper.

What the writer wrote is escaped, always: a story may contain markup.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from storyfi_lite.story.document import WORDS, Block, Document, Facts, Heading, Points, Prose, claim_head

_STYLE = """
:root { color-scheme: light dark; --paper: #fbf8f1; --ink: #2b2620; --faint: #776d60; --line: #e0d8c8; --accent: #8a3b1c; }
@media (prefers-color-scheme: dark) { :root { --paper: #1b1a18; --ink: #ddd6ca; --faint: #978e80; --line: #38352f; --accent: #d9926f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.15rem/1.65 Charter, "Iowan Old Style", Georgia, "Noto Serif", serif;
  text-rendering: optimizeLegibility; overflow-wrap: break-word; }
:lang(zh) body, body:lang(zh) { font-family: "Songti SC", "Noto Serif CJK SC", "Source Han Serif SC", SimSun, serif; line-height: 1.9; }
main, header, footer { max-width: 36rem; margin: 0 auto; padding: 0 1.3rem; }
header { padding-top: 16vh; padding-bottom: 5rem; text-align: center; }
h1 { font-size: clamp(1.9rem, 7vw, 2.9rem); line-height: 1.2; margin: 0 0 .8rem; font-weight: 600; text-wrap: balance; }
header p { color: var(--faint); font-style: italic; margin: 0; }
:lang(zh) header p { font-style: normal; letter-spacing: .1em; }
section { padding-bottom: 3rem; }
h2 { font-size: 1.45rem; line-height: 1.3; margin: 0 0 1.4rem; font-weight: 600; text-wrap: balance; }
h2::before { content: "❦"; display: block; color: var(--accent); font-size: 1rem; margin-bottom: .9rem; }
h3 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
p { margin: 0; hyphens: auto; }
p + p { text-indent: 1.5em; }
:lang(zh) p { text-align: justify; text-indent: 2em; hyphens: none; }
:lang(zh) header p, :lang(zh) footer p { text-indent: 0; text-align: inherit; }
:lang(en) h2 + .opens > p:first-of-type::first-letter { float: left; font-size: 3.3em; line-height: .85; padding: .06em .08em 0 0; color: var(--accent); }
dl { margin: 1rem 0 0; display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; font-size: .92em; }
dt { color: var(--faint); } dd { margin: 0; }
ol, ul { padding-left: 1.6rem; margin: 1.2rem 0; } li { margin: .7rem 0; }
ul { list-style: none; padding: 0; } ul li { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; }
li b { display: block; } ul li span { color: var(--faint); font-size: .94em; }
footer { border-top: 1px solid var(--line); padding-top: 2rem; padding-bottom: 4rem; font: .8rem/1.5 system-ui, sans-serif; color: var(--faint); }
footer h2 { font-size: 1rem; margin: 0 0 1rem; } footer h2::before { content: none; }
footer dl { font-size: 1em; margin: 0 0 1.3rem; } footer dt:first-child, footer dt:first-child + dd { color: var(--ink); font-weight: 600; }
@media (max-width: 32rem) { body { font-size: 1.08rem; } header { padding-top: 9vh; padding-bottom: 3rem; }
  main dl { grid-template-columns: 1fr; gap: 0; } main dd { margin-bottom: .5rem; } }
@media print { body { background: none; color: black; font-size: 11pt; } header { padding-top: 0; } h2, h3 { break-after: avoid; } ul li { break-inside: avoid; } }
"""


def page(document: Document, comment: str) -> str:
    """The page, with `comment` at its end, where saved.py finds it."""
    words, title = WORDS[document.language], escape(document.title)
    sections = "\n".join(f"<section>\n{chr(10).join(map(_spelled, part))}\n</section>" for part in document.parts)
    return f"""<!doctype html>
<html lang="{"zh-Hans" if document.language == "zh" else "en"}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{_STYLE}</style>
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
{chr(10).join(_claims(document))}
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


def _claims(document: Document) -> Iterator[str]:
    head = claim_head(WORDS[document.language])
    for row in document.claims:
        yield _facts(tuple((label, said) for label, said in zip(head, row, strict=True) if said))
