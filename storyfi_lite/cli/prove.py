"""`storyfi-lite prove`: did this file write that answer?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from storyfi_lite.cli.options import TASK_NAMES, json_option, threads_option

EXIT_CODES = {"proven": 0, "refuted": 1, "inconclusive": 3}


@click.command()
@click.argument("response", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--model.path", "model_path", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              required=True, help="The GGUF file that is claimed.")  # fmt: skip
@click.option("--text", help="The user input that was asked about.")
@click.option("--task", type=click.Choice(TASK_NAMES), default="blueprint", show_default=True)
@click.option("--request", "request_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The whole request as JSON, in place of --text and --task.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="The challenge seed.  [default: the one in the answer]")
@threads_option
@json_option
def command(
    response: Path, model_path: Path, text: str | None, task: str, request_file: Path | None, seed: int | None,
    n_threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Replay a whole response (generate --json) with the claimed file, in one prefill.

    Exit code 0: proven. 1: refuted. 3: inconclusive. 2: wrong use.

    \b
    storyfi-lite generate "a heist" --json > response.json
    storyfi-lite prove response.json --text "a heist" --model.path model.gguf
    """
    from storyfi_lite.errors import BadInput
    from storyfi_lite.models.registry import load_registry
    from storyfi_lite.protocol.messages import parse_request, parse_response
    from storyfi_lite.validator.proof import Prover
    from storyfi_lite.validator.verify import MAX_RESPONSE_BYTES

    if (text is None) == (request_file is None):
        raise BadInput("give the request: --text TEXT, or --request FILE.json")
    asked = json.dumps({"task_type": task, "user_input": text}).encode()
    request = parse_request(request_file.read_bytes() if request_file else asked)
    with click.open_file(str(response), "rb") as stream:
        answer = parse_response(stream.read(MAX_RESPONSE_BYTES))
    template = next((spec.chat_template for spec in load_registry().local if spec.key == answer.model_name), None)
    with Prover(model_path, template, n_threads or 0) as prover:
        verdict = prover.prove(request, answer, seed)
    facts: dict[str, Any] = {**vars(verdict), "limits": list(verdict.limits)}
    click.echo(json.dumps(facts) if as_json else _words(facts))
    sys.exit(EXIT_CODES[verdict.status])


def _words(facts: dict[str, Any]) -> str:
    lines = [f"{facts['status'].upper()}: {facts['reason']}"]
    if facts["positions"]:
        lines.append(f"{facts['positions']} free positions, {facts['match_rate']:.1%} chosen alike")
        lines.append("limits calibrated for this file" if facts["calibrated"] else
                     "limits are defaults; `storyfi-lite calibrate FILE` measures this file's own")  # fmt: skip
    return "\n".join(lines)
