"""Writes one answer for `generate` and `story`, and shows it on a terminal as it is written.

What is shown goes to stderr, and nothing of it into a pipe: the answer itself is for stdout or a file. Showing changes no token.
"""

from __future__ import annotations

import shutil
import sys
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len

if TYPE_CHECKING:
    from storyfi_lite.loaders.base import Answer, Loader, Written
    from storyfi_lite.protocol.messages import StoryRequest

TIMEOUT_S = 3600.0
MAX_WIDTH = 100  # cells; longer lines are hard to read

format_option = click.option(
    "--format", "form", type=click.Choice(["json", "md", "html"]), help="[default: as the file's name ends, else json]"
)


def write(
    loader: Loader, request: StoryRequest, seed: int, temperature: float | None = None, is_shown: bool = True
) -> Answer:
    """Wait for one answer. Raises what the loader raises."""
    from storyfi_lite.loaders.base import Job

    told: SimpleQueue[Written | None] = SimpleQueue()
    is_shown = is_shown and sys.stderr.isatty()
    on_text = told.put if is_shown else None
    job = Job(request, seed, time.monotonic() + TIMEOUT_S, temperature=temperature, on_text=on_text)
    pending = loader.submit(job)
    pending.add_done_callback(lambda _: told.put(None))
    screen = _Screen()
    while (written := told.get()) is not None:
        screen.show(written)
    return pending.result()


def speed(answer: Answer) -> str:
    if not answer.completion_tokens:  # some servers count none
        return f"{answer.generation_time_s:.1f} s"
    rate = answer.completion_tokens / max(1e-3, answer.generation_time_s)
    return f"{answer.completion_tokens} tokens in {answer.generation_time_s:.1f} s, {rate:.0f} tokens/s"


def put(text: str) -> None:
    """Print to stdout what `spell` wrote, for people if that is a terminal."""
    from storyfi_lite.story.formats import for_a_terminal

    click.echo(for_a_terminal(text) if sys.stdout.isatty() else text, nl=False)


class _Screen:
    """Breaks lines between words; of a script without spaces, anywhere."""

    def __init__(self) -> None:
        self._column = self._tokens = 0
        self._started_s = 0.0
        self._word = self._space = ""

    def show(self, written: Written) -> None:
        if not self._tokens:
            self._started_s = time.monotonic()
            self._say(f"\n{written.name}", bold=True)
            self._say(f", {written.number} of {written.count}\n", dim=True)
        self._tokens += 1
        for char in written.text:
            if char not in " \n" and cell_len(char) == 1:
                self._word += char
                continue
            self._end_word()
            if char == " ":
                self._space = " " if self._column else ""
                continue
            if char == "\n":
                self._column, self._space = 0, ""
            else:
                self._make_room(2)
            click.echo(char, nl=False, err=True)
        if written.ends:
            self._end_word()
            rate = (self._tokens - 1) / max(1e-3, time.monotonic() - self._started_s)  # the first was waited for
            self._say(f"\n{self._tokens} tokens, {rate:.0f} tokens/s\n", dim=True)
            self._column = self._tokens = 0
            self._space = ""

    def _end_word(self) -> None:
        if self._word:
            self._make_room(cell_len(self._word))
            click.echo(self._word, nl=False, err=True)
            self._word = ""

    def _make_room(self, cells: int) -> None:
        width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
        if self._column and self._column + len(self._space) + cells > width:
            self._say("\n")
            self._column, self._space = 0, ""
        click.echo(self._space, nl=False, err=True)
        self._column += len(self._space) + cells
        self._space = ""

    def _say(self, text: str, **style: Any) -> None:
        click.secho(text, nl=False, err=True, **style)
