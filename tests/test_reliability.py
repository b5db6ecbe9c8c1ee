"""The whole miner, as a process, while the chain, the process itself or the API breaks; and over time. The same code
gives the figures of docs/reliability.md: scripts/chaos.py and scripts/soak.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from scripts import chaos, soak
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from tests.dendrite_process import PYTHON
from tests.miner_server import CLAIM

ROOT = Path(__file__).parent.parent
SOAK_MINUTES = 10
ANSWERED = 'storyfi_requests_total{outcome="answered",task="blueprint",wire="btauth"}'


def answered_all(figures: chaos.Figures) -> bool:
    return figures["lost"] == 0 and figures["answers"] > 0 and figures["chain_seen_again"]


def test_a_chain_that_is_cut_or_frozen_loses_no_answer() -> None:
    def cut_then_frozen(line: chaos.FaultyLine, miner: chaos.MineProcess) -> chaos.Figures:
        before = line.connections
        line.cut()
        assert chaos.wait_for(lambda: line.connections > before, 30)
        line.freeze()
        asked = miner.metrics()[ANSWERED]
        answered = chaos.wait_for(lambda: miner.metrics()[ANSWERED] > asked + 3, 30)
        line.thaw()
        return {"answered_while_frozen": answered}

    figures = chaos.during_fault(cut_then_frozen, quiet_s=0.5)
    assert answered_all(figures) and figures["answered_while_frozen"]


@pytest.mark.slow
def test_twenty_cuts() -> None:
    figures, _ = chaos.cut(20)
    assert answered_all(figures) and figures["connected_again"] == 20


@pytest.mark.slow
def test_five_minutes_frozen() -> None:
    figures, _ = chaos.freeze(300)
    assert answered_all(figures) and figures["chain_age_s"] >= 300


@pytest.mark.slow
@pytest.mark.parametrize("phase", chaos.PHASES)
def test_kill_9(phase: str) -> None:
    figures, good = chaos.kill([phase])
    assert good, figures
    accepted = figures[phase]["accepted_before"]
    assert accepted >= {"answering": 4, "burst": 3, "stopping": 1}.get(phase, 0)
    assert figures[phase]["replays_refused"] >= accepted


@pytest.mark.slow
def test_an_api_that_fails() -> None:
    figures, good = chaos.api(with_hangs=True)
    assert good, figures
    assert all(figures[f"once-{fault}"]["valid"] for fault in ("429", "500", "prose"))
    assert all(figures[f"once-{fault}"]["calls"] == 1 for fault in ("half-a-body", "wrong-json"))  # perhaps paid


@pytest.mark.slow
def test_soak() -> None:
    """Ten minutes of the real model over both wires."""
    figures = run_soak("--minutes", str(SOAK_MINUTES))
    assert figures["answers"] > 0


def test_a_short_soak_checks_every_answer() -> None:
    figures = run_soak("--minutes", "60", "--requests", "4", "--scripted", "0", "--dendrite-every", "0")
    assert (figures["answers"] >= 4, figures["invalid"], figures["lost"]) == (True, 0, 0)


def test_the_soak_counts_what_is_not_an_answer() -> None:
    """Not valid, turned away and lost are three things, and none of them is an answer."""
    outcomes = iter([response(b'{"title":"too short"}'), soak.NoAnswer(503), soak.NoAnswer(500)])

    def send(request: StoryRequest) -> StoryResponse:
        outcome: Any = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    run = soak.Soak(cast(chaos.MineProcess, None), seconds=1, most=1)
    request = StoryRequest(task_type="blueprint", user_input="a tale")
    assert [run._ask("btauth", send, request) for _ in range(3)] == [None] * 3
    record = run.record
    assert (record.answers, record.invalid.total(), record.turned_away.total(), record.lost.total()) == ([], 1, 1, 1)


def response(text: bytes) -> StoryResponse:
    return StoryResponse(
        output_data=json.loads(text),
        generation_time=0.1,
        miner_version="x",
        model_info=CLAIM.model_info,
        miner_mode=CLAIM.miner_mode,
        model_name=CLAIM.model_name,
        gpu_memory_gb=0.0,
    )


def run_soak(*options: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), *options]
    if not PYTHON.exists():
        command += ["--dendrite-every", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
