"""`storyfi-lite rm` deletes model files that were downloaded."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyfi_lite.cli.options import complete_models, models_dir_option
from storyfi_lite.errors import BadInput

if TYPE_CHECKING:
    from storyfi_lite.models.inventory import Item
    from storyfi_lite.models.registry import Registry

UNITS_S = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}


def _age_s(value: str) -> float:
    number, unit = value[:-1], value[-1:]
    if not number.isdigit() or unit not in UNITS_S:
        raise click.BadParameter(f"{value!r} is no age such as 30d, 12h or 2w")
    return float(int(number) * UNITS_S[unit])


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_models)
@click.option("--unused", "unused_s", type=_age_s, metavar="AGE", help="What was not used for so long: 30d, 12h, 2w.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@models_dir_option
def command(names: tuple[str, ...], unused_s: float | None, yes: bool, models_dir: Path | None) -> None:
    """Delete the files of models, whole and partial, that storyfi-lite downloaded. Asks first.

    NAME is what `storyfi-lite list` shows, or what pull was given; with :QUANT only that file goes. A model of the hub whose
    last file goes is forgotten: the next pull takes its newest commit. Files of your own are never touched.

    \b
    storyfi-lite rm llama-3-8b
    storyfi-lite rm OWNER/REPO:Q4_K_M --yes
    storyfi-lite rm --unused 30d
    """
    from storyfi_lite.cli.table import say, size
    from storyfi_lite.models import own_registry
    from storyfi_lite.models.inventory import delete, inventory
    from storyfi_lite.models.registry import load_registry
    from storyfi_lite.models.store import Store

    if not names and unused_s is None:
        raise BadInput("say what: storyfi-lite rm NAME, or --unused 30d; storyfi-lite list shows what is here")
    store, registry = Store(models_dir), load_registry()
    items = inventory(store, registry)
    chosen = _named(names, items, registry) if names else [item for item in items if item.state != "yours"]
    if unused_s is not None:
        before_s = time.time() - unused_s
        chosen = [item for item in chosen if max(item.used_at_s or 0.0, item.arrived_at_s) < before_s]
    # models of the hub, in the user's own registry, of which nothing is left then
    left = {item.name for item in items if item not in chosen}
    named = {key for key, quant in (_key_and_quant(name, registry) for name in names) if quant is None}
    keys = (named | {item.name for item in chosen}) - left
    forgotten = [spec for spec in registry.local if spec.key in keys and _is_own(registry, spec.key)]
    if not chosen and not forgotten:
        click.echo("nothing to delete")
        return
    for item in chosen:
        say(f"{item.name} {item.quant or ''}: {size(item.size_bytes)}, {item.path}", err=True)
    total = size(sum(item.size_bytes for item in chosen))
    if not yes and not click.confirm(f"delete {total}?", err=True):
        return
    delete(store, chosen)
    for spec in forgotten:
        say(f"{spec.key} is taken out of {own_registry.forget(spec.key)}", err=True)
    say(f"{total} deleted, {size(store.free_bytes)} free in {store.root}")


def _named(names: tuple[str, ...], items: list[Item], registry: Registry) -> list[Item]:
    """Find the items that the names mean. Raises BadInput for a name of nothing that is here, and for the user's own files."""
    from storyfi_lite.models.registry import own_registry

    chosen = []
    for name in names:
        key, quant = _key_and_quant(name, registry)
        found = [item for item in items if item.name == key and quant in (None, (item.quant or "").casefold())]
        own = [item for item in found if item.state == "yours"]
        if own or Path(name).is_file():
            path = own[0].path if own else name
            named = f"\n  the name alone: take {key} out of {own_registry()}" if own else ""
            raise BadInput(
                f"{path} is a file of your own; storyfi-lite did not download it, and leaves it to you{named}"
            )
        if not found and not _is_own(registry, key):
            raise BadInput(f"nothing of {name} is here\n  storyfi-lite list")
        chosen += [item for item in found if item not in chosen]
    return chosen


def _key_and_quant(text: str, registry: Registry) -> tuple[str, str | None]:
    from storyfi_lite.models.names import parse
    from storyfi_lite.models.resolve import named_file, pinned

    name = parse(text)
    spec = pinned(name, registry)
    if spec is None:
        return name.key or text, name.quant
    quant = named_file(spec, name).quant if name.file else name.quant
    return spec.key, quant and quant.casefold()


def _is_own(registry: Registry, key: str) -> bool:
    from storyfi_lite.models.registry import ModelSpec

    found = registry.get(key)
    return isinstance(found, ModelSpec) and found.tier == "own" and not any(file.directory for file in found.files)
