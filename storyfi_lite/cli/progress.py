"""Shows a download's progress on stderr: a bar on a terminal, a line every ten percent elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich import progress
from rich.console import Console

from storyfi_lite import stopping
from storyfi_lite.cli.table import reflow
from storyfi_lite.opening.local import Notices, every_tenth


@contextmanager
def shown_progress() -> Iterator[Notices]:
    """Show what the Notices are told while inside; a stop says how to go on with what was fetched."""
    console = Console(stderr=True)
    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, progress.TaskID] = {}
    say_tenths = every_tenth(lambda line: click.echo(line, err=True))

    def update(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total)
        if console.is_terminal:
            bar.update(tasks[name], completed=done)
        else:
            say_tenths(name, done, total)

    def say_how_to_go_on() -> None:
        bar.stop()
        if tasks:
            click.echo("the same command goes on from here", err=True)

    def note(text: str) -> None:
        console.print(reflow(text, err=True), markup=False, highlight=False, soft_wrap=True)

    with stopping.at_stop(say_how_to_go_on), bar:
        yield Notices(update, note)
