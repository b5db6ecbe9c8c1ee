"""`storyfi-lite pull` fetches a model's file, so that mining needs no network later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from storyfi_lite.cli.options import complete_models, complete_quants, models_dir_option
from storyfi_lite.options import ModelOptions

if TYPE_CHECKING:
    from storyfi_lite.models.resolve import Resolved


@click.command()
@click.argument("model", required=False, shell_complete=complete_models)
@click.option("--quant", shell_complete=complete_quants,
              help="Quantization, such as Q4_K_M.  [default: the best that fits this machine]")  # fmt: skip
@models_dir_option
@click.option("--dry-run", is_flag=True, help="Say what would be fetched, and fetch nothing.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON line instead of the path.")
def command(model: str | None, quant: str | None, models_dir: Path | None, dry_run: bool, as_json: bool) -> None:
    """Fetch MODEL, by default the one that earns most on this machine. Prints the file's path.

    MODEL: a name of `storyfi-lite models`, or on the hub OWNER/REPO[:QUANT][@REVISION], OWNER/REPO/FILE.gguf or an address.
    What the hub says at the first pull, commit and sha256, is pinned under that name.

    An interrupted pull goes on where it stopped. Every byte is checked.

    \b
    storyfi-lite pull
    storyfi-lite pull llama-3-8b --quant Q4_K_M
    storyfi-lite pull bartowski/Qwen2.5-7B-Instruct-GGUF:Q4_K_M
    storyfi-lite pull smollm2-135m          # 98 MB, runs on any CPU
    """
    from storyfi_lite.cli.progress import shown_progress
    from storyfi_lite.cli.table import say
    from storyfi_lite.models.registry import load_registry
    from storyfi_lite.models.resolve import resolve
    from storyfi_lite.models.store import Store
    from storyfi_lite.opening.local import file_to_pull

    store = Store(models_dir)
    resolved = resolve(ModelOptions(name=model, quant=quant), load_registry())
    if "/" in (model or ""):
        _list(resolved)
    spec, file = file_to_pull(resolved.registry, store, resolved.options)
    missing = store.missing_bytes(spec, file)
    if dry_run:
        path = store.path(spec, file)
        said = f"{spec.key} {file.quant}: {missing / 1e9:.2f} of {file.size_bytes / 1e9:.2f} GB to fetch to {path}; "
        say(f"{said}{store.free_bytes / 1e9:.2f} GB are free there", err=True)
    else:
        resolved.keep()
        with shown_progress() as notices:
            path = store.pull(spec, file, notices.progress, notices.note)
    if as_json:
        facts = {"model": spec.key, "quant": file.quant, "path": str(path), "size_bytes": file.size_bytes}
        left = {"missing_bytes": store.missing_bytes(spec, file), "complete": store.is_complete(spec, file)}
        click.echo(json.dumps(facts | left))
    else:
        click.echo(path)


def _list(resolved: Resolved) -> None:
    """Say on stderr what a repository holds, a line each, and what it is called here."""
    from storyfi_lite.cli.table import say
    from storyfi_lite.models.registry import ModelSpec

    spec = resolved.registry.get(resolved.options.name or "")
    if not isinstance(spec, ModelSpec):
        return
    for file in spec.files:
        parts = f", {len(file.parts)} parts" if len(file.parts) > 1 else ""
        say(f"  {file.quant:<10} {file.size_bytes / 1e9:7.2f} GB{parts}", err=True)
    for path, what in resolved.others:
        say(f"  {path}: {what}, never taken", err=True)
    hub = spec.files[0].hub
    commit = f", commit {hub.revision[:12]}" if hub else ""
    say(f"{spec.repository} is called {spec.key} here{commit}, licence {spec.licence}", err=True)
