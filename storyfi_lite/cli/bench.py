"""`storyfi-lite bench` measures how fast this machine writes with the model that `mine` would load."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click

from storyfi_lite import stopping
from storyfi_lite.cli.options import json_option, model_options, placement_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from storyfi_lite.engine.engine import Engine
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
    from storyfi_lite.cli.progress import shown_progress
    from storyfi_lite.opening.local import LocalOpener

    with shown_progress() as notices:
        loader, facts = LocalOpener(notices).loader(model, warm_up=True)
    found: dict[str, Any] = {**facts, "free_tokens_per_s": None, "together": [], "complete": False}
    with contextlib.closing(loader):
        _measure(loader.engine, found, lambda: _show(found, as_json))
    _show(found, as_json)


def _measure(engine: Engine, found: dict[str, Any], show: Callable[[], None]) -> None:
    """Measure, and fill `found` step by step; a stop shows what was found so far."""
    from rich.console import Console

    from storyfi_lite import bench

    console = Console(stderr=True, highlight=False)
    with console.status("free, without a grammar") as status:

        def show_so_far() -> None:
            status.stop()
            console.print("measured so far:")
            show()

        with stopping.at_stop(show_so_far):
            found["free_tokens_per_s"] = bench.free_speed(engine)
            console.print(f"free: {found['free_tokens_per_s']:.1f} tokens/s")
            for count in bench.slot_counts(engine.settings.n_slots):

                def tell(tokens: int, count: int = count) -> None:
                    status.update(f"{count} at once: {tokens} tokens")

                row = bench.together(engine, count, progress=tell)
                found["together"].append(vars(row))
                console.print(f"{count} at once: {row.tokens_per_s:.1f} tokens/s")
            found["complete"] = True


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
