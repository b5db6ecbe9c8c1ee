"""`storyfi-lite verify` says what is right and wrong with a story. It works without llama.cpp."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyfi_lite.cli.options import FILE_OR_STDIN, TASK_NAMES, json_option
from storyfi_lite.errors import BadInput

if TYPE_CHECKING:
    from storyfi_lite.validator.verify import Verification


@click.command()
@click.argument("file", default="-", type=FILE_OR_STDIN)
@click.option(
    "--task", type=click.Choice(TASK_NAMES), help="The task that was asked for. [default: told from the fields]"
)
@click.option(
    "--strict", is_flag=True, help="Hold it to the bounds that `generate` writes, not those that are accepted."
)
@json_option
def command(file: Path, task: str | None, strict: bool, as_json: bool) -> None:
    """Check a story, or a whole response, in FILE (- reads standard input): what `generate` and `story` write in any format, and
    what a miner answers.

    Valid is what was asked for: a setting of 300 characters or more, a conflict of 150 or more, three themes or more, and
    so on. What `generate` writes is narrower, where the network pays most: --strict asks for that.

    Exit code 0: valid. 1: not valid. 2: wrong use.

    \b
    storyfi-lite verify story.json
    storyfi-lite generate "a lighthouse keeper" | storyfi-lite verify
    storyfi-lite generate --json "a lighthouse keeper" | storyfi-lite verify - --json
    """
    from storyfi_lite.story.saved import MAX_FILE_BYTES, read_answers
    from storyfi_lite.validator.verify import verify, verify_text

    with click.open_file(str(file), "rb") as stream:
        raw = stream.read(MAX_FILE_BYTES + 1)  # a byte more, to be refused for its size
    try:
        answers = read_answers(raw)
    except BadInput:
        results = {"answer": verify_text(raw, task, strict)}  # it says what is wrong, as of any answer
    else:  # one whose request is not known is checked as far as that goes
        results = {
            answer.name: verify(answer.request, answer.response, strict)
            if answer.request and answer.response and task in (None, answer.request.task_type)
            else verify_text(raw, task, strict)
            for answer in answers
        }
    valid = all(result.valid for result in results.values())
    if as_json:
        facts = {}
        for name, one in results.items():
            checks = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in one.checks]
            facts[name] = {"valid": one.valid, "canonical": one.canonical, "task": one.task, "checks": checks}
        whole = next(iter(facts.values())) if len(facts) == 1 else {"valid": valid, "answers": facts}
        click.echo(json.dumps(whole, ensure_ascii=False))
    else:
        _print(results, valid)
    sys.exit(0 if valid else 1)


def _print(results: dict[str, Verification], valid: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from storyfi_lite.cli.table import print_marked
    from storyfi_lite.validator.verify import REMARKS

    console = Console(highlight=False, soft_wrap=True)
    for name, result in results.items():
        if len(results) > 1:
            console.print(Text(name, style="bold"))
        for check in result.checks:
            note = check.name in REMARKS
            mark, style = ("✓", "green") if check.ok else ("–", "yellow") if note else ("✗", "red")
            print_marked(f"{mark} {check.name:<10} ", style, check.detail, 13)
    what = f"story: {', '.join(results)}" if len(results) > 1 else next(iter(results.values())).task
    console.print(Text(f"valid {what}" if valid else "NOT VALID", style="bold green" if valid else "bold red"))
