"""`storyfi-lite doctor` prints what storyfi_lite.doctor finds. The checks are there, none is here."""

from __future__ import annotations

import json
import sys

import click

from storyfi_lite.cli.options import NEW_FILE, chain_options, complete_models, json_option

MARKS = {"ok": ("✓", "green"), "mend": ("✗", "red"), "skip": ("-", "yellow")}


@click.command(name="doctor")
@chain_options("miner")
@click.option("--axon.port", "port", type=click.IntRange(1, 65535), default=8091,
              help="The port that `mine` will listen on.")  # fmt: skip
@click.option("--axon.external_ip", "external_ip", default=None, help="Address or DNS name that validators call.")
@click.option("--model.name", "model", envvar="MODEL_NAME", default=None, shell_complete=complete_models,
              help="The model that `mine` will load.  [default: the best that fits]")  # fmt: skip
@click.option("--api.key-file", "api_key_file", type=NEW_FILE, help="The file with the API's key.")
@json_option
def command(as_json: bool, **options: object) -> None:
    """Check wallet, chain, clock, port, build, model, key and disk, and say how to mend what is wrong.

    Exit code 0: all fine; 1: something is to mend.

    \b
    storyfi-lite doctor
    storyfi-lite doctor --network finney --netuid NUMBER --axon.external_ip home.example.org
    storyfi-lite doctor --network dev --json
    """
    from storyfi_lite import doctor
    from storyfi_lite.cli.table import print_marked

    checks = []
    for check in doctor.run(doctor.Setup(**options)):  # type: ignore[arg-type]
        checks.append(check)
        if not as_json:
            mark, colour = MARKS[check.status]
            print_marked(mark, colour, f" {check.name}: {check.detail}", 4)
            for line in check.fix.splitlines():
                click.echo(f"    {line.strip()}")
    to_mend = [check.name for check in checks if check.status == "mend"]
    if as_json:
        click.echo(json.dumps({"ok": not to_mend, "checks": [vars(check) for check in checks]}))
    else:
        click.echo(f"To mend: {', '.join(to_mend)}." if to_mend else "All fine.")
    sys.exit(1 if to_mend else 0)
