"""`storyfi-lite bench`: how fast this model is on this machine, and what the network's clock makes of it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from storyfi_lite.cli.options import json_option, model_options, placement_options

if TYPE_CHECKING:
    from storyfi_lite.engine.engine import EngineJob
    from storyfi_lite.loaders.local import LocalModelLoader

STORY = "a lighthouse keeper who hears the sea speak"
FAR_S = 3600.0


@click.command()
@model_options
@placement_options
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(8, 400), help="Measured, a slot and row.")
@json_option
def command(tokens: int, as_json: bool, **flags: Any) -> None:
    """Measure a local model: tokens a second free and constrained, alone and together, and seconds a blueprint.

    "Free" is llama.cpp with no choice of tokens at all: the most that any program gets out of it. Run it while nothing
    else does.

    \b
    storyfi-lite bench
    storyfi-lite bench --model.name llama-3-8b --quant Q4_K_M --json
    """
    from storyfi_lite.cli.progress import DownloadProgress
    from storyfi_lite.errors import BadInput
    from storyfi_lite.loaders.choice import ModelChoice, Notices, open_loader
    from storyfi_lite.loaders.local import LocalModelLoader

    choice = ModelChoice(
        flags["model_name"], flags["model_path"], flags["quant"], flags["ctx"], flags["n_threads"], flags["policy"],
        flags["min_quant"],
    )  # fmt: skip
    with DownloadProgress() as progress:
        loader, facts = open_loader(choice, Notices(progress.update, progress.note), warm_up=True)
    result: dict[str, Any] = {**facts, "speeds": [], "blueprints": []}
    try:
        if not isinstance(loader, LocalModelLoader):
            raise BadInput("there is no speed of ours in an API model; name a local one with --model.name")
        _measure(loader, tokens, result)
    except KeyboardInterrupt:
        click.echo("stopped; what was measured so far:", err=True)
    finally:
        loader.close()
    click.echo(json.dumps(result) if as_json else _words(result))


def _measure(loader: LocalModelLoader, n_tokens: int, result: dict[str, Any]) -> None:
    """Fills `result` row by row, so that a Ctrl-C loses nothing."""
    from storyfi_lite.engine.measure import bare_tokens_per_s, engine_tokens_per_s
    from storyfi_lite.engine.model import Context

    engine = loader.engine
    context = Context(engine.model, engine.settings)
    try:
        prompt = engine.prompt_tokens(_job(0).messages)
        for count in _counts(engine.settings.n_slots):
            click.echo(f"{count} at a time: free …", err=True)
            free = bare_tokens_per_s(context, prompt, count, n_tokens)
            click.echo(f"{count} at a time: constrained …", err=True)
            ours = engine_tokens_per_s(engine, _job, count, n_tokens)
            result["speeds"].append({"slots": count, "free_tokens_per_s": free, "constrained_tokens_per_s": ours})
    finally:
        context.close()
    for count in dict.fromkeys((1, engine.settings.n_slots)):
        click.echo(f"{count} whole blueprint(s) …", err=True)
        result["blueprints"].append(_blueprints(loader, count))


def _counts(n_slots: int) -> list[int]:
    return sorted({*(count for count in (1, 2, 4, 8, 16) if count < n_slots), n_slots})


def _job(slot: int) -> EngineJob:
    from storyfi_lite import tasks
    from storyfi_lite.engine.engine import EngineJob
    from storyfi_lite.engine.settings import SamplingParams
    from storyfi_lite.wire.messages import StoryRequest

    task, request = tasks.get("blueprint"), StoryRequest(task_type="blueprint", user_input=STORY)
    return EngineJob(task.messages(request), task.constraint(request), SamplingParams(slot), time.monotonic() + FAR_S)


def _blueprints(loader: LocalModelLoader, count: int) -> dict[str, float]:
    """So many requests at once, answered as the miner answers them."""
    from storyfi_lite.loaders.base import Job
    from storyfi_lite.miner.service import AIM_S
    from storyfi_lite.validator.score import time_points
    from storyfi_lite.wire.messages import StoryRequest

    request = StoryRequest(task_type="blueprint", user_input=STORY)
    far_s = time.monotonic() + FAR_S
    pending = [loader.submit(Job(request, seed, far_s, aim_s=AIM_S)) for seed in range(count)]
    seconds = sorted(answer.result().generation_time_s for answer in pending)
    return {"at_once": count, "median_s": seconds[len(seconds) // 2], "slowest_s": seconds[-1],
            "time_points": time_points(seconds[-1])}  # fmt: skip


def _words(result: dict[str, Any]) -> str:
    lines = [f"{result['model']} {result['quantization']}, {result['placed']}; {result['context']}", ""]
    lines += ["at a time  free tokens/s  constrained tokens/s  of free"] if result["speeds"] else []
    for row in result["speeds"]:
        free, ours = row["free_tokens_per_s"], row["constrained_tokens_per_s"]
        lines.append(f"{row['slots']:9}  {free:13.1f}  {ours:20.1f}  {ours / free:6.0%}")
    lines.append("")
    for row in result["blueprints"]:
        lines.append(
            f"{row['at_once']} blueprint(s) at once: median {row['median_s']:.1f} s, slowest {row['slowest_s']:.1f} s; the "
            f"network's time score for the slowest: {row['time_points']:.1f} of 10"
        )
    return "\n".join(lines).strip()
