"""What a miner promises: how long each task takes here, told at start; what is late is shortened, then refused at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storyfi_lite import files, tasks
from storyfi_lite.engine.engine import Generation
from storyfi_lite.engine.model import Feed
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import Busy
from storyfi_lite.grammar.schema import as_brief, dump
from storyfi_lite.loaders import forecast, local
from storyfi_lite.loaders.base import Job
from storyfi_lite.loaders.forecast import Pace, Promises, in_words
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.placement import lengths, queue
from storyfi_lite.placement.lengths import Work
from storyfi_lite.placement.queue import Plan
from storyfi_lite.placement.traffic import Kind
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator.verify import verify
from tests.answers import as_bytes, header
from tests.stories import example, request_for

CHINESE, ENGLISH = Kind("blueprint", "zh", 1), Kind("blueprint", "en", 1)
FAST = Pace(queue.Pace(0.01, 0.005, 0.001), {"en": 0.3, "zh": 0.8})
WORK = Work(opening=100, bridges=0, whole=1000, brief=700, least=500)


def test_the_pace_follows_the_answers() -> None:
    pace = beside = FAST
    for _ in range(20):
        pace = pace.after(900, 30.0, CHINESE, 600)
        beside = beside.after(900, 30.0, CHINESE, 600, at_once=3)  # a step of three takes twice as long
    assert pace.queue.step_s == pytest.approx(1 / 30, rel=0.01)
    assert beside.queue.step_s == pytest.approx(1 / 60, rel=0.01)
    assert beside.queue.step_of(3) == pytest.approx(1 / 30, rel=0.01)
    assert pace.tokens_a_char == {"en": 0.3, "zh": pytest.approx(1.5 / lengths.factor(CHINESE), rel=0.01)}


def test_the_length_that_a_model_likes_follows_its_answers_kind_by_kind() -> None:
    usual = lengths.usual_chars(CHINESE)
    pace = FAST.after(900, 30.0, CHINESE, round(0.5 * usual))
    assert 0.5 < pace.share_of(CHINESE) < 1 and pace.share_of(ENGLISH) == 1
    for _ in range(20):
        pace = pace.after(900, 30.0, CHINESE, round(0.5 * usual))
    assert pace.share_of(CHINESE) == pytest.approx(0.5, abs=0.02)
    assert pace.after(400, 30.0, CHINESE, None).shares == pace.shares  # one that was made shorter tells nothing of it
    assert lengths.usual_chars(Kind("chapters", "zh", 3)) == 3 * lengths.usual_chars(Kind("chapters", "zh", 1))


def test_an_input_tells_of_its_answer_only_where_the_vocabulary_hardly_knows_its_language() -> None:
    pace = Pace(queue.Pace(0.01, 0.0, 0.0), {"en": 0.2, "zh": 0.7})
    assert pace.tokens_a_char_of("a lighthouse keeper hears the sea", 9) == 0.2  # 0.27: short words, no more
    assert pace.tokens_a_char_of("นักทำแผนที่ผู้วาดเมือง", 22) == 1.0


def test_what_a_token_looks_back_on_is_no_slower_machine() -> None:
    pace = Pace(queue.Pace(0.01, 0.005, 0.001, cell_s=1e-5), {"en": 0.3, "zh": 0.8})
    assert pace.after(900, 900 * 0.02, ENGLISH, 3000, cells=1000).queue == pace.queue
    assert (
        pace.after(900, 900 * 0.02, ENGLISH, None, cells=1000) == pace
    )  # a brief answer says nothing of a whole one's characters
    assert pace.after(900, 900 * 0.04, ENGLISH, 3000, cells=1000).queue.cell_s == pytest.approx(1.3e-5)


def test_an_answer_knows_how_many_were_written_beside_it() -> None:
    """Two at once for ten seconds, then the second alone for ten: it was not alone all the time."""
    now_s = [0.0]
    promises, futures = Promises(2, clock=lambda: now_s[0], pace=FAST), (Future[object](), Future[object]())
    first, second = (promises.keep(future, queue.plan((), WORK, FAST.queue, 2)) for future in futures)
    now_s[0] = 10.0
    futures[0].set_result(None)
    assert first() == pytest.approx(2.0)
    now_s[0] = 20.0
    futures[1].set_result(None)
    assert second() == pytest.approx(1.5)


def test_what_is_in_hand_makes_the_next_shorter_and_then_refused() -> None:
    promises = Promises(1, clock=lambda: 0.0, pace=FAST)
    asked = Job(request_for("blueprint"), 1, 55.0, aim_s=24.0)
    futures: list[Future[object]] = []
    taken: list[tuple[bool, int] | None] = []
    for _ in range(5):
        try:
            decided = promises.plan(asked, WORK)
        except Busy as error:
            assert "blueprint takes" in str(error) and "55 s are left" in str(error)
            taken.append(None)
            continue
        assert decided is not None
        futures.append(Future())
        promises.keep(futures[-1], decided)
        taken.append((decided.brief, decided.tokens))
    assert taken == [(False, 1000), (False, 1000), (True, 500), (True, 500), (True, 500)] or taken[-1] is None
    for future in futures:
        future.set_result(None)
    assert promises.plan(asked, WORK) == queue.plan((), WORK, FAST.queue, 1, 55.0, 24.0)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_brief_answer_is_one_that_the_whole_grammar_writes_too(task: str) -> None:
    request = request_for(task)
    whole, brief = tasks.get(task).constraint(request), tasks.get(task).constraint(request, brief=True)
    for longest in (False, True):
        assert whole.check_data(example(brief.schema, longest=longest)).canonical
    assert len(dump(example(brief.schema, longest=True))) < len(dump(example(whole.schema, longest=True)))
    assert len(dump(example(brief.schema))) <= len(dump(example(whole.schema)))
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
    loader = LocalModelLoader(model, EngineSettings(n_ctx=4096, n_slots=2, n_threads=1))
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


def test_a_model_that_likes_longer_answers_takes_longer(
    loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forecasts(shares: dict[str, float]) -> dict[str, dict[str, tuple[float, float]]]:
        assert loader.promises.pace is not None
        monkeypatch.setattr(loader.promises, "pace", replace(loader.promises.pace, shares=shares))
        return loader.forecasts()

    before, after = forecasts({}), forecasts({"blueprint en": 1.5})
    assert after["blueprint"]["English"][0] > 1.3 * before["blueprint"]["English"][0]
    assert after["blueprint"]["English"][1] == before["blueprint"]["English"][1]  # its shortest is no longer
    assert after["story_arc"] == before["story_arc"]


def test_what_is_late_is_shortened_and_then_refused_at_once(
    loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = loader.promises.pace
    assert pace is not None
    request = job(55).request
    brief = tasks.get("blueprint").constraint(request, brief=True)
    # A machine on which the usual blueprint takes 40 s; the engine itself is as fast as ever.
    usual_s, _ = loader.forecasts()["blueprint"]["English"]
    slow = replace(pace, queue=pace.queue.times(40 / usual_s))
    monkeypatch.setattr(loader.promises, "pace", slow)
    answer = loader.submit(job(600)).result()
    assert answer.proof is not None and answer.proof.grammar_sha256 == brief.sha256
    assert brief.check(answer.text, strict=True).valid
    asked = time.monotonic()
    with pytest.raises(Busy, match=r"blueprint takes \d+ s on this machine, 10 s are left"):
        monkeypatch.setattr(loader.promises, "pace", slow)
        loader.submit(job(10))
    assert time.monotonic() - asked < 0.5 and not loader.health().running


def test_who_names_a_budget_or_no_aim_gets_the_whole_grammar(loader: LocalModelLoader) -> None:
    def decided(one: Job) -> Plan | None:
        return loader.promises.plan(one, loader._work(one.request))

    assert decided(job(0.001, max_tokens=700)) is None
    unhurried = decided(job(600, aim_s=None))
    assert unhurried is not None and not unhurried.brief


def test_the_warm_up_knows_what_several_at_once_cost(loader: LocalModelLoader) -> None:
    """Measured in steps of llama.cpp alone; the engine is as good as new afterwards."""
    pace = loader.promises.pace
    assert pace is not None and 0 <= pace.queue.more_s < 3 * pace.queue.step_s
    assert not loader.health().running


def test_what_is_read_between_turns_is_no_slower_step(
    loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = loader.promises.pace
    assert before is not None
    monkeypatch.setattr(loader.promises, "pace", before)  # and is so again for the next test

    def as_promised(done: Generation) -> float:
        opening, written = len(done.conversation.opening), len(done.tokens)
        work = Work(opening, len(done.conversation) - opening, written, written, written)
        return before.queue.alone(work, written) - opening * before.queue.prompt_token_s

    monkeypatch.setattr(local, "_writing_s", as_promised)
    loader.submit(job(600, max_tokens=700)).result()
    assert loader.promises.pace is not None and loader.promises.pace.queue.step_s == pytest.approx(before.queue.step_s)


def test_the_lengths_that_were_learnt_are_known_after_a_restart(
    loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loader.promises.pace is not None
    # and the loader's own is there again for the next test
    monkeypatch.setattr(loader.promises, "pace", replace(loader.promises.pace, shares={}))
    loader.submit(job(600, max_tokens=700)).result()
    assert not list(tmp_path.rglob("*.json"))  # whoever names a budget learns nothing of usual lengths
    loader.submit(job(600, aim_s=None)).result()
    assert list(loader.promises.pace.shares) == ["blueprint en"]
    again = LocalModelLoader(loader._model, EngineSettings(n_ctx=4096, n_threads=1))
    again.warm_up()
    assert again.promises.pace is not None and again.promises.pace.shares == loader.promises.pace.shares
    for damaged in (["blueprint en"], {"blueprint en": "long"}, {"blueprint en": -1.0}, 3):
        files.keep("lengths.json", again._kept_as, damaged)
        assert again._learnt() == {}
    again.close()


@dataclass
class Machine:
    """Takes the time on a clock of its own that a step of a made-up machine takes, each but the third a fifth longer; reads a prompt in
    no more time than it is told."""

    step_s: float
    more_s: float
    cell_s: float
    prompt_token_s: float
    n_batch: int = 512
    now_s: float = 0.0
    steps: int = 0

    def decode(self, feeds: list[Feed]) -> None:
        if len(feeds[0].tokens) > 1:
            self.now_s += self.prompt_token_s * len(feeds[0].tokens)
            return
        self.steps += 1
        cells = sum(feed.start for feed in feeds)
        step_s = self.step_s + self.more_s * (len(feeds) - 1) + self.cell_s * cells
        self.now_s += step_s * (1.0 if self.steps % 3 == 0 else 1.2)

    def forget(self, slot: int) -> bool:
        return True


def measured(machine: Machine, loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch) -> tuple[queue.Pace, float]:
    monkeypatch.setattr(loader.engine, "borrowed", lambda: nullcontext(machine))
    monkeypatch.setattr(local, "time", SimpleNamespace(perf_counter=lambda: machine.now_s))
    return loader._llama_pace()


def test_what_a_step_takes_is_told_by_the_least_and_the_usual_one(
    loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n_slots in (1, 2, 4):
        monkeypatch.setattr(loader, "_settings", EngineSettings(n_slots=n_slots))
        pace, usual = measured(Machine(0.01, 0.004, 1.5e-5, 0.002), loader, monkeypatch)
        told = pace.step_s, pace.more_s, pace.cell_s, pace.prompt_token_s, usual
        more_s = 0.004 if n_slots > 1 else 0.0
        assert told == pytest.approx((0.01, more_s, 1.5e-5, 0.002, 1.2), rel=0.1)


def test_a_slow_machine_measures_no_longer_than_it_may(
    loader: LocalModelLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Machine(0.5, 0.0, 1.5e-5, 0.1)
    pace, _ = measured(slow, loader, monkeypatch)
    assert pace.cell_s == 0.0 and pace.prompt_token_s == pytest.approx(0.1)
    assert slow.now_s < 3 * 32 * 0.1 + 3 * 8 * 0.7
