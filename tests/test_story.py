"""Stories in files: what `generate` and `story` keep is read again by `verify`, `prove` and `--context`, in every format."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from storyfi_lite import tasks
from storyfi_lite.cli import cli
from storyfi_lite.cli.writing import write
from storyfi_lite.errors import BadInput, Unavailable
from storyfi_lite.grammar.schema import dump
from storyfi_lite.loaders.base import Answer, Job, Loader, Written
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.story.formats import for_a_terminal, spell
from storyfi_lite.story.saved import SavedAnswer, comment, read_answers, read_story, response_data, story_data
from storyfi_lite.validator.verdict import Verdict
from tests import openai_server
from tests.api_server import Script, Step, serve
from tests.scripted_model import story_for
from tests.stories import example, request_for

MARKUP = "<script>alert(1)</script> --> a keeper & his lamp"
VERDICT = Verdict("proven", "far inside")


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


# --- as pages ---


class Page(HTMLParser):
    """What a browser would make of a page: its tags, its text, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_markup_as_text_and_needs_nothing_else(whole: tuple[SavedAnswer, ...]) -> None:
    blueprint = replace(
        whole[0], data={**whole[0].data, "title": MARKUP, "setting": f"{MARKUP}\n<img src=x onerror=y>"}
    )
    told = Page(spell("html", MARKUP, [blueprint, *whole[1:]], story_data(MARKUP, 7, whole), {"blueprint": VERDICT}))
    assert not told.tags & {"script", "img", "link", "iframe"} and not told.addresses
    assert MARKUP in told.text and "<img src=x onerror=y>" in told.text
    assert "proven: far inside" in told.text and told.text.count("smol") == len(whole)
    assert "url(" not in told.text and "@import" not in told.text


@pytest.mark.parametrize("form", ["json", "md", "html"])
def test_every_format_is_read_again(whole: tuple[SavedAnswer, ...], form: str) -> None:
    text = spell(form, MARKUP, whole, story_data(MARKUP, 7, whole), {})
    assert read_story(text.encode()) == (MARKUP, 7, whole)
    assert json.loads(for_a_terminal(text)) == json.loads(text) if form == "json" else for_a_terminal(text) == text


def test_markdown_takes_no_markup_from_a_story(whole: tuple[SavedAnswer, ...]) -> None:
    blueprint = replace(whole[0], data={**whole[0].data, "title": "# *a* [b](c) <i>", "setting": "1. x\n- y\n> z"})
    text = spell("md", "x", [blueprint], {}, {})
    assert r"# \# \*a\* \[b\](c) \<i\>" in text
    assert "\n\\1. x\n" not in text and "\n1\\. x\n" in text and "\n\\- y\n" in text and "\n\\> z\n" in text


def test_json_for_a_terminal_keeps_lists_of_numbers_in_a_line() -> None:
    text = dump({"tokens": [1, 22, 333], "said": "[\n  1,\n  2\n]", "none": []})
    assert '"tokens": [1, 22, 333]' in for_a_terminal(text)
    assert json.loads(for_a_terminal(text)) == json.loads(text)


# --- going on ---


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Writer]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    steps: list[Any] = [None]
    with serve(steps) as script:
        made = Writer(script, tmp_path / "story.html")
        steps[0] = script.steps[0] = made.answer
        yield made


@dataclass
class Writer:
    """The command `story` with a server that answers `good` calls and refuses the rest."""

    script: Script
    path: Path
    good: int = 99

    def answer(self, body: dict[str, Any]) -> Step:
        self.good -= 1
        if self.good < 0:
            return openai_server.error(400, "no")
        return openai_server.text(story_for(body["response_format"]["json_schema"]["schema"]))

    def run(self, *flags: str, text: str = "a keeper", model: str = "gpt-4-turbo") -> tuple[int, Any]:
        """How many calls it took, and the error."""
        self.script.requests.clear()
        flags = ("--api.model", model, "--api.base-url", self.script.url, *flags)
        done = CliRunner().invoke(cli, ["story", text, "-o", str(self.path), *flags])
        return len(self.script.requests), done.exception


