"""`storyfi-lite models` prints the registry as a table, with how each model would run on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storyfi_lite.cli.options import hardware_option, json_option

if TYPE_CHECKING:
    from storyfi_lite.machine.hardware import Hardware
    from storyfi_lite.models.registry import ApiModel, ModelSpec
    from storyfi_lite.placement.catalog import Catalog


@click.command()
@hardware_option
@json_option
def command(hardware: Path | None, as_json: bool) -> None:
    """List the models, their multipliers, and how each fits this machine. Speeds are predictions.

    \b
    storyfi-lite models
    storyfi-lite models --hardware used-3090.json
    """
    from storyfi_lite.machine.hardware import from_json, probe
    from storyfi_lite.models.registry import load_registry
    from storyfi_lite.models.store import Store
    from storyfi_lite.placement.catalog import EmptyCatalog, StoreCatalog

    registry = load_registry()
    machine = from_json(hardware) if hardware else probe()
    catalog: Catalog = EmptyCatalog() if hardware else StoreCatalog(Store())
    rows = [_row(spec) | _fit(spec, machine, catalog) for spec in registry.local]
    for model in registry.api:
        ends = f", ends {model.ends}" if model.ends else ""
        rows.append(_row(model) | {"fits": f"{model.provider} API{ends}"})
    if as_json:
        click.echo(json.dumps(rows))
    else:
        _print(rows)


def _row(model: ModelSpec | ApiModel) -> dict[str, Any]:
    facts = {"model": model.key, "tier": model.tier, "multiplier": model.multiplier, "quant": None, "fits": ""}
    return facts | {"blueprint_s": None, "here": [], "reason": None}


def _fit(spec: ModelSpec, machine: Hardware, catalog: Catalog) -> dict[str, Any]:
    """Say how one model fits the machine."""
    from storyfi_lite.errors import DoesNotFit
    from storyfi_lite.options import ModelOptions
    from storyfi_lite.placement.plan import place_one

    here = [file.quant for file in spec.files if not catalog.missing_bytes(spec, file)]
    try:
        found = place_one(spec, machine, ModelOptions(), catalog)
    except DoesNotFit as error:
        return {"fits": "does not fit", "reason": str(error), "here": here}
    fits, seconds = "fits fully" if found.is_whole else found.where, round(found.speed.blueprint_s, 1)
    return {"fits": fits, "quant": found.file.quant, "blueprint_s": seconds, "here": here}


def _print(rows: list[dict[str, Any]]) -> None:
    from storyfi_lite.cli.table import print_table

    cells = []
    for row in rows:
        seconds = "" if row["blueprint_s"] is None else f"{row['blueprint_s']:.0f} s"
        facts = (row["model"], str(row["tier"]), f"{row['multiplier']:g}", row["quant"] or "", row["fits"], seconds)
        cells.append((*facts, "\n".join(row["here"])))
    headers = ("model", "tier", "multiplier", "file", "on this machine", "blueprint", "on disk")
    print_table(headers, cells, wrapped="on this machine")
