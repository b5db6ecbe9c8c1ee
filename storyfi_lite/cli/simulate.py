"""`storyfi-lite simulate` plays an hour of the network's requests against a layout, in a second of real time."""

from __future__ import annotations

import json
from pathlib import Path

import click

from storyfi_lite.cli.options import Number, hardware_option, json_option, model_options, placement_options
from storyfi_lite.options import ModelOptions


@click.command()
@model_options(placement_options, path=False)
@hardware_option
@click.option("--hours", type=Number(min=0.1, max=1000), default=1.0, help="How much of it.")
@click.option("--seed", type=click.IntRange(min=0), default=1, help="Of requests that are made up.")
@json_option
def command(model: ModelOptions, hardware: Path | None, hours: float, seed: int, as_json: bool) -> None:
    """Play the network's requests, or a log's, against what `place` would choose, and against the best file of each other model.

    Nothing is loaded or asked: the time of each answer comes from the predicted speed. Answered: within the 55 s after which a
    validator would not wait; refused: at once, because the answer would have been late.

    \b
    storyfi-lite simulate
    storyfi-lite simulate --hardware used-3090.json --model.name llama-3-8b --hours 24
    storyfi-lite simulate --traffic ~/.local/state/storyfi-lite/HOTKEY/requests.jsonl --json
    """
    from storyfi_lite.cli.table import print_table
    from storyfi_lite.opening.local import LocalOpener
    from storyfi_lite.placement.plan import place_all, traffic_of
    from storyfi_lite.placement.simulate import simulate

    opener, catalog = LocalOpener.for_planning(hardware)
    wanted = opener.resolve(model)
    arrivals = traffic_of(model).arrivals(hours * 3600, seed)
    rows = []
    for one in place_all(opener.registry, opener.hardware, wanted, catalog):
        layout, spec = one.settings, one.spec
        done = simulate(arrivals, one.speed.pace, layout.n_slots, layout.n_ctx, spec.multiplier, one.a_char, seed)
        shown = {"model": spec.key, "quant": one.file.quant, "where": one.where, "at_once": layout.n_slots}
        rows.append({**shown, **done.as_dict(), "expected_reward": round(one.earnings.reward, 4)})
    best = max(row["reward"] for row in rows) or 1.0
    rows = [{**row, "against_best": round(row["reward"] / best, 4)} for row in rows]
    if as_json:
        click.echo(json.dumps({"requests": len(arrivals), "hours": hours, "seed": seed, "layouts": rows}))
        return
    click.echo(f"{len(arrivals)} requests; first what would be loaded")
    figures = ("at once", "answered", "shortened", "late", "refused", "p95 s", "score", "reward", "of best")
    cells = []
    for row in rows:
        counts = [str(row[name]) for name in ("at_once", "answered", "shortened", "late", "refused")]
        p95 = "late" if row["p95_s"] is None else f"{row['p95_s']:.0f}"
        earned = [f"{row['mean_score']:.1%}", f"{row['reward']:.2f}", f"{row['against_best']:.2f}"]
        cells.append((row["model"], row["quant"], row["where"], *counts, p95, *earned))
    print_table(("model", "file", "where", *figures), cells, right=figures, wrapped="where")
