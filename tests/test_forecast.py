"""What a miner promises: how long each task takes here, told at start; what is late is shortened, then refused at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storyfi_lite import tasks
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import Busy
from storyfi_lite.grammar.schema import as_brief
from storyfi_lite.loaders import forecast
from storyfi_lite.loaders.base import Job
from storyfi_lite.loaders.forecast import Length, Pace, in_words
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator.verify import verify
from tests.answers import as_bytes, header
from tests.stories import example, request_for

FAST = Pace(1000.0, 100.0, {"en": 0.3, "zh": 0.8})


def test_a_length_counts_texts_and_what_stands_around_them() -> None:
    length = Length.of(tasks.get("blueprint").schema_of(request_for("blueprint")))
    assert length.shortest == 2 + 2 + 300 + 150 + 3 * 2 + 2 + 2
    assert length.longest == 60 + 40 + 520 + 200 + 5 * 30 + 60 + 80
    assert forecast.seconds(FAST, 500, replace(length, literal=400), 0.0, 0.5) == pytest.approx(0.66 + 464 * 0.5 / 100)


def test_the_pace_follows_the_answers() -> None:
    pace = FAST
    for _ in range(20):
        pace = pace.after(900, 30.0, "zh", 600)
    assert pace.tokens_per_s == pytest.approx(30, rel=0.01)
    assert pace.tokens_a_char == {"en": 0.3, "zh": pytest.approx(1.5, rel=0.01)}


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_brief_answer_is_one_that_the_whole_grammar_writes_too(task: str) -> None:
    request = request_for(task)
    whole, brief = tasks.get(task).constraint(request), tasks.get(task).constraint(request, brief=True)
    for longest in (False, True):
        assert whole.check_data(example(brief.schema, longest=longest)).canonical
    assert Length.of(brief.schema).longest < Length.of(whole.schema).longest
    assert Length.of(brief.schema).shortest == Length.of(whole.schema).shortest
    assert as_brief(brief.schema) == brief.schema and brief.sha256 != whole.sha256
    assert tasks.get(task).constraint_named(request, brief.sha256) is brief
    assert tasks.get(task).constraint_named(request, "0" * 64) is None


def test_a_brief_answer_is_as_provable_as_a_whole_one() -> None:
    request = request_for("blueprint")
    brief = tasks.get("blueprint").constraint(request, brief=True)
    data = example(brief.schema)
    named = header(request, grammar_sha256=brief.sha256)
    assert verify(request, as_bytes(data, tokens=[1, 2], proof=named)).provable


def test_the_operator_reads_every_task_and_what_is_late() -> None:
    lines, late = in_words(
        {"blueprint": {"English": (12.2, 8.0), "Chinese": (33.0, 21.0)}, "story_arc": {"English": (80.0, 70.0)}}
    )
    assert lines == ["blueprint: about 12 s in English, 33 s in Chinese", "story_arc: about 80 s in English"]
    assert late[0] == "blueprint in Chinese is written at its shortest to be in time"
    assert "story_arc in English takes 70 s at its shortest and is refused (55 s)" in late


# --- on the real model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loader(small_model_path: Path) -> Iterator[LocalModelLoader]:
    model = LocalModel(small_model_path, "smollm2-135m", "Q4_1", "unlisted", 0.5)
    loader = LocalModelLoader(model, EngineSettings(n_ctx=4096, n_threads=1))
    loader.warm_up()
    yield loader
    loader.close()


def job(within_s: float, aim_s: float | None = 24.0, **fields: Any) -> Job:
    request = StoryRequest(task_type="blueprint", **{"user_input": forecast.EXAMPLES["English"], **fields})
    return Job(request, 3, time.monotonic() + within_s, aim_s=aim_s)


def test_the_warm_up_knows_every_task_in_both_languages(loader: LocalModelLoader) -> None:
    found = loader.forecasts()
    assert list(found) == list(tasks.TASKS) and all(list(by) == ["English", "Chinese"] for by in found.values())
    assert all(0 < least_s < usual_s for by in found.values() for usual_s, least_s in by.values())
    assert found["story_arc"]["Chinese"] > found["blueprint"]["Chinese"] > found["blueprint"]["English"]


def test_what_is_late_is_shortened_and_then_refused_at_once(
    loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loader._pace is not None
    request = job(55).request
    brief = tasks.get("blueprint").constraint(request, brief=True)
    # A machine on which the usual blueprint takes 40 s; the engine itself is as fast as ever.
    slow = replace(loader._pace, tokens_per_s=loader._pace.tokens_per_s * loader._seconds(request) / 40)
    monkeypatch.setattr(loader, "_pace", slow)
    answer = loader.submit(job(55)).result()
    assert answer.proof is not None and answer.proof.grammar_sha256 == brief.sha256
    assert brief.check(answer.text, strict=True).valid
    asked = time.monotonic()
    with pytest.raises(Busy, match=r"blueprint takes \d+ s on this machine, 10 s are left"):
        monkeypatch.setattr(loader, "_pace", slow)
        loader.submit(job(10))
    assert time.monotonic() - asked < 0.5 and not loader.health().running


def test_who_names_a_budget_or_no_aim_gets_the_whole_grammar(loader: LocalModelLoader) -> None:
    assert not loader._is_brief(job(0.001, max_tokens=700))
    assert not loader._is_brief(job(600, aim_s=None))
