"""`storyfi-lite validate` asks miners, checks, replays and scores answers, and sets weights, until Ctrl-C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from storyfi_lite.cli.options import DIRECTORY, FILE, Number, chain_options, log_option, threads_option

if TYPE_CHECKING:
    from storyfi_lite.rounds.round import RoundReport


@click.command(name="validate")
@chain_options("validator")
@click.option("--rounds", type=click.IntRange(min=1), help="Stop after so many rounds.  [default: never]")
@click.option("--interval", "interval_s", default=300.0, type=Number(min=0),
              help="Seconds from the start of one round to the next.")  # fmt: skip
@click.option("--timeout", "timeout_s", default=60.0, type=Number(min=1),
              help="Seconds that miners have.")  # fmt: skip
@click.option("--proofs", default=8, type=click.IntRange(min=0), help="Answers replayed a round, at most.")
@click.option("--model.path", "model_paths", multiple=True, type=FILE,
              help="A registry file to replay with, beside those that were pulled. May be repeated.")  # fmt: skip
@threads_option
@click.option("--reward-policy", "policy_path", type=FILE, help="A reward policy of your own.")
@click.option("--inputs", "inputs_path", type=FILE, help="User inputs to ask, one a line.  [default: made up]")
@click.option("--dry-run", is_flag=True, help="Keep nothing and set no weights; one round unless --rounds says more.")
@click.option("--state-dir", type=DIRECTORY, help="Where the state lives.")
@log_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines, one object a round, instead of a table.")
def command(log_format: Any, as_json: bool, **flags: Any) -> None:
    """Validate: ask every miner, verify, replay some, score, average, set weights; until Ctrl-C.

    Claims are proven with the model files that are here: `storyfi-lite pull` those that your miners run.

    \b
    storyfi-lite validate --network dev --dry-run       one round, a table, nothing kept
    storyfi-lite validate --wallet validator --wallet-hotkey default
    storyfi-lite validate --network finney --netuid NUMBER --proofs 16 --json
    """
    from storyfi_lite.miner import logs
    from storyfi_lite.rounds.loop import ValidateOptions, run

    logs.setup(log_format)
    if flags["dry_run"] and flags["rounds"] is None:
        flags["rounds"] = 1
    run(ValidateOptions(**flags), (lambda report: click.echo(report.to_json())) if as_json else _print_table)


def _print_table(report: RoundReport) -> None:
    from rich.text import Text

    from storyfi_lite.cli.table import print_table, say

    prompt = Text(report.user_input)
    prompt.truncate(70, overflow="ellipsis")  # counts terminal cells
    say(f"round {report.number}: {report.task}, “{prompt.plain}”")
    ranked = sorted(report.rows, key=lambda row: -row.final)
    cells = []
    for row in ranked:
        seconds = "" if row.elapsed_s is None else f"{row.elapsed_s:.1f}"
        figures = (seconds, f"{row.base:.1f}", f"{row.multiplier:.2f}", f"{row.final:.1f}", f"{row.average:.2f}")
        cells.append((row.hotkey[:8], row.model, row.proof, *figures))
    figures_of = ("s", "base", "x", "final", "average")
    print_table(("miner", "claims", "proof", *figures_of), cells, right=figures_of)
    for row in ranked:
        for said in filter(None, (row.paid_for, row.problem)):
            say(f"  {row.hotkey[:8]}  {said}")
