"""Options that several commands share. No heavy import."""

from __future__ import annotations

from typing import Any

import click

TASK_NAMES = ("blueprint", "characters", "story_arc", "chapters")


class _Ids(click.ParamType):
    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 1,2,3", param, ctx)


chapter_ids_option = click.option(
    "--chapter-ids", type=_Ids(), metavar="1,2,…", help="For the chapters task. [default: 1]"
)
threads_option = click.option(
    "--threads",
    "n_threads",
    type=click.IntRange(1, 1024),
    help="CPU threads; fewer than the cores where other programs are busy.  [default: the physical cores]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
