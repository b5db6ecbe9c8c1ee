"""Prints tables that cut no word and no name: side by side where the terminal is wide enough, else one row below the other.

Widths are counted in terminal cells, so Chinese text keeps its columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from storyfi_lite.terminal import printable

PIPE_WIDTH = 160  # nobody sees the edge of a pipe
MIN_WRAPPED_WIDTH = 12


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), wrapped: str = ""
) -> None:
    """Print the rows. `right`: columns of figures; `wrapped`: the one column whose text may go on in a second line."""
    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in headers:
        width = MIN_WRAPPED_WIDTH if name == wrapped else None
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name != wrapped, min_width=width)
    rows = [[printable(cell) for cell in row] for row in rows]
    for row in rows:
        table.add_row(*map(Text, row))
    unbounded = console.options.update(width=10_000)  # else what is measured is never wider than the terminal
    needed = console.measure(table, options=unbounded).minimum
    if not console.is_terminal:
        console.width = max(PIPE_WIDTH, needed)
    if needed <= console.width:
        console.print(table)
        return
    for first, *others in rows:
        facts = "; ".join(f"{name} {cell}" for name, cell in zip(headers[1:], others, strict=True) if cell)
        print_marked(first, "bold", "", 0)
        say(facts, 0)


def print_marked(head: str, style: str, text: str, indent: int) -> None:
    """Print a line whose head is coloured, where colours are wanted; what does not fit goes on after `indent` cells."""
    said = Text(reflow(head + text, indent))
    said.stylize(style, 0, len(head))
    Console(highlight=False, soft_wrap=True).print(said)


def say(text: str, indent: int | None = None, err: bool = False) -> None:
    """Print a sentence, on stderr with `err`, as `reflow` breaks it."""
    click.echo(reflow(text, indent, err), err=err)


def reflow(text: str, indent: int | None = None, err: bool = False) -> str:
    """Escape what a terminal would obey, and break each line between words where a terminal ends; a pipe gets it whole.

    `indent`: cells before what follows, by default 4 more than before the line; `err`: for stderr. A word longer than the
    terminal is left to it, and can be copied."""
    console, text = Console(stderr=err), printable(text)
    if not console.is_terminal:
        return text
    rows: list[str] = []
    for line in text.splitlines():
        before = len(line) - len(line.lstrip(" "))
        after = " " * (before + 4 if indent is None else indent)
        rows.append("")
        for word in re.findall(r" *[^ ]+", line):
            if rows[-1].strip() and cell_len(rows[-1] + word) > console.width:
                rows.append(after + word.lstrip(" "))
            else:
                rows[-1] += word
    return "\n".join(rows)


def size(size_bytes: int) -> str:
    """Write a size as people compare it with a disk's: decimal units."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"
