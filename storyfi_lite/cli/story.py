"""`storyfi-lite story` writes all four tasks, each building on the ones before, into one file that is whole after each."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storyfi_lite import files, stopping
from storyfi_lite.cli.options import NEW_FILE, TEXT, api_options, model_options, placement_options, think_option
from storyfi_lite.cli.writing import format_option, put, speed, write
from storyfi_lite.errors import BadInput, LiteError
from storyfi_lite.options import ModelOptions

if TYPE_CHECKING:
    from storyfi_lite.loaders.base import Loader
    from storyfi_lite.protocol.messages import ModelInfo, StoryRequest
    from storyfi_lite.story.saved import SavedAnswer
    from storyfi_lite.validator.verdict import Verdict


@click.command()
@click.argument("text", type=TEXT)
@click.option("--output", "-o", type=NEW_FILE, help="[default: standard output]")
@format_option
@click.option("--chapters", "count", type=click.IntRange(1, 12), default=1, help="How many, from the first.")
@click.option(
    "--prove", "is_proven", is_flag=True, help="Replay every answer at the end; a page has the verdicts at its foot."
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="[default: random]")
@model_options(placement_options, think_option, api_options)
def command(
    text: str, output: Path | None, form: str | None, count: int, is_proven: bool, seed: int | None, model: ModelOptions
) -> None:
    """Write a blueprint for TEXT, then characters, story arc and chapters. Valid at every stage.

    A terminal shows the text as it is written. With -o FILE the story is kept after each stage, and the same command goes on
    where it was stopped. `verify` and `prove` read the file in any format.

    \b
    storyfi-lite story "a lighthouse keeper who hears the sea speak" -o story.html
    storyfi-lite story "一个关于灯塔的故事" --chapters 3 -o story.json
    """
    from storyfi_lite.cli.progress import shown_progress
    from storyfi_lite.opening.loader import open_loader
    from storyfi_lite.story.formats import format_of
    from storyfi_lite.story.saved import STAGES

    story = _Story(text, output, form or format_of(output), -1)
    story.check()
    story.go_on(seed)
    names = [*STAGES, *(f"chapter {id}" for id in range(1, count + 1))]
    if story.missing(names):
        with shown_progress() as notices:
            loader, facts = open_loader(model, notices)
        click.echo(f"{facts['model']} {facts['quantization']}, seed {story.seed}", err=True)
        with contextlib.closing(loader), stopping.at_stop(story.say_what_is_kept):
            story.check_writer(loader.claim.model_info)
            for name in story.missing(names):
                click.echo(f"\n{name}, {names.index(name) + 1} of {len(names)}", err=True)
                story.write(loader, name)
    if is_proven:
        story.prove(model)
    story.hand_over()


@dataclass
class _Story:
    """Holds a story that is being written, and its file."""

    text: str
    output: Path | None
    form: str
    seed: int
    answers: list[SavedAnswer] = field(default_factory=list)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)

    def check(self) -> None:
        """Tell a mistake before a model is fetched. Raises BadInput or ConfigError."""
        from storyfi_lite import tasks

        tasks.get("blueprint").script(self._request("blueprint", seed=0))
        if self.output is not None:
            if not self.output.parent.is_dir():
                raise BadInput(f"cannot write {self.output}: there is no directory {self.output.parent}")
            files.check_writable(self.output, "--output FILE")

    def go_on(self, seed: int | None) -> None:
        """Take up what the file has, if it is of the same text and seed; each answer is checked again. Raises BadInput."""
        from storyfi_lite.story.saved import read_story
        from storyfi_lite.validator.verify import verify

        self.seed = secrets.randbits(64) if seed is None else seed
        if not self._is_kept or self.output is None or not self.output.exists() or not self.output.stat().st_size:
            return
        try:
            text, kept_seed, answers = read_story(self.output.read_bytes())
        except BadInput as error:
            raise self._not_this_one(str(error)) from None
        if text != self.text:
            raise self._not_this_one(f"it is of another text, {text[:60]!r}")
        if seed not in (None, kept_seed):
            raise self._not_this_one(f"its seed is {kept_seed}")
        for answer in answers:
            if not (answer.request and answer.response and verify(answer.request, answer.response).valid):
                raise self._not_this_one(f"its {answer.name} is not valid")
        self.seed, self.answers = kept_seed, list(answers)

    def check_writer(self, model_info: ModelInfo) -> None:
        """Raise BadInput if another model wrote what the file has."""
        said = self.answers[-1].response if self.answers else None
        if said and said.model_info != model_info:
            who = f"{said.model_name} {said.model_info.version}"
            raise self._not_this_one(f"{who} wrote it, or another file of that name")

    def _not_this_one(self, why: str) -> BadInput:
        said = f"{self.output} is not this story, to go on with: {why}"
        return BadInput(f"{said}\n  remove it, or name another file: -o FILE")

    @property
    def _is_kept(self) -> bool:
        """Return whether there is a file to keep it in: a pipe gets the whole story alone."""
        return self.output is not None and (self.output.is_file() or not self.output.exists())

    def missing(self, names: list[str]) -> list[str]:
        there = {answer.name for answer in self.answers}
        return [name for name in names if name not in there]

    def write(self, loader: Loader, name: str) -> None:
        """Write one stage, or one chapter: that is how validators ask, and it fits any context."""
        from storyfi_lite.miner.service import to_response
        from storyfi_lite.story.saved import SavedAnswer

        request = self._request(name, self.seed)
        answer = write(loader, request, self.seed)
        click.echo(f"{name}: {speed(answer)}", err=True)
        response = to_response(answer)
        self.answers.append(SavedAnswer(name, response.output_data, request, response))
        self.keep()

    def _request(self, name: str, seed: int) -> StoryRequest:
        from storyfi_lite.protocol.messages import parse_request
        from storyfi_lite.story.saved import STAGES, stages_of

        asked = {"task_type": name, "user_input": self.text, "seed": seed, **stages_of(self.answers)}
        if name not in STAGES:
            asked |= {"task_type": "chapters", "chapter_ids": [int(name.split()[1])]}
        return parse_request(asked)

    def keep(self) -> None:
        """Put what there is into the file. Raises DoesNotFit or ConfigError."""
        if self.output is None or not self._is_kept:
            return
        try:
            files.write_text(self.output, self._spelled(), "--output FILE")
        except LiteError:
            put(self._spelled())  # minutes of work
            raise

    def _spelled(self) -> str:
        from storyfi_lite.story.formats import spell
        from storyfi_lite.story.saved import story_data

        data: dict[str, Any] = story_data(self.text, self.seed, self.answers)
        return spell(self.form, self.text, self.answers, data, self.verdicts)

    def prove(self, model: ModelOptions) -> None:
        """Replay all answers with the file that they claim. Raises what `prove` raises."""
        from storyfi_lite.cli.prove import verdicts_on

        asked = {one.name: (one.request, one.response) for one in self.answers if one.request and one.response}
        self.verdicts = verdicts_on(asked, None, model, None, None)
        for name, verdict in self.verdicts.items():
            click.echo(f"{name}: {verdict.status}, {verdict.reason}", err=True)

    def say_what_is_kept(self) -> None:
        there = ", ".join(answer.name for answer in self.answers)
        if not self._is_kept:
            said = "nothing is kept: -o FILE keeps each stage, to go on with"
        elif there:
            said = f"{self.output} has {there}; the same command goes on from there"
        else:
            said = f"nothing is kept yet; --seed {self.seed} begins the same story"
        click.echo(f"\n{said}", err=True)

    def hand_over(self) -> None:
        if self.output is None:
            put(self._spelled())
        elif self._is_kept:
            self.keep()  # perhaps in another format, or with verdicts
            click.echo(f"{self.output}: {', '.join(answer.name for answer in self.answers)}", err=True)
        else:
            files.write_text(self.output, self._spelled(), "--output FILE")
