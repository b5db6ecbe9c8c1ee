"""`storyfi-lite calibrate`: measures how far honest answers of a file are from their own replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from storyfi_lite.cli.options import json_option, threads_option

# Inputs of several kinds and languages: the honest margin moves with the prompt.
STORIES = (
    "a lighthouse keeper who hears the sea speak", "一个关于AI觉醒的科幻故事", "two sisters find a map of the moon",
    "un facteur qui refuse de livrer une lettre", "a robot learns to bake bread", "古代王朝里的一场阴谋",
    "the last train out of winter", "قصة صياد يجد مدينة تحت الماء", "a detective in a city of clocks", "宇宙の果ての図書館",
)  # fmt: skip


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--answers", default=20, show_default=True, type=click.IntRange(6, 10_000), help="How many to write and replay."
)
@threads_option
@json_option
def command(file: Path, answers: int, n_threads: int | None, as_json: bool) -> None:
    """Write honest answers with FILE, replay each, and keep the file's limits for `prove`.

    \b
    storyfi-lite calibrate model.gguf
    storyfi-lite calibrate model.gguf --answers 100
    """
    from storyfi_lite.errors import BadInput
    from storyfi_lite.validator import proof

    replays = []
    with proof.Prover(file, n_threads=n_threads or 0) as prover:
        for request, response in _honest_answers(file, answers, n_threads):
            replays.append(prover.replay(request, response))
            one = replays[-1]
            if one.refuted:
                raise BadInput(f"an honest answer does not replay: {one.refuted}; please report this file")
            click.echo(
                f"{len(replays)}/{answers}: mean margin {one.mean_margin:.4f}, {len(one.margins)} positions", err=True
            )
        calibration = proof.calibrate(prover.sha256, replays, response.proof.engine)
    place = proof.save_calibration(calibration)
    if as_json:
        bound = proof.rate_bound(calibration.refuted, calibration.answers)
        click.echo(json.dumps({**vars(calibration), "refuted_at_most": bound}))
        return
    click.echo(
        f"mean {calibration.mean:.4f} nats a position over {calibration.positions:,} positions of {calibration.answers} answers"
    )
    click.echo(f"an answer of 200 free positions is proven up to {calibration.proven_to(200):.4f} "
               f"and refuted above {calibration.refuted_above(200):.4f}")  # fmt: skip
    bound = proof.rate_bound(calibration.refuted, calibration.answers)
    click.echo(
        f"{calibration.refuted} of them refuted by the limits of all others: at most {bound:.2%} of honest answers, with 95 % confidence"
    )
    click.echo(f"kept in {place}")


def _honest_answers(file: Path, answers: int, n_threads: int | None) -> Any:
    """Requests and responses, as a miner with this file gives them."""
    import time

    from storyfi_lite.loaders.base import Job
    from storyfi_lite.miner.service import to_response
    from storyfi_lite.opening.loader import ModelChoice, Notices, open_loader
    from storyfi_lite.protocol.messages import StoryRequest

    quiet = Notices(lambda name, done, total: None, lambda note: None)
    loader, _ = open_loader(ModelChoice(path=file, n_threads=n_threads), quiet)
    try:
        for number in range(answers):
            request = StoryRequest(task_type="blueprint", user_input=STORIES[number % len(STORIES)], max_tokens=900)
            yield request, to_response(loader.submit(Job(request, number, time.monotonic() + 3600)).result())
    finally:
        loader.close()
