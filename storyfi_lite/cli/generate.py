"""`storyfi-lite generate` writes the answer to one story task: the story on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import secrets
from typing import Any

import click

from storyfi_lite.cli.options import (
    TEXT,
    Number,
    api_options,
    chapter_ids_option,
    model_options,
    placement_options,
    task_option,
    think_option,
)
from storyfi_lite.cli.writing import format_option, put, speed, write
from storyfi_lite.errors import BadInput
from storyfi_lite.options import ModelOptions


@click.command()
@click.argument("text", type=TEXT)
@task_option
@click.option("--context", "context_files", type=click.File("rb"), multiple=True, metavar="FILE",
              help="Earlier stages for the later tasks: what `generate` or `story` wrote. May be repeated.")  # fmt: skip
@chapter_ids_option
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), help="The same seed gives the same story.  [default: random]"
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="End the story within so many tokens, whole and valid.")
@click.option("--temperature", type=Number(0, 5), help="[default: 0.7]")
@model_options(placement_options, think_option, api_options)
@format_option
@click.option(
    "--json", "as_json", is_flag=True,
    help="Print the whole response and its request: story, exact text, tokens, proof header.",
)  # fmt: skip
def command(
    text: str, task: str, context_files: tuple[Any, ...], chapter_ids: list[int] | None, seed: int | None,
    max_tokens: int | None, temperature: float | None, model: ModelOptions, form: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Write a story blueprint for TEXT, or another task's answer. Valid JSON, whatever the model.

    A terminal shows the text as it is written; a pipe gets the answer alone, compact. --format md and html are for people, and
    carry the whole response at their end.

    \b
    storyfi-lite generate "a lighthouse keeper who hears the sea speak"
    storyfi-lite generate "一个关于灯塔的故事" --seed 7 | storyfi-lite verify
    storyfi-lite generate "a heist" --model.path ./my-model.gguf --json > response.json
    storyfi-lite generate "a heist" --task characters --context response.json
    """
    from storyfi_lite import tasks
    from storyfi_lite.cli.progress import shown_progress
    from storyfi_lite.miner.service import to_response
    from storyfi_lite.opening.loader import open_loader
    from storyfi_lite.protocol.messages import parse_request
    from storyfi_lite.story.formats import spell
    from storyfi_lite.story.saved import SavedAnswer, response_data

    if as_json and form:
        raise click.UsageError("--json is the whole response, --format the story alone: one of them")
    fields = {"task_type": task, "user_input": text, "chapter_ids": chapter_ids, "max_tokens": max_tokens}
    request = parse_request(json.dumps({**fields, **_context(context_files)}).encode())
    asked = tasks.get(task)
    asked.script(request)  # a mistake is told before a model is chosen and fetched
    seed = secrets.randbits(64) if seed is None else seed
    with shown_progress() as notices:
        loader, facts = open_loader(model, notices)
    click.echo(f"{facts['model']} {facts['quantization']}, seed {seed}", err=True)
    with contextlib.closing(loader):
        answer = write(loader, request, seed, temperature, is_shown=not as_json)
    click.echo(speed(answer), err=True)
    response = to_response(answer)
    whole = response_data(request, response)
    data = whole if as_json or form in ("md", "html") else response.output_data
    put(spell(form or "json", text, [SavedAnswer(task, response.output_data, request, response)], data, {}))


def _context(files: tuple[Any, ...]) -> dict[str, Any]:
    """Read the stages that the files have. Raises BadInput."""
    from storyfi_lite.story.saved import MAX_FILE_BYTES, STAGES, read_answers, stages_of

    found: dict[str, Any] = {}
    for file in files:
        try:
            stages = stages_of(read_answers(file.read(MAX_FILE_BYTES + 1)))
        except BadInput as error:
            raise BadInput(f"{file.name}: {error}") from None
        if not stages:
            raise BadInput(f"{file.name} has none of {', '.join(STAGES)}")
        found |= stages
    return found
