"""`storyfi-lite bench` measures how fast this machine writes with the model that `mine` would load."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import click

from storyfi_lite import stopping
from storyfi_lite.cli.options import json_option, model_options, placement_options
from storyfi_lite.options import ModelOptions


@click.command()
@model_options(placement_options)
@json_option
def command(model: ModelOptions, as_json: bool) -> None:
    """Load the model that `mine` would load, write blueprints, one and then more at once, and say how fast.

    "free" is llama.cpp alone, without a grammar. The seconds are of a whole blueprint, of the slowest where several are
    written at once; `mine` shortens an answer that would take too long. Nothing else should run meanwhile. Ctrl-C shows what
    was measured so far.

    \b
    storyfi-lite bench
    storyfi-lite bench --model.path ./my-model.gguf --threads 4
    storyfi-lite bench --model.name mistral-7b --json > speed.json
    """
    from rich.console import Console

    from storyfi_lite import bench
    from storyfi_lite.cli.progress import shown_progress
    from storyfi_lite.opening.local import LocalOpener

    with shown_progress() as notices:
        loader, facts = LocalOpener(notices).loader(model, warm_up=True)
    found: dict[str, Any] = {**facts, "free_tokens_per_s": None, "together": [], "complete": False}
    console = Console(stderr=True, highlight=False)
    with contextlib.closing(loader), console.status("free, without a grammar") as status:

        def show_so_far() -> None:
            status.stop()
            console.print("measured so far:")
            _show(found, as_json)

        with stopping.at_stop(show_so_far):
            found["free_tokens_per_s"] = bench.free_speed(loader.engine)
            console.print(f"free: {found['free_tokens_per_s']:.1f} tokens/s")
            for count in bench.slot_counts(loader.engine.settings.n_slots):

                def tell(tokens: int, count: int = count) -> None:
                    status.update(f"{count} at once: {tokens} tokens")

                row = bench.together(loader.engine, count, progress=tell)
                found["together"].append(vars(row))
                console.print(f"{count} at once: {row.tokens_per_s:.1f} tokens/s")
            found["complete"] = True
    _show(found, as_json)


def _show(found: Mapping[str, Any], as_json: bool) -> None:
    from storyfi_lite.cli.table import print_table, say

    if as_json:
        click.echo(json.dumps(found))
        return
    say(f"{found['model']} {found['quantization']}, {found['placed']}; predicted {found['predicted']}", 0)
    rows: list[tuple[str, ...]] = []
    if found["free_tokens_per_s"]:
        rows.append(("1, free", f"{found['free_tokens_per_s']:.1f}", "", ""))
    for row in found["together"]:
        figures = (row["tokens_per_s"], row["blueprint_s"], row["time_points"])
        rows.append((str(row["slots"]), *(f"{figure:.1f}" for figure in figures)))
    heads = ("at once", "tokens/s", "seconds a blueprint", "points for time, of 10")
    print_table(heads, rows, right=heads)
