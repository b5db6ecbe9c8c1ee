"""`storyfi-lite place` says what `mine` would load here, or on a machine that a file describes, and why."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyfi_lite.cli.options import hardware_option, json_option, model_options, placement_options
from storyfi_lite.options import ModelOptions

if TYPE_CHECKING:
    from storyfi_lite.placement.plan import Placement


@click.command()
@model_options(placement_options, path=False)
@hardware_option
@json_option
def command(model: ModelOptions, hardware: Path | None, as_json: bool) -> None:
    """Say which model file should earn most on this machine, what it will take on each device, how fast it should be, and why
    no other. Loads and fetches nothing. Speeds are predictions.

    A machine that you do not have: {"gpus": [{"name": "RTX 3090", "total_gb": 24}], "ram_gb": 64, "cores": 8}

    \b
    storyfi-lite place
    storyfi-lite place --model.name llama-3-8b --ctx 8192
    storyfi-lite place --model.name OWNER/REPO
    storyfi-lite place --hardware used-3090.json --json
    storyfi-lite place --traffic ~/.local/state/storyfi-lite/HOTKEY/requests.jsonl
    """
    from storyfi_lite.cli.table import say
    from storyfi_lite.opening.local import LocalOpener
    from storyfi_lite.placement.plan import near_misses, place

    opener, catalog = LocalOpener.for_planning(hardware)
    machine, wanted = opener.hardware, opener.resolve(model)
    if wanted.path:
        found = opener.place_path(wanted.path, wanted)
    else:
        found = place(opener.registry, machine, wanted, catalog)
        missed = near_misses(opener.registry, machine, wanted, catalog, found)
        found = replace(found, reasons=(*found.reasons, *missed))
    for line in filter(None, (machine.fault, *machine.hints)):
        say(line, err=True)
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    else:
        _print(found, [gpu.name for gpu in machine.usable_gpus])


def _print(found: Placement, gpus: list[str]) -> None:
    from storyfi_lite.cli.table import say

    settings = found.settings
    each = 1 / found.speed.pace.step_of(settings.n_slots)
    p95_s = found.earnings.p95_s
    in_time = (
        f"95 % of the answers within {p95_s:.0f} s" if math.isfinite(p95_s) else "more than 5 % of the answers too late"
    )
    lines = [
        f"{found.spec.key} {found.file.quant}: {found.where}, multiplier {found.spec.multiplier:g}",
        f"  context    {settings.n_ctx} tokens for each of {settings.n_slots} at once, {settings.kv_type} keys and values",
        f"  predicted  {found.speed.tokens_per_s:.0f} tokens/s alone, {each:.0f} each of {settings.n_slots} at once; "
        f"{found.earnings.seconds_in_words}",
        f"  earns      {found.earnings.reward:.2f} expected: {found.earnings.score:.1%} of the points; {in_time}",
    ]
    for device, need in zip([*gpus, "RAM"], found.demands, strict=True):
        parts = {"weights": need.weights_bytes, "keys and values": need.kv_bytes, "working memory": need.compute_bytes,
                 "logits": need.output_bytes, "process or driver": need.context_bytes}  # fmt: skip
        words = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items() if size)
        if need.total_bytes:
            lines.append(f"  {device:<10} {need.total_bytes / 2**30:.2f} GiB: {words}")
    say("\n".join([*lines, *(f"  - {reason}" for reason in found.reasons)]))
