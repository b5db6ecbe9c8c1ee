"""Stories in files: what `generate` and `story` keep is read again by `verify`, `prove` and `--context`, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from storyfi_lite import tasks
from storyfi_lite.cli import cli
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.schema import dump
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.story.saved import SavedAnswer, comment, read_answers, read_story, response_data, story_data
from tests.stories import example

MARKUP = "<script>alert(1)</script> --> a keeper & his lamp"


def answer(task: str, told: dict[str, Any], **fields: Any) -> SavedAnswer:
    request = StoryRequest(task_type=task, user_input=MARKUP, seed=7, **told, **fields)  # type: ignore[arg-type]
    data = example(tasks.get(task).constraint(request).schema)
    name = task if task != "chapters" else f"chapter {fields['chapter_ids'][0]}"
    return SavedAnswer(name, data, request, StoryResponse(output_data=data, output_text=dump(data), model_name="smol"))


@pytest.fixture(scope="module")
def whole() -> tuple[SavedAnswer, ...]:
    answers: list[SavedAnswer] = []
    told: dict[str, Any] = {}
    for task in ("blueprint", "characters", "story_arc"):
        answers.append(answer(task, told))
        told[task] = answers[-1].data
    return (*answers, answer("chapters", told, chapter_ids=[1]), answer("chapters", told, chapter_ids=[2]))


def verify(text: str, *flags: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["verify", *flags], input=text.encode())
    return done.exit_code, done.stdout


def test_a_story_is_read_as_it_was_kept_with_what_was_asked(whole: tuple[SavedAnswer, ...]) -> None:
    data = story_data(MARKUP, 7, whole)
    for kept in (dump(data), f"<html>{MARKUP}{comment(data)}</html>\n"):
        assert read_story(kept.encode()) == (MARKUP, 7, whole)
        assert read_answers(kept.encode()) == whole


@pytest.mark.parametrize("count", [1, 3, 5])
def test_verify_checks_every_answer_of_a_story(whole: tuple[SavedAnswer, ...], count: int) -> None:
    code, said = verify(dump(story_data(MARKUP, 7, whole[:count])), "--json")
    assert code == 0, said
    answers = json.loads(said).get("answers")
    assert count == 1 or [*answers] == [one.name for one in whole[:count]]


def test_one_bad_answer_makes_a_story_not_valid(whole: tuple[SavedAnswer, ...]) -> None:
    data = story_data(MARKUP, 7, whole)
    data["story_arc"] = {**data["story_arc"], "title": ""}
    code, said = verify(dump(data))
    assert code == 1 and "title has 0 characters" in said and said.endswith("NOT VALID\n")


def test_a_response_knows_what_was_asked(whole: tuple[SavedAnswer, ...]) -> None:
    one = whole[1]
    assert one.request and one.response
    kept = dump(response_data(one.request, one.response))
    assert read_answers(kept.encode()) == (one,)
    assert verify(kept)[0] == 0


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({"blueprint": {}, "characters": []}, "`characters` is not an object"),
        ({"blueprint": {}, "answers": []}, "`answers`"),
        ({"blueprint": {}, "characters": {}, "story_arc": {}, "chapters": [{"id": 1}, {"id": 1}]}, "twice"),
        ({"blueprint": {}, "chapters": ["x"]}, "chapter_ids"),
        ({"output_data": {}, "request": {"task_type": "poem"}}, "task_type"),
        ([], "not a JSON object"),
    ],
)
def test_a_damaged_file_is_one_clear_line(kept: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_answers(dump(kept).encode())


def test_context_takes_what_the_commands_wrote(whole: tuple[SavedAnswer, ...], tmp_path: Path) -> None:
    """Only the first two are given, so the third is named as missing before any model is looked for."""
    assert whole[0].request and whole[0].response
    alone, response = tmp_path / "alone", tmp_path / "response"
    alone.write_text(dump(whole[1].data))
    response.write_text(comment(response_data(whole[0].request, whole[0].response)))
    asked = ["generate", "x", "--task", "chapters", "--context", str(alone), "--context", str(response)]
    done = CliRunner().invoke(cli, asked)
    assert isinstance(done.exception, BadInput) and "needs `story_arc`" in str(done.exception)
    alone.write_text("{}")
    done = CliRunner().invoke(cli, asked)
    assert isinstance(done.exception, BadInput) and "has none of blueprint" in str(done.exception)
