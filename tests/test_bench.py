"""`storyfi-lite bench` on a real model, with short answers in place of blueprints. Speeds are only looked at, never judged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyfi_lite import bench
from storyfi_lite.cli import cli
from storyfi_lite.engine.engine import Engine, EngineJob
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.errors import EngineError
from storyfi_lite.grammar.prose import Words
from storyfi_lite.grammar.script import one_turn
from tests.tiny_gguf import tiny_gguf

ROOT = Path(__file__).parent.parent
SHORT = one_turn("A ship.", {"content": Words(80, 120)})


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(seed: int) -> EngineJob:
        return EngineJob(SHORT, SamplingParams(seed), time.monotonic() + 120)

    monkeypatch.setattr(bench, "job", job)


@pytest.fixture(scope="module")
def engine(small_model_path: Path) -> Iterator[Engine]:
    with Engine(small_model_path, EngineSettings(n_ctx=512, n_slots=2, n_threads=1)) as engine:
        yield engine


def test_the_bare_context_is_lent_only_while_nothing_runs_and_answers_are_the_same_afterwards(engine: Engine) -> None:
    before = engine.submit(bench.job(3)).result().text
    assert bench.free_speed(engine, n_tokens=4) > 0
    assert engine.submit(bench.job(3)).result().text == before
    with bench.writing(engine, 2, seed=5), pytest.raises(EngineError, match="in use"), engine.borrowed():
        pass


def test_several_at_once_are_whole_answers_with_the_networks_points_for_the_slowest(engine: Engine) -> None:
    heard: list[int] = []
    row = bench.together(engine, 2, progress=heard.append)
    assert row.slots == 2 and row.tokens_per_s > 0
    assert row.time_points == bench.time_points(row.blueprint_s)
    assert heard == sorted(heard)
    assert engine.health().running == 0


def test_slot_counts_double_up_to_what_the_engine_has() -> None:
    assert bench.slot_counts(1) == [1]
    assert bench.slot_counts(6) == [1, 2, 4, 6]
    assert bench.slot_counts(16) == [1, 2, 4, 8, 16]


def test_the_networks_points_for_time_fall_from_30_to_60_seconds() -> None:
    assert [bench.time_points(seconds) for seconds in (0, 30, 45, 60, 99)] == [10, 10, 5, 0, 0]


def arguments(path: Path) -> list[str]:
    return ["bench", "--model.path", str(path), "--threads", "1", "--ctx", "512"]


def test_the_command_shows_free_and_constrained_speed(small_model_path: Path) -> None:
    done = CliRunner().invoke(cli, [*arguments(small_model_path), "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["complete"] and found["model"] == "smollm2-135m"
    assert found["free_tokens_per_s"] > 0 and found["together"][0]["tokens_per_s"] > 0
    assert "1 at once" in done.stderr


def test_ctrl_c_shows_what_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "storyfi_lite", *arguments(tiny_gguf(tmp_path / "tiny.gguf"))[:-2]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("free: "):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "1, free" in out and "measured so far" in err


@pytest.mark.slow
def test_short_answers_that_were_written_elsewhere_are_replayed_with_their_margins(
    small_model_path: Path, tmp_path: Path
) -> None:
    """A file of `bench_proof.py write`, as a GPU's would be; here the writer is this CPU, so no margin is large."""
    kept = tmp_path / "elsewhere.jsonl"
    asked = ["--model", str(small_model_path), "--threads", "1", "--characters", "60", "--answers", "2", "--slots", "2"]

    def run(*arguments: str) -> str:
        command = [sys.executable, str(ROOT / "scripts" / "bench_proof.py"), *arguments, *asked]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout

    run("write", "--keep", str(kept))
    row = json.loads(run("drift", "--written", str(kept)).splitlines()[-1])["elsewhere"]
    assert sum(row["verdicts"]) == 2 and row["verdicts"][1] == 0
    assert 10 < row["positions"] < 100
    assert 0 <= row["mean_margin"] <= row["p99_margin"] <= row["max_margin"] < 0.5
