"""`storyfi-lite calibrate` measures how far two computations of a file's scores stray, and judges honest answers by it."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

import click

from storyfi_lite import files
from storyfi_lite.cli.options import json_option, model_options
from storyfi_lite.errors import BadInput
from storyfi_lite.options import ModelOptions

if TYPE_CHECKING:
    from storyfi_lite.opening.local import LocalOpener
    from storyfi_lite.protocol.messages import StoryRequest, StoryResponse

TIMEOUT_S = 3600.0  # of one answer

# Inputs of several kinds and languages: the honest margin moves with the prompt.
STORIES = (
    "a lighthouse keeper who hears the sea speak", "一个关于AI觉醒的科幻故事", "two sisters find a map of the moon",
    "un facteur qui refuse de livrer une lettre", "a robot learns to bake bread", "古代王朝里的一场阴谋",
    "the last train out of winter", "قصة صياد يجد مدينة تحت الماء", "a detective in a city of clocks", "宇宙の果ての図書館",
)  # fmt: skip


@click.command()
@click.option("--answers", default=20, type=click.IntRange(6, 10_000), help="How many to write and replay.")
@model_options()
@json_option
def command(answers: int, model: ModelOptions, as_json: bool) -> None:
    """Write honest answers with a model file, replay each in two ways, and keep the file's noise for `prove`.

    The file is held in memory once: first all answers are written, then all are replayed.

    \b
    storyfi-lite calibrate --model.path model.gguf
    storyfi-lite calibrate --model.name mistral-7b --quant Q4_K_M --answers 100
    """
    from storyfi_lite.cli.table import reflow
    from storyfi_lite.opening.local import SILENT, LocalOpener
    from storyfi_lite.validator import calibration as kept

    files.check_writable(kept.user_calibrations(), kept.MOVED_BY)
    kept.calibration_of("")  # before the work: a broken file is told
    opener = LocalOpener(SILENT)
    written = _honest_answers(opener, model, answers)
    pairs = []
    with opener.prover(model) as prover:
        for request, response in written:
            one, other = prover.two_ways(request, response)
            if one.refuted:
                raise BadInput(f"an honest answer does not replay: {one.refuted}; please report this file")
            pairs.append((one, other))
            seen = f"mean margin {one.mean_margin:.4f}, {len(one.margins)} positions"
            click.echo(f"replayed {len(pairs)}/{answers}: {seen}", err=True)
        assert response.proof is not None  # a local loader's answer has one
        calibration = kept.calibrate(prover.sha256, pairs, response.proof.engine)
    bound = kept.rate_bound(calibration.refuted, calibration.answers)
    words = (
        f"noise {calibration.noise:.3f} nats, from {calibration.positions:,} positions of {calibration.answers} answers\n"
        f"{calibration.proven} of them are proven by it, {calibration.refuted} refuted: at most {bound:.2%} of honest answers, "
        "with 95 % confidence"
    )
    click.echo(json.dumps({**vars(calibration), "refuted_at_most": bound}) if as_json else reflow(words))
    place = kept.save_calibration(calibration)  # last: an hour's figures are not lost to a full disk
    click.echo(f"kept in {place}", err=as_json)


def _honest_answers(opener: LocalOpener, model: ModelOptions, answers: int) -> list[tuple[StoryRequest, StoryResponse]]:
    from storyfi_lite.loaders.base import Job
    from storyfi_lite.miner.service import to_response
    from storyfi_lite.protocol.messages import StoryRequest

    loader, facts = opener.loader(model, warm_up=False)
    click.echo(f"{facts['model']} {facts['quantization']}, {facts['placed']}", err=True)
    written = []
    with contextlib.closing(loader):
        for number in range(answers):
            request = StoryRequest(task_type="blueprint", user_input=STORIES[number % len(STORIES)], max_tokens=900)
            answer = loader.submit(Job(request, number, time.monotonic() + TIMEOUT_S)).result()
            written.append((request, to_response(answer)))
            click.echo(f"written {len(written)}/{answers}: {answer.completion_tokens} tokens", err=True)
    return written
