"""`storyfi-lite verify` says what is right and wrong with a story. It works without llama.cpp."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyfi_lite.cli.options import TASK_NAMES, json_option

if TYPE_CHECKING:
    from storyfi_lite.validator.verify import Verification


@click.command()
@click.argument("file", default="-", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--task",
    type=click.Choice(TASK_NAMES),
    help="The task that was asked for. [default: told from the fields]",
)
@click.option(
    "--strict", is_flag=True, help="Hold it to the bounds that `generate` writes, not those that are accepted."
)
@json_option
def command(file: Path, task: str | None, strict: bool, as_json: bool) -> None:
    """Check a story, or a whole response, in FILE (- reads standard input).

    Valid is what was asked for: a setting of 300 characters or more, a conflict of 150 or more, three themes or more, and
    so on. What `generate` writes is narrower, where the network pays most: --strict asks for that.

    Exit code 0: valid. 1: not valid. 2: wrong use.

    \b
    storyfi-lite verify story.json
    storyfi-lite generate "a lighthouse keeper" | storyfi-lite verify
    storyfi-lite generate --json "a lighthouse keeper" | storyfi-lite verify - --json
    """
    from storyfi_lite.validator.verify import verify_text

    result = verify_text(_read(file), task, strict)
    if as_json:
        checks = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in result.checks]
        facts = {"valid": result.valid, "canonical": result.canonical, "task": result.task, "checks": checks}
        click.echo(json.dumps(facts, ensure_ascii=False))
    else:
        _print(result)
    sys.exit(0 if result.valid else 1)


def _read(file: Path) -> bytes:
    """Read at most one byte more than is allowed, which is enough to be refused for its size."""
    from storyfi_lite.validator.verify import MAX_RESPONSE_BYTES

    with click.open_file(str(file), "rb") as stream:
        return stream.read(MAX_RESPONSE_BYTES + 1)


def _print(result: Verification) -> None:
    from rich.console import Console
    from rich.text import Text

    from storyfi_lite.validator.verify import REMARKS

    console = Console(highlight=False, soft_wrap=True)
    for check in result.checks:
        note = check.name in REMARKS
        mark, style = ("✓", "green") if check.ok else ("–", "yellow") if note else ("✗", "red")
        console.print(Text(f"{mark} {check.name:<10} ", style=style) + Text(check.detail))
    verdict = f"valid {result.task}" if result.valid else "NOT VALID"
    console.print(Text(verdict, style="bold green" if result.valid else "bold red"))
