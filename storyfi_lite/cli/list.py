"""`storyfi-lite list` shows the model files that are here."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from storyfi_lite.cli.options import json_option, models_dir_option


@click.command()
@models_dir_option
@json_option
def command(models_dir: Path | None, as_json: bool) -> None:
    """Show the model files that are here: how large, whole or partial, when last used, where; and the free space.

    "yours" are files of your own that `models add` made known, "left over" what no model of the registry owns.

    \b
    storyfi-lite list
    storyfi-lite list --json
    """
    from storyfi_lite.cli.table import print_table, say, size
    from storyfi_lite.models.inventory import inventory
    from storyfi_lite.models.registry import load_registry
    from storyfi_lite.models.store import Store

    store = Store(models_dir)
    items = inventory(store, load_registry())
    if as_json:
        facts = {"files": [item.as_dict() for item in items], "root": str(store.root), "free_bytes": store.free_bytes}
        click.echo(json.dumps(facts))
        return
    rows = []
    for item in items:
        used = "never" if item.used_at_s is None else time.strftime("%Y-%m-%d", time.localtime(item.used_at_s))
        rows.append((item.name, item.quant or "", size(item.size_bytes), item.state, used, str(item.path)))
    if rows:
        print_table(("model", "file", "size", "is", "last used", "path"), rows, right=("size",))
    there = sum(item.size_bytes for item in items if item.owned)
    say(f"{size(there)} in {store.root}, {size(store.free_bytes)} free there")
