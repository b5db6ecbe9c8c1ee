"""`storyfi-lite grammar` prints a task's grammar for other tools."""

from __future__ import annotations

import json

import click

from storyfi_lite.cli.options import TASK_NAMES, chapter_ids_option


@click.command()
@click.argument("task", metavar="TASK", type=click.Choice(TASK_NAMES))
@click.option("--format", "spelling", type=click.Choice(["gbnf", "json-schema", "lark"]), default="gbnf",
              help="gbnf for llama.cpp, json-schema for other servers, lark for llguidance.")  # fmt: skip
@chapter_ids_option
def command(task: str, spelling: str, chapter_ids: list[int] | None) -> None:
    """Print the grammar of TASK's answers: blueprint, characters, story_arc or chapters.

    \b
    storyfi-lite grammar blueprint > blueprint.gbnf
    llama-cli -m model.gguf --grammar-file blueprint.gbnf -p "..."
    storyfi-lite grammar chapters --chapter-ids 1,2 --format json-schema
    """
    from storyfi_lite import tasks
    from storyfi_lite.protocol.messages import StoryRequest

    stages: dict[str, dict[str, object]] = {"blueprint": {}, "characters": {}, "story_arc": {}}
    request = StoryRequest.model_validate(
        {"task_type": task, "user_input": "-", "chapter_ids": chapter_ids or [1], **stages}
    )
    constraint = tasks.get(task).constraint(request)
    if spelling == "json-schema":
        click.echo(json.dumps(constraint.json_schema, indent=2, ensure_ascii=False))
    else:
        click.echo(constraint.gbnf if spelling == "gbnf" else constraint.lark, nl=False)
