"""Shows a download's progress on stderr: a bar on a terminal, a line every ten percent elsewhere."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from storyfi_lite import stopping
from storyfi_lite.opening.local import every_tenth


class DownloadProgress:
    """Shows progress. `update` and `note` are the callbacks that Store.pull wants."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lines = every_tenth(lambda line: click.echo(line, err=True))
        self._has_begun = False
        self._opened = ExitStack()

    def __enter__(self) -> DownloadProgress:
        self._opened.enter_context(stopping.at_stop(self._say_how_to_go_on))
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._opened.close()

    def update(self, name: str, done: int, total: int) -> None:
        self._has_begun = True
        if self._console.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(name, total=total)
            self._bar.update(self._tasks[name], completed=done)
        else:
            self._lines(name, done, total)

    def _say_how_to_go_on(self) -> None:
        self._bar.stop()
        if self._has_begun:
            click.echo("the same command goes on from here", err=True)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False)