def test_a_stopped_story_goes_on_with_the_same_command(writer: Writer) -> None:
    writer.good = 2
    calls, error = writer.run("--seed", "7")
    assert calls == 3 and error
    kept = read_story(writer.path.read_bytes())
    assert [one.name for one in kept[2]] == ["blueprint", "characters"] and kept[1] == 7
    writer.good = 99
    assert writer.run() == (2, None)  # the seed is the file's
    whole = read_story(writer.path.read_bytes())
    assert whole[2][:2] == kept[2] and [one.name for one in whole[2][2:]] == ["story_arc", "chapter 1"]
    assert writer.run() == (0, None)
    assert writer.run("--chapters", "2") == (1, None)
    assert verify(writer.path.read_text())[0] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": "another"}, "another text, 'a keeper'"),
        ({"flags": ("--seed", "8")}, "its seed is 7"),
        ({"model": "gpt-6-luna"}, "gpt-4-turbo gpt-4-turbo wrote it"),
    ],
)
def test_what_was_begun_otherwise_is_not_gone_on_with(writer: Writer, change: dict[str, Any], says: str) -> None:
    writer.good = 1
    writer.run("--seed", "7")
    before = writer.path.read_bytes()
    calls, error = writer.run(*change.pop("flags", ()), **change)
    assert calls == 0 and isinstance(error, BadInput) and says in str(error) and "-o FILE" in str(error)
    assert writer.path.read_bytes() == before


def test_a_file_that_is_no_story_is_not_written_over(writer: Writer) -> None:
    writer.path.write_text("my notes")
    calls, error = writer.run()
    assert calls == 0 and isinstance(error, BadInput) and writer.path.read_text() == "my notes"


def test_verdicts_stand_at_the_foot_of_a_page(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay takes a model; here what it finds is given."""
    monkeypatch.setattr("storyfi_lite.cli.prove.verdicts_on", lambda answers, *_: dict.fromkeys(answers, VERDICT))
    assert writer.run("--prove") == (4, None)
    assert Page(writer.path.read_text()).text.count("proven: far inside") == 4
    assert writer.run() == (0, None)  # and they are of that moment
    assert "far inside" not in writer.path.read_text()


# --- on a terminal ---


class Teller:
    """A loader that says what it writes, a word at a time, to whoever listens."""

    TURNS = (
        ("setting", ["The", " sea", " was", " loud", "."]),
        ("labels", ["Title:", " 海", "声", "\n", "Genre: ", "sea"]),
    )

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> Future[Answer]:
        self.jobs.append(job)
        future: Future[Answer] = Future()
        for number, (name, words) in enumerate(self.TURNS, 1):
            for at, word in enumerate([*words, ""]):
                if job.on_text:
                    job.on_text(Written(name, number, len(self.TURNS), word, at == len(words)))
        future.set_exception(Unavailable("that was all"))
        return future


@pytest.mark.parametrize("columns", [80, 14])
def test_a_terminal_shows_the_text_broken_between_words(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(Unavailable):
        write(cast(Loader, Teller()), request_for("blueprint"), 1)
    said = capsys.readouterr().err
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m|, [0-9]+ tokens/s", "", said).splitlines() if line]
    broken = ["The sea was", "loud."] if columns == 14 else ["The sea was loud."]
    assert lines == [
        "setting, 1 of 2", *broken, "6 tokens", "labels, 2 of 2", "Title: 海声", "Genre: sea", "7 tokens",
    ]  # fmt: skip


def test_a_pipe_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    teller = Teller()
    with pytest.raises(Unavailable):
        write(cast(Loader, teller), request_for("blueprint"), 1)
    assert teller.jobs[0].on_text is None and capsys.readouterr() == ("", "")


def test_generate_writes_every_format(writer: Writer) -> None:
    asked = ["generate", MARKUP, "--api.model", "gpt-4-turbo", "--api.base-url", writer.script.url]
    for form in ("md", "html"):
        done = CliRunner().invoke(cli, [*asked, "--format", form])
        assert read_answers(done.stdout.encode())[0].request and verify(done.stdout)[0] == 0
    done = CliRunner().invoke(cli, [*asked, "--format", "md", "--json"])
    assert done.exit_code == 2 and "one of them" in done.output
