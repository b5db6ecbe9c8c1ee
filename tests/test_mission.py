"""What a validator accepts, from the words of the task alone: no bound here is read from the code.

A blueprint has title, genre, setting (300 characters or more), core_conflict (150 or more), themes (3 strings or more),
tone and target_audience; characters are Unicode code points, in any language; JSON only, nothing around it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from storyfi_lite.cli import cli
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator.score import Context, score
from storyfi_lite.validator.verify import verify_text
from tests.answers import as_bytes

SENTENCE = "The keeper counts the ships that do not come home. "
ASKED: dict[str, Any] = {
    "title": "T",
    "genre": "g",
    "setting": (SENTENCE * 20)[:300],
    "core_conflict": (SENTENCE * 20)[:150],
    "themes": ["grief", "duty", "bargains"],
    "tone": "q",
    "target_audience": "a",
}
WIDER: dict[str, dict[str, Any]] = {
    "exactly what was asked for": {},
    "a setting of 960": {"setting": (SENTENCE * 20)[:960]},
    "a conflict of 480": {"core_conflict": (SENTENCE * 20)[:480]},
    "six themes": {"themes": ["grief", "duty", "bargains", "listening", "weather", "silence"]},
    "a title of 70": {"title": "t" * 70},
    "a theme of one character": {"themes": ["爱", "死", "海"]},
    "a tone of 300": {"tone": (SENTENCE * 20)[:300]},
    "line feeds in a setting": {"setting": (SENTENCE * 6).strip() + "\n" + SENTENCE},
    "code points, not bytes": {"setting": "海" * 300, "core_conflict": "潮" * 150},
}
NARROWER: dict[str, dict[str, Any]] = {
    "a setting of 299": {"setting": (SENTENCE * 20)[:299]},
    "a conflict of 149": {"core_conflict": (SENTENCE * 20)[:149]},
    "two themes": {"themes": ["grief", "duty"]},
    "themes as one string": {"themes": "grief, duty, bargains"},
    "a theme that is no string": {"themes": ["grief", "duty", 3]},
    "an empty title": {"title": ""},
    "a blank tone": {"tone": "  "},
    "no genre": {"genre": None},
    "a setting of a million": {"setting": "x" * 1_000_000},
}


@pytest.mark.parametrize("why", WIDER)
def test_what_was_asked_for_is_valid_and_has_all_points_of_its_form(why: str) -> None:
    data = {**ASKED, **WIDER[why]}
    assert verify_text(json.dumps(data).encode()).problems == ()
    request = StoryRequest(task_type="blueprint", user_input="a lighthouse keeper")
    parts = {part.name: part for part in score(as_bytes(data), Context(request, 10.0)).parts}
    assert all(parts[name].points == parts[name].of for name in ("json", "schema", "fields", "lengths", "themes"))


@pytest.mark.parametrize("why", NARROWER)
def test_what_was_not_asked_for_is_not_valid(why: str) -> None:
    data = {key: value for key, value in {**ASKED, **NARROWER[why]}.items() if value is not None}
    assert not verify_text(json.dumps(data).encode()).valid


@pytest.mark.parametrize("around", ["Here it is: {}", "{} Enjoy!", "```json\n{}\n```", "[{}]"])
def test_nothing_stands_around_the_json(around: str) -> None:
    assert not verify_text(around.replace("{}", json.dumps(ASKED)).encode(), "blueprint").valid


def test_verify_says_valid_and_strict_names_the_narrow_bound(tmp_path: Path) -> None:
    story = tmp_path / "story.json"
    story.write_text(json.dumps({**ASKED, "title": "Tide", "setting": (SENTENCE * 20)[:960]}))
    wide = CliRunner().invoke(cli, ["verify", str(story)])
    assert wide.exit_code == 0 and "valid blueprint" in wide.output
    strict = CliRunner().invoke(cli, ["verify", str(story), "--strict"])
    assert strict.exit_code == 1 and "setting has 960 characters, not 300 to" in strict.output
