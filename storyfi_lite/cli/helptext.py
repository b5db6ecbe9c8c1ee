"""Formats help for narrow terminals: a name with hyphens stays whole, and an example that is too wide goes on in a second line,
so that it can still be pasted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import click

HYPHEN = "\u2011"  # click breaks lines at the others


class HelpFormatter(click.HelpFormatter):
    """Writes help as click does, but breaks no name at a hyphen, and breaks examples, which click leaves as they are."""

    def write(self, string: str) -> None:
        super().write(string.replace(HYPHEN, "-"))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = [(name, text.replace("-", HYPHEN)) for name, text in rows]
        longest = max((len(word) for _, text in rows for word in text.split()), default=0)
        # for the names; wider ones have a line to themselves
        room = self.width - self.current_indent - col_spacing - longest
        super().write_dl(rows, max(10, min(col_max, room)), col_spacing)

    def write_text(self, text: str) -> None:
        width, lines, is_example = self.width - self.current_indent, list[str](), False
        for line in text.splitlines():
            is_example = line == "\b" or (is_example and bool(line))
            lines += broken(line, width) if is_example else [line]
        super().write_text("\n".join(lines).replace("-", HYPHEN))


class Context(click.Context):
    """Makes click use our HelpFormatter."""

    formatter_class = HelpFormatter


def use_in(command: click.Command) -> click.Command:
    """Format this command's help with HelpFormatter, and that of its subcommands."""
    command.context_class = Context
    if isinstance(command, click.Group):
        for one in command.commands.values():
            use_in(one)
    return command


def broken(line: str, width: int) -> list[str]:
    """Break a command between words, never in a quotation, with a backslash as a shell wants it; what is said of the command,
    behind a hash or two spaces, goes below it.

    >>> broken('storyfi-lite generate "a heist" --json     one line', 30)
    ['storyfi-lite generate \\\\', '    "a heist" --json', '    # one line']
    """
    if _cells(line) <= width:
        return [line]
    command, _, note = re.sub(r"\s+# |\s{2,}", "\0", line, count=1).partition("\0")
    rows, row = list[str](), ""
    for word in re.findall(r'"[^"]*"|\S+', command):
        if row and _cells(f"{row} {word} \\") > width:
            rows.append(f"{row} \\")
            row = f"    {word}"
        else:
            row = f"{row} {word}" if row else word
    return [*rows, row, *([f"    # {note}"] if note else ())]


def _cells(text: str) -> int:
    """Count the terminal's cells; a Chinese character takes two."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
