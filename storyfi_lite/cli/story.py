"""`storyfi-lite story`: all four tasks in a row, each building on the ones before, into one file."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storyfi_lite.cli.options import TASK_NAMES, UTF8, api_options, model_options, placement_options
from storyfi_lite.errors import BadInput, LiteError

if TYPE_CHECKING:
    from storyfi_lite.options import ModelOptions
    from storyfi_lite.protocol.messages import StoryRequest

TIMEOUT_S = 7200.0


@click.command()
@click.argument("text", type=UTF8)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="[default: standard output]")
@click.option(
    "--chapters", "count", type=click.IntRange(1, 12), default=1, show_default=True, help="How many, from the first."
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="[default: random]")
@model_options(placement_options, api_options)
def command(text: str, output: Path | None, count: int, seed: int | None, model: ModelOptions) -> None:
    """Write a blueprint for TEXT, then characters, story arc and chapters. One JSON object, valid at every stage.

    \b
    storyfi-lite story "a lighthouse keeper who hears the sea speak" -o story.json
    storyfi-lite story "一个关于灯塔的故事" --chapters 3 -o story.json
    """
    from storyfi_lite import files, tasks
    from storyfi_lite.cli.progress import DownloadProgress
    from storyfi_lite.opening.loader import open_loader
    from storyfi_lite.opening.local import Notices

    tasks.get("blueprint").messages(
        _request("blueprint", {"user_input": text})
    )  # a mistake is told before a model is fetched
    seed = secrets.randbits(64) if seed is None else seed
    if output is not None:  # so is a place that cannot be written
        if not output.parent.is_dir():
            raise BadInput(f"cannot write {output}: there is no directory {output.parent}")
        files.check_writable(output, "--output FILE")
    with DownloadProgress() as progress:
        loader, facts = open_loader(model, Notices(progress.update, progress.note))
    click.echo(f"{facts['model']} {facts['quantization']}, seed {seed}", err=True)
    try:
        story = _stages(loader, text, seed, list(range(1, count + 1)))
    finally:
        loader.close()
    if output is None:
        click.echo(story)
        return
    try:
        files.write_text(output, story + "\n", "--output FILE")
    except LiteError:
        click.echo(story)  # minutes of work
        raise
    click.echo(output, err=True)


def _stages(loader: Any, text: str, seed: int, chapter_ids: list[int]) -> str:
    """One chapter a request: that is how validators ask, and it fits any context."""
    from storyfi_lite.grammar.schema import dump

    story: dict[str, Any] = {"user_input": text}
    for task in TASK_NAMES[:3]:
        story[task] = _one(loader, task, seed, story)
    story["chapters"] = []
    for chapter in chapter_ids:
        story["chapters"] += _one(loader, "chapters", seed, story, [chapter])["chapters"]
    return dump(story)


def _request(task: str, story: dict[str, Any], chapter_ids: list[int] | None = None) -> StoryRequest:
    """Raises BadInput."""
    from storyfi_lite.protocol.messages import parse_request

    stages = {stage: story[stage] for stage in TASK_NAMES[:3] if stage in story}
    body = {"task_type": task, "user_input": story["user_input"], "chapter_ids": chapter_ids, **stages}
    return parse_request(json.dumps(body).encode())


def _one(loader: Any, task: str, seed: int, story: dict[str, Any], chapter_ids: list[int] | None = None) -> Any:
    from storyfi_lite.loaders.base import Job

    job = Job(_request(task, story, chapter_ids), seed, time.monotonic() + TIMEOUT_S)
    answer = loader.submit(job).result(TIMEOUT_S)
    name = task if chapter_ids is None else f"chapter {chapter_ids[0]}"
    click.echo(f"{name}: {answer.completion_tokens} tokens in {answer.generation_time_s:.1f} s", err=True)
    return json.loads(answer.text)
