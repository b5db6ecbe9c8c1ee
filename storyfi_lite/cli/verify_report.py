"""`storyfi-lite verify-report` replays what another validator reports, and compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from storyfi_lite.cli.options import FILE_OR_STDIN, json_option, model_options
from storyfi_lite.errors import BadInput
from storyfi_lite.options import ModelOptions

EXIT_CODES = {"agrees": 0, "open": 3, "contradicts": 1}  # the worst last
WORDS = {"agrees": "AGREES", "open": "OPEN: one of the two cannot tell", "contradicts": "CONTRADICTS"}


@click.command("verify-report")
@click.argument("file", type=FILE_OR_STDIN)
@model_options()
@json_option
def command(file: Path, model: ModelOptions, as_json: bool) -> None:
    """Check the report FILE that `prove --report` made: hashes and signature; then replay its answers with the same model file,
    yours, and compare the verdicts.

    Exit code 0: this machine says the same. 1: it says the opposite of an answer. 3: it cannot tell where the report could, or the
    other way round. 2: wrong use, or a report that was changed.

    \b
    storyfi-lite verify-report report.json
    storyfi-lite verify-report report.json --model.path model.gguf
    """
    from storyfi_lite.cli.prove import claimed_prover
    from storyfi_lite.cli.table import reflow
    from storyfi_lite.validator.report import MAX_REPORT_BYTES, agreement, read_report

    with click.open_file(str(file), "rb") as stream:
        report = read_report(stream.read(MAX_REPORT_BYTES + 1))
    with claimed_prover(model, report.model_name, report.quantization) as prover:
        if prover.sha256 != report.model_sha256:
            raise BadInput(
                f"the report is of another file than yours: sha256 {report.model_sha256}, yours {prover.sha256}\n"
                "  --model.path FILE names the file to replay with"
            )
        ours = dict(prover.prove_all([(one.request, one.response, one.seed) for one in report.answers]))
    by = f"signed by {report.hotkey}" if report.hotkey else "unsigned: anybody could have made it"
    lines = [f"the report is whole, and {by}", f"made with {report.engine} on {report.device}"]
    rows: list[dict[str, Any]] = []
    for at, one in enumerate(report.answers):
        there, here = one.verdict, ours[at]
        agrees = agreement(there, here)
        rows.append({"name": one.name, "agreement": agrees, "reported": vars(there), "here": vars(here)})
        margins = f"{here.mean_margin:.4f} nats here, {there.mean_margin:.4f} there"
        lines.append(f"{one.name}: {here.status} here, {there.status} there; {margins}")
    worst = max((row["agreement"] for row in rows), key=list(EXIT_CODES).index)
    facts = {"verdicts": worst, "hotkey": report.hotkey, "model_sha256": report.model_sha256, "answers": rows}
    click.echo(json.dumps(facts) if as_json else reflow("\n".join([*lines, WORDS[worst]])))
    sys.exit(EXIT_CODES[worst])
