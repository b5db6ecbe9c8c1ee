"""`storyfi-lite prove` says whether a model file wrote an answer."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storyfi_lite.cli.options import TASK_NAMES, UTF8, json_option, model_options

if TYPE_CHECKING:
    from storyfi_lite.options import ModelOptions
    from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
    from storyfi_lite.validator.verdict import Verdict

EXIT_CODES = {"proven": 0, "refuted": 1, "inconclusive": 3}


@click.command()
@click.argument("response", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--text", type=UTF8, help="The user input that was asked about.")
@click.option("--task", type=click.Choice(TASK_NAMES), default="blueprint", show_default=True)
@click.option("--request", "request_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The whole request as JSON, in place of --text and --task.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="The challenge seed.  [default: the one in the answer]")
@model_options()
@json_option
def command(
    response: Path, text: str | None, task: str, request_file: Path | None, seed: int | None, model: ModelOptions,
    as_json: bool,
) -> None:  # fmt: skip
    """Replay a whole response (generate --json) in one prefill with the file that it claims, or with the one you name.

    Exit code 0: proven. 1: refuted. 3: inconclusive. 2: wrong use.

    \b
    storyfi-lite generate "a heist" --json > response.json
    storyfi-lite prove response.json --text "a heist"
    storyfi-lite prove response.json --request request.json --model.path model.gguf
    """
    from storyfi_lite.errors import BadInput
    from storyfi_lite.protocol.messages import parse_request, parse_response
    from storyfi_lite.validator.verify import MAX_RESPONSE_BYTES

    if (text is None) == (request_file is None):
        raise BadInput("give the request: --text TEXT, or --request FILE.json")
    asked = json.dumps({"task_type": task, "user_input": text}).encode()
    request = parse_request(request_file.read_bytes() if request_file else asked)
    with click.open_file(str(response), "rb") as stream:
        answer = parse_response(stream.read(MAX_RESPONSE_BYTES))
    verdict = _verdict(request, answer, seed, model)
    facts: dict[str, Any] = dict(vars(verdict))
    click.echo(json.dumps(facts) if as_json else _words(facts))
    sys.exit(EXIT_CODES[verdict.status])


def _verdict(request: StoryRequest, answer: StoryResponse, seed: int | None, model: ModelOptions) -> Verdict:
    """Replay with the file that the options name, else with the one that the answer claims."""
    from storyfi_lite.cli.progress import DownloadProgress
    from storyfi_lite.errors import BadInput
    from storyfi_lite.opening.loader import open_prover
    from storyfi_lite.opening.local import Notices
    from storyfi_lite.validator.verdict import NO_PROOF

    if answer.proof is None:
        return NO_PROOF
    claimed = not model.is_explicit
    if claimed:
        model = replace(model, name=answer.model_name, quant=answer.proof.quantization)
    try:
        with DownloadProgress() as progress:
            prover = open_prover(model, Notices(progress.update, progress.note))
    except BadInput as error:
        if claimed:
            raise BadInput(f"{error}\n  --model.path FILE names the file to replay with") from None
        raise
    with prover:
        return prover.prove(request, answer, seed)


def _words(facts: dict[str, Any]) -> str:
    lines = [f"{facts['status'].upper()}: {facts['reason']}"]
    if facts["positions"]:
        lines.append(f"{facts['positions']} free positions, {facts['match_rate']:.1%} chosen alike")
        lines.append(f"this file's noise on this machine: {facts['noise']:.3f} nats")
    return "\n".join(lines)
