"""`storyfi-lite prove` says whether a model file wrote an answer."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storyfi_lite import files
from storyfi_lite.cli.options import (
    FILE,
    FILE_OR_STDIN,
    NEW_FILE,
    TEXT,
    json_option,
    model_options,
    signing_options,
    task_option,
)  # fmt: skip
from storyfi_lite.errors import BadInput
from storyfi_lite.options import ModelOptions

if TYPE_CHECKING:
    from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
    from storyfi_lite.validator.proof import Prover
    from storyfi_lite.validator.verdict import Verdict

EXIT_CODES = {"proven": 0, "inconclusive": 3, "refuted": 1}  # of several answers the last one counts


@click.command()
@click.argument("file", type=FILE_OR_STDIN)
@click.option("--text", type=TEXT, help="The user input that was asked about, if the file does not say it.")
@task_option
@click.option("--request", "request_file", type=FILE, help="The whole request as JSON, in place of --text and --task.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="The challenge seed.  [default: the one in the answer]")
@click.option("--report", type=NEW_FILE, help="Keep a report here, for others to check with verify-report.")
@signing_options
@model_options()
@json_option
def command(
    file: Path, text: str | None, task: str, request_file: Path | None, seed: int | None, report: Path | None,
    wallet: str | None, hotkey: str, wallet_path: Path | None, model: ModelOptions, as_json: bool,
) -> None:  # fmt: skip
    """Replay the answers of FILE (generate --json, story, or a miner's response) with the model file that they claim, or with the
    one you name. Without memory for it, its weights stay on the disk.

    Exit code 0: proven. 1: refuted. 3: inconclusive. 2: wrong use. Of several answers: the worst.

    \b
    storyfi-lite generate "a heist" --json > response.json
    storyfi-lite prove response.json
    storyfi-lite prove response.json --report report.json --wallet validator
    storyfi-lite prove their.json --text "a heist" --model.path model.gguf
    """
    from storyfi_lite.cli.table import say

    if report is None and wallet:
        raise BadInput("a wallet signs a report: --report FILE")
    signer = None
    if wallet:
        from storyfi_lite.chain.wallets import open_wallet

        signer = open_wallet("", wallet, hotkey, wallet_path).hotkey
    answers = _read(file, text, task, request_file)
    if seed is not None and len(answers) > 1:
        raise BadInput("--seed is one answer's, and the file has several")
    verdicts = verdicts_on(answers, seed, model, report, signer)
    facts = {name: dict(vars(verdict)) for name, verdict in verdicts.items()}
    worst = max((verdict.status for verdict in verdicts.values()), key=list(EXIT_CODES).index)
    if as_json:
        click.echo(json.dumps(next(iter(facts.values())) if len(facts) == 1 else {"status": worst, "answers": facts}))
    else:
        for name, one in facts.items():
            say(f"{f'{name}: ' if len(facts) > 1 else ''}{one['status'].upper()}: {one['reason']}")
            if one["positions"]:
                say(f"{one['positions']} free positions, {one['match_rate']:.1%} chosen alike")
                say(f"this file's noise on this machine: {one['noise']:.3f} nats")
    if report:
        unsigned = "unsigned: anybody could have made it; --wallet NAME signs"
        by = f"signed by {signer.ss58_address}" if signer else unsigned
        say(f"report kept in {report}, {by}", err=True)
    sys.exit(EXIT_CODES[worst])


def _read(
    file: Path, text: str | None, task: str, request_file: Path | None
) -> dict[str, tuple[StoryRequest, StoryResponse]]:
    """Read the file's answers by name, each with what was asked. Raises BadInput where that is not known."""
    from storyfi_lite.protocol.messages import parse_request
    from storyfi_lite.story.saved import MAX_FILE_BYTES, read_answers

    if text is not None and request_file is not None:
        raise BadInput("give the request once: --text TEXT, or --request FILE.json")
    with click.open_file(str(file), "rb") as stream:
        saved = read_answers(stream.read(MAX_FILE_BYTES + 1))
    if text is not None or request_file is not None:
        if len(saved) > 1:
            raise BadInput("the file has several answers and says what was asked: leave out --text and --request")
        asked = json.dumps({"task_type": task, "user_input": text}).encode()
        request = parse_request(request_file.read_bytes() if request_file else asked)
        saved = (replace(saved[0], request=request),)
    found = {}
    for one in saved:
        if one.response is None:
            raise BadInput("the file has the story alone, without what proves it: generate --json and story keep that")
        if one.request is None:
            raise BadInput("the file does not say what was asked: --text TEXT, or --request FILE.json")
        found[one.name] = (one.request, one.response)
    return found


def verdicts_on(
    answers: dict[str, tuple[StoryRequest, StoryResponse]], seed: int | None, model: ModelOptions, report: Path | None,
    signer: Any,
) -> dict[str, Verdict]:  # fmt: skip
    """Replay with the file that the options name, else with the one that the answers claim; keep a report."""
    from storyfi_lite.validator import report as reports
    from storyfi_lite.validator.verdict import NO_PROOF

    claims = {(answer.model_name, answer.proof.quantization) for _, answer in answers.values() if answer.proof}
    if not claims:
        if report:
            raise BadInput("there is nothing to report: no answer carries a proof")
        return dict.fromkeys(answers, NO_PROOF)
    if len(claims) > 1 and not model.is_explicit:
        raise BadInput("the answers claim several files: --model.path FILE names the one to replay with")
    with claimed_prover(model, *min(claims)) as prover:
        asked = [(request, answer, seed) for request, answer in answers.values()]
        found = dict(prover.prove_all(asked))
        verdicts = {name: found[at] for at, name in enumerate(answers)}
        size, sha256 = prover.model.vocabulary.size, prover.sha256
        if report:
            rows = [reports.reported(name, *answers[name], seed, verdict) for name, verdict in verdicts.items()]
            made = reports.make_report(rows, prover.sha256, prover.engine, prover.device)
            raw = reports.spell(made, signer.ss58_address, signer.sign) if signer else reports.spell(made)
            files.write_text(report, raw.decode(), "another --report")
    refuted = {name: one for name, one in verdicts.items() if one.status == "refuted" and one.positions}
    return verdicts | (_writers(refuted, answers, seed, size, sha256) if refuted else {})


def _writers(
    refuted: dict[str, Verdict], answers: dict[str, tuple[StoryRequest, StoryResponse]], seed: int | None,
    vocab_size: int, sha256: str,
) -> dict[str, Verdict]:  # fmt: skip
    """Return the verdicts, with the file that wrote the answer where it is among those that are here: of several the likeliest."""
    from storyfi_lite.cli.progress import shown_progress
    from storyfi_lite.opening.loader import open_other_provers
    from storyfi_lite.validator.proof import claiming

    named, best = dict(refuted), dict.fromkeys(refuted, 0.0)
    with shown_progress() as notices:
        for file, other in open_other_provers(sha256, vocab_size, notices):
            asked = [(answers[name][0], claiming(answers[name][1], other.sha256), seed) for name in refuted]
            for at, verdict in other.prove_all(asked):
                name = list(refuted)[at]
                if verdict.status == "proven" and verdict.evidence > best[name]:
                    named[name], best[name] = refuted[name].written(file), verdict.evidence
    return named


def claimed_prover(model: ModelOptions, model_name: str, quantization: str) -> Prover:
    """Open the file to replay with, and show what is fetched for it."""
    from storyfi_lite.cli.progress import shown_progress
    from storyfi_lite.opening.loader import open_claimed_prover

    with shown_progress() as notices:
        return open_claimed_prover(model, model_name, quantization, notices)
