"""What validators ask, how long it takes and what it earns: the files, the tokens of a task, the queue, the hour that is played."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyfi_lite.cli import cli
from storyfi_lite.errors import BadInput
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.miner import requests
from storyfi_lite.models.registry import SHIPPED, load_registry
from storyfi_lite.options import ModelOptions
from storyfi_lite.placement import catalog, lengths, traffic
from storyfi_lite.placement.catalog import Catalog
from storyfi_lite.placement.lengths import Work
from storyfi_lite.placement.plan import place
from storyfi_lite.placement.queue import Job, Pace, plan, run
from storyfi_lite.placement.reward import share_of_points
from storyfi_lite.placement.simulate import SCALES, expected, simulate
from storyfi_lite.placement.traffic import Kind
from storyfi_lite.protocol.limits import AIM_S, DEADLINE_S
from tests.stories import request_for

LLAMA_3, LLAMA_2 = lengths.tokens_a_char(128_256), lengths.tokens_a_char(32_000)
WORK = Work(opening=300, bridges=50, whole=1000, brief=700, least=500)
FAST = Pace(0.01, 0.001, 0.0005)


# --- traffic -------------------------------------------------------------------------------------------------------


def test_the_network_s_figures_add_up() -> None:
    asked = traffic.read(traffic.NETWORK)
    assert asked.tasks == {"blueprint": 0.4, "characters": 0.25, "story_arc": 0.25, "chapters": 0.1}
    assert asked.languages["zh"] > 0.5 and sum(asked.kinds.values()) == pytest.approx(1)


def test_made_up_requests_are_the_same_for_a_seed_and_have_the_shares() -> None:
    asked = traffic.read(traffic.NETWORK)
    once, again, other = (asked.arrivals(400 * 3600, seed) for seed in (1, 1, 2))
    assert once == again != other
    groups = 400 * 3600 / asked.gap_s
    assert len(once) == pytest.approx(groups * sum(n * share for n, share in asked.together.items()), rel=0.03)
    assert sum(one.kind.task == "chapters" for one in once) / len(once) == pytest.approx(0.1, abs=0.01)


def test_a_log_s_shares_are_counted_and_its_requests_played_again(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    rows = [
        (1000.0, "blueprint", "zh"),
        (1000.4, "blueprint", "zh"),
        (1060.0, "chapters", "en"),
        (1120.0, "blueprint", "zh"),
    ]
    log.write_text("".join(json.dumps({"at": at, "task": task, "language": lang}) + "\n" for at, task, lang in rows))
    found = traffic.read(log)
    assert found.tasks == {"blueprint": pytest.approx(2 / 3), "chapters": pytest.approx(1 / 3)}
    assert found.together == {2: pytest.approx(1 / 3), 1: pytest.approx(2 / 3)} and found.gap_s == 60
    assert [arrival.at_s for arrival in found.arrivals(100, seed=7)] == pytest.approx([0, 0.4, 60])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks: {blueprint: 1}", "it must have chapters, gap_s"),
        ("- 1", "it must have"),
        ("tasks: [", "is no traffic"),
        ('{"at": 1, "task": "poem", "language": "zh"}', "requests:1 names a task"),
        ('{"at": 1}', "requests:1 is no line of a miner's log"),
        ('{"at": 1, "task": "blueprint", "language": "zh"}', "holds 1 groups"),
    ],
)
def test_traffic_that_is_none_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "requests"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        traffic.read(path)


def test_a_mistake_in_a_traffic_file_is_no_models_fault(tmp_path: Path) -> None:
    path = tmp_path / "traffic.yaml"
    path.write_text("[]")
    with pytest.raises(BadInput, match=r"\A.*is no traffic.*\Z"):
        place(
            load_registry(SHIPPED),
            Hardware((), 16 << 30, 16 << 30, 4, 10**12),
            ModelOptions(traffic=path),
            Catalog(),
        )


def test_shares_must_add_up(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(traffic.NETWORK.read_text().replace("zh: 0.90", "zh: 0.40"))
    with pytest.raises(BadInput, match=r"languages add up to 0\.5, not to 1"):
        traffic.read(path)


# --- tokens of a task ----------------------------------------------------------------------------------------------


def test_chinese_takes_llama_2_s_vocabulary_the_most() -> None:
    qwen, gemma, phi = (lengths.tokens_a_char(size)["zh"] for size in (152_064, 256_000, 32_064))
    assert qwen < gemma < LLAMA_3["zh"] < phi == LLAMA_2["zh"] and phi > 1.5 * LLAMA_3["zh"]
    assert LLAMA_2["en"] == pytest.approx(LLAMA_3["en"], rel=0.2)


@pytest.mark.parametrize("language", lengths.LANGUAGES)
def test_every_task_has_its_tokens(language: str) -> None:
    for task in traffic.read(traffic.NETWORK).tasks:
        one = lengths.work(Kind(task, language), LLAMA_3)  # type: ignore[arg-type]
        assert 0 < one.least <= one.brief < one.whole and one.opening > 0 and one.bridges > 0
    three = lengths.work(Kind("chapters", language, 3), LLAMA_3)  # type: ignore[arg-type]
    assert three.whole == pytest.approx(3 * lengths.work(Kind("chapters", language), LLAMA_3).whole, rel=0.01)  # type: ignore[arg-type]


def test_a_file_that_is_here_is_asked_itself(small_model_path: Path) -> None:
    found = catalog.tokens_a_char(small_model_path)
    assert found is not None and found == pytest.approx(lengths.tokens_a_char(49_152), abs=1e-3)
    assert catalog.tokens_a_char(Path(__file__)) is None


def test_a_context_that_is_too_short_is_no_place_for_an_answer() -> None:
    assert WORK.within(4096) == WORK
    assert WORK.within(1000) == Work(300, 50, 650, 650, 500) and WORK.within(849) is None


# --- the queue -----------------------------------------------------------------------------------------------------


def test_what_would_be_late_is_shortened_before_it_is_refused() -> None:
    whole = plan((), WORK, FAST, 1)
    assert whole is not None and not whole.brief and whole.ends_in_s == pytest.approx(350 * 0.0005 + 10)
    cut = plan((15.0,), WORK, FAST, 1)  # 9 s are left for it
    assert cut is not None and cut.brief and cut.tokens == 700
    least = plan((40.0,), WORK, FAST, 1)
    assert least is not None and least.tokens == WORK.least and least.ends_in_s > AIM_S
    assert plan((50.0,), WORK, FAST, 1) is None and plan((50.0,), WORK, FAST, 2) is not None
    in_time, overdue = plan((0.0, 12.0), WORK, FAST, 1), plan((-5.0, 12.0), WORK, FAST, 1)
    assert in_time is not None and overdue is not None and overdue.most == in_time.most - 500  # 5 s later


def test_answers_at_once_share_steps_and_others_wait() -> None:
    jobs = [Job(0.0, WORK, 0) for _ in range(3)]
    run(jobs, FAST, n_slots=2)
    two, three = jobs[1].seconds, jobs[2].seconds
    assert jobs[0].seconds == pytest.approx(two) == pytest.approx((300 + 2 * 50) * 0.0005 + 1000 * 0.011)
    assert three is not None and two is not None and three > two + 5


def test_a_step_takes_longer_the_more_its_answers_look_back_on() -> None:
    back = Pace(0.005, 0.0005, 0.0005, cell_s=5e-6)
    alone, beside = Job(0.0, WORK, 0), [Job(0.0, WORK, 0) for _ in range(2)]
    run([alone], back, n_slots=2)
    run(beside, back, n_slots=2)
    cells = 300 + (50 + 1000) / 2
    assert alone.seconds == pytest.approx(350 * 0.0005 + 1000 * (0.005 + cells * 5e-6)) == back.alone(WORK, 1000)
    assert beside[1].seconds == pytest.approx(400 * 0.0005 + 1000 * (0.0055 + 2 * cells * 5e-6))


def test_nothing_is_answered_after_the_deadline() -> None:
    slow = Pace(0.05, 0.05, 0.01)
    jobs = [Job(0.0, WORK, 0) for _ in range(4)]
    run(jobs, slow, n_slots=4)
    assert all(job.refused or job.seconds is None or job.seconds <= DEADLINE_S for job in jobs)
    assert any(job.refused for job in jobs)


def test_points_fall_with_time_and_end_with_the_answer() -> None:
    assert [share_of_points(seconds) for seconds in (1.0, 30.0, 45.0, None)] == pytest.approx([1.0, 1.0, 0.95, 0.0])


# --- what is expected, and hours of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_slots", [1, 2, 4])
@pytest.mark.parametrize("step_s", [0.008, 0.02, 0.04, 0.08])
def test_a_few_hundred_groups_earn_what_many_hours_do(step_s: float, n_slots: int) -> None:
    asked, pace = traffic.read(traffic.NETWORK), Pace(step_s, 0.1 * step_s, 0.05 * step_s)
    computed = expected(pace, n_slots, 8192, 1.3, asked, LLAMA_3)
    hours = asked.arrivals(60 * 3600, 5)
    played = [simulate(hours, pace.times(scale), n_slots, 8192, 1.3, LLAMA_3, 5).earnings.reward for scale in SCALES]
    assert computed.reward == pytest.approx(sum(played) / 3, rel=0.03)


def test_a_log_of_crowds_is_planned_for_as_fast_as_any() -> None:
    crowds = replace(traffic.read(traffic.NETWORK), together={64: 1.0})
    assert len(crowds.sample) == len(traffic.read(traffic.NETWORK).sample) == traffic.SAMPLE_REQUESTS


def test_a_finer_answer_to_more_at_once() -> None:
    one, four = (
        expected(Pace(0.03, 0.002, 0.001), n, 8192, 1.0, traffic.read(traffic.NETWORK), LLAMA_3) for n in (1, 4)
    )
    assert four.reward > one.reward and four.late < one.late


def test_simulate_says_who_was_answered_and_is_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"gpus": [{"name": "RTX 3090", "total_gb": 24}], "ram_gb": 64, "cores": 8}')
    command = ["simulate", "--hardware", str(tmp_path / "card.json"), "--hours", "6", "--json"]
    first, again = (json.loads(CliRunner().invoke(cli, command).output) for _ in range(2))
    assert first == again and first["layouts"][0]["model"] == "yi-34b"
    for row in first["layouts"]:
        assert row["answered"] + row["late"] + row["refused"] == first["requests"] > 200
    assert first["layouts"][0]["against_best"] >= 0.98
    printed = CliRunner().invoke(cli, command[:-1]).output
    assert "first what would be loaded" in printed and "of best" in printed


# --- the miner's own log -------------------------------------------------------------------------------------------


def test_a_miner_s_log_is_traffic_and_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_LINES", 10)
    path = tmp_path / "key" / "requests.jsonl"
    kept = requests.RequestLog(path)
    secret = request_for("blueprint", "灯塔守护人的秘密")
    for number in range(25):
        kept.add(secret, 9.0, "answered", tokens=number)
    assert 10 <= len(path.read_text().splitlines()) <= 20
    path.write_text(path.read_text() + '{"at": 1')  # a stop in the middle of a line
    requests.RequestLog(path).add(request_for("chapters", "a lighthouse", chapter_ids=[1, 2]), 60.0, "DeadlineExceeded")
    *_, before, last = map(json.loads, path.read_text().splitlines())
    assert (before["tokens"], before["language"], last["chapters"], last["outcome"]) == (
        24,
        "zh",
        2,
        "DeadlineExceeded",
    )
    assert "灯塔" not in path.read_text() and "lighthouse" not in path.read_text()
    found = traffic.read(path)
    assert set(found.tasks) == {"blueprint", "chapters"} and found.chapters == {2: 1.0}


def test_a_log_that_cannot_be_written_costs_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = requests.RequestLog(tmp_path / "requests.jsonl")
    (tmp_path / "requests.jsonl").mkdir()
    for _ in range(2):
        kept.add(request_for("blueprint"), 1.0, "answered")
    assert caplog.text.count("requests are not kept") == 1
