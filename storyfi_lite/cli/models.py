"""`storyfi-lite models` shows the registry, or one model, with how it would run on this machine; `models add` makes one known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from storyfi_lite.cli.options import SentenceGroup, complete_models, hardware_option, json_option
from storyfi_lite.errors import DoesNotFit
from storyfi_lite.options import ModelOptions

if TYPE_CHECKING:
    from storyfi_lite.models.registry import ApiModel, ModelSpec
    from storyfi_lite.opening.local import LocalOpener
    from storyfi_lite.placement.catalog import Catalog


class _ShowByDefault(SentenceGroup):
    """Takes `models`, `models NAME` and `models --hardware …` as `models show …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_named = args and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if is_named else ["show", *args])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


def _complete(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    """Tell the shell what may follow `models`: a model, or a command."""
    return [name for name in command.commands if name.startswith(begun)] + complete_models(ctx, param, begun)


@click.group(cls=_ShowByDefault)
def command() -> None:
    """List the models, their multipliers, and how each fits this machine. Speeds are predictions.

    `storyfi-lite models show --help` has the options.

    \b
    storyfi-lite models                                  all of them
    storyfi-lite models llama-3-8b                       one, file by file
    storyfi-lite models OWNER/REPO                       what a repository of the hub holds
    storyfi-lite models --hardware used-3090.json        for a machine that you do not have
    storyfi-lite models add NAME OWNER/REPO              make one known under a name of yours
    """


@command.command()
@click.argument("name", required=False, shell_complete=_complete)
@hardware_option
@json_option
def show(name: str | None, hardware: Path | None, as_json: bool) -> None:
    """List the models, or the files of the one named: a key, OWNER/REPO of the hub, or a GGUF file."""
    from storyfi_lite.models.registry import ApiModel
    from storyfi_lite.models.resolve import resolve
    from storyfi_lite.opening.local import LocalOpener

    opener, catalog = LocalOpener.for_planning(hardware)
    resolved = resolve(ModelOptions(name=name), opener.registry)
    options = resolved.options
    if options.path:
        placed = opener.place_path(options.path, options)
        click.echo(json.dumps(placed.as_dict()) if as_json else f"{options.path}: {placed.spec.key}, {placed.where}")
        return
    if name:
        spec = resolved.registry.find(options.name or "")
        if isinstance(spec, ApiModel):
            words = f"{spec.key}: {spec.provider} API, multiplier {spec.multiplier:g}"
            click.echo(json.dumps(_row(spec)) if as_json else words)
        else:
            fits = [_fit(spec, opener, catalog, file.quant) for file in spec.files]
            _show_files(spec, fits, resolved.others, as_json)
        return
    rows = [_row(spec) | _fit(spec, opener, catalog) for spec in resolved.registry.local]
    for model in resolved.registry.api:
        ends = f", ends {model.ends}" if model.ends else ""
        rows.append(_row(model) | {"fits": f"{model.provider} API{ends}"})
    if as_json:
        click.echo(json.dumps(rows))
    else:
        _print(rows)


def _row(model: ModelSpec | ApiModel) -> dict[str, Any]:
    facts = {"model": model.key, "tier": model.tier, "multiplier": model.multiplier, "quant": None, "fits": ""}
    return facts | {"blueprint_s": None, "expected_reward": None, "here": [], "reason": None}


def _fit(spec: ModelSpec, opener: LocalOpener, catalog: Catalog, quant: str | None = None) -> dict[str, Any]:
    """Say how one model, or one file of it, fits the machine, and which of its files are here."""
    from storyfi_lite.placement.plan import place_one

    files = [file for file in spec.files if quant in (None, file.quant) and not catalog.missing_bytes(spec, file)]
    paths = [str(opener.store.path(spec, file)) for file in files]
    here = [
        {"quant": file.quant, "size_bytes": file.size_bytes, "path": path}
        for file, path in zip(files, paths, strict=True)
    ]
    try:
        found = place_one(spec, opener.hardware, ModelOptions(name=spec.key if quant else None, quant=quant), catalog)
    except DoesNotFit as error:
        return {"fits": "does not fit", "reason": str(error), "here": here}
    fits, seconds = "fits fully" if found.is_whole else found.where, round(found.earnings.seconds_of("blueprint"), 1)
    earned = round(found.earnings.reward, 3)
    return {"fits": fits, "quant": found.file.quant, "blueprint_s": seconds, "expected_reward": earned, "here": here}


def _print(rows: list[dict[str, Any]]) -> None:
    from storyfi_lite.cli.table import print_table, say, size

    cells = []
    for row in rows:
        seconds = "" if row["blueprint_s"] is None else f"{row['blueprint_s']:.0f} s"
        earned = "" if row["expected_reward"] is None else f"{row['expected_reward']:.2f}"
        facts = (row["model"], str(row["tier"]), f"{row['multiplier']:g}", row["quant"] or "", row["fits"], seconds)
        cells.append((*facts, earned, "\n".join(f"{file['quant']} {size(file['size_bytes'])}" for file in row["here"])))
    headers = ("model", "tier", "multiplier", "file", "on this machine", "blueprint", "expected reward", "on disk")
    print_table(headers, cells, wrapped="on this machine")
    for row in rows:
        for file in row["here"]:
            say(f"{row['model']} {file['quant']}: {file['path']}")


def _show_files(
    spec: ModelSpec, fits: list[dict[str, Any]], found_beside: tuple[tuple[str, str], ...], as_json: bool
) -> None:
    from storyfi_lite.cli.table import print_table, say, size

    files, rows = [], []
    for file, fit in zip(spec.files, fits, strict=True):
        fact = {"quant": file.quant, "size_bytes": file.size_bytes, "parts": len(file.parts)}
        files.append(fact | {"fits": fit["fits"], "here": fit["here"]})
        path = fit["here"][0]["path"] if fit["here"] else ""
        rows.append((file.quant, size(file.size_bytes), str(len(file.parts)), fit["fits"], path))
    if as_json:
        others = [{"path": path, "is": what} for path, what in found_beside]
        facts = _row(spec) | {"repository": spec.repository, "licence": spec.licence, "files": files, "others": others}
        click.echo(json.dumps(facts))
        return
    say(f"{spec.key}: {spec.repository}, licence {spec.licence}")
    say(pay_words(spec))
    print_table(("file", "size", "parts", "on this machine", "here"), rows, right=("size",), wrapped="on this machine")
    for path, what in found_beside:
        say(f"{path}: {what}, never taken")


def pay_words(spec: ModelSpec) -> str:
    """Say what the network pays for a model, and what a validator with this project's policy does."""
    from storyfi_lite.models.registry import SHIPPED, load_registry
    from storyfi_lite.validator.reward import load_policy

    policy, shipped = load_policy(), load_registry(SHIPPED).get(spec.key)
    proven = policy.models.get(spec.key, spec.multiplier)
    unproven = policy.proof.unproven_multiplier
    whose = "as the network's table says" if shipped else "the network's table does not know it"
    needs = "" if shipped else ", which needs the model in that validator's own registry"
    return f"multiplier {spec.multiplier:g}, {whose}; a validator of ours pays {unproven:g} unproven, {proven:g} proven{needs}"


@command.command()
@click.argument("name")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...",
                shell_complete=lambda ctx, param, begun: [CompletionItem(begun, type="file")])  # fmt: skip
def add(name: str, sources: tuple[str, ...]) -> None:
    """Make a model known as NAME: in your own models.yaml, which upgrades never touch. Its header is read, nothing is fetched.

    SOURCE: OWNER/REPO[@REVISION] of the hub, or the paths of GGUF files, one for each quantization. Files stay where they are.

    \b
    storyfi-lite models add my-tune ./my-tune-Q4_K_M.gguf ./my-tune-Q8_0.gguf
    storyfi-lite models add qwen3 OWNER/REPO
    """
    from storyfi_lite.cli.table import say
    from storyfi_lite.models import own_registry
    from storyfi_lite.models.add import describe
    from storyfi_lite.models.registry import load_registry

    spec, words = describe(name, sources, load_registry())
    path = own_registry.keep(spec)
    for line in (*words, pay_words(spec)):
        say(line, err=True)
    say(f"{spec.key} is kept in {path}")
