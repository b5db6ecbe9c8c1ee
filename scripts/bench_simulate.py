#!/usr/bin/env python3
"""The same requests to a real miner and to the simulator: do both answer, shorten, refuse and earn alike?

    scripts/bench_simulate.py FILE.gguf                       nine minutes, in English, every 10 s on average; one thread
    scripts/bench_simulate.py FILE.gguf --gap 20 --chinese 0.9 --threads 2

It starts `storyfi-lite mine --network dev` with that file, and plays made-up traffic: the network's tasks and its shares of validators
that ask in the same block, each signed by a validator of its own and sent over loopback at its time. `simulate` plays the same
requests with the layout and the pace that the miner told after its warm-up. It prints a table and one JSON line. Nothing else may run
on the machine meanwhile: seconds are a clock's."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))

from storyfi_lite import tasks
from storyfi_lite.devchain.substrate import dev_network
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.loaders.base import Job
from storyfi_lite.loaders.forecast import EXAMPLES
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.placement import traffic
from storyfi_lite.placement.catalog import tokens_a_char
from storyfi_lite.placement.queue import Pace
from storyfi_lite.placement.reward import earnings
from storyfi_lite.placement.simulate import Outcome, simulate
from storyfi_lite.placement.traffic import Arrival
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.tasks.base import Language, language_of
from tests.mine_process import MineProcess, start

SEEDS = range(20)  # of the lengths that the simulator gives its answers
INPUTS: dict[Language, str] = {language_of(text): text for text in EXAMPLES.values()}
_LAYOUT = re.compile(r"(\d+) tokens, (\d+) slot\(s\)")
_PACE = re.compile(r"measured pace: ({.*})")
_REFUSED = 503


def stages_of(path: Path, language: Language) -> dict[str, Any]:
    """A story of this model, task after task: what a request of a later stage carries."""
    loader = LocalModelLoader(
        LocalModel(path, path.stem.lower(), "unknown", "unlisted", 1.0), EngineSettings(n_ctx=8192)
    )
    stages: dict[str, Any] = {}
    for name in tasks.TASKS:
        if name != "chapters":
            request = StoryRequest.model_validate({"task_type": name, "user_input": INPUTS[language], **stages})
            stages[name] = json.loads(loader.submit(Job(request, 1, time.monotonic() + 600)).result().text)
    loader.close()
    return stages


def requests_of(arrivals: Sequence[Arrival], stages: dict[Language, dict[str, Any]]) -> list[StoryRequest]:
    """Those of one block ask for the same, and each block for something else."""
    found = []
    for arrival in arrivals:
        block = next(at for at, one in enumerate(arrivals) if one.at_s == arrival.at_s)
        kind = arrival.kind
        needed = {name: stages[kind.language][name] for name in tasks.get(kind.task).needs if name != "chapter_ids"}
        chapters = {"chapter_ids": list(range(1, kind.chapters + 1))} if kind.task == "chapters" else {}
        text = f"{block}. {INPUTS[kind.language]}"
        found.append(StoryRequest.model_validate({"task_type": kind.task, "user_input": text, **needed, **chapters}))
    return found


def play(miner: MineProcess, arrivals: Sequence[Arrival], requests: Sequence[StoryRequest]) -> Outcome:
    """Send each request at its time, those of one block by different validators, and see what becomes of it."""
    begin_s = time.monotonic() + 1

    def ask(number: int) -> tuple[float | None, bool, bool]:
        arrival, request = arrivals[number], requests[number]
        time.sleep(max(0.0, begin_s + arrival.at_s - time.monotonic()))
        asker = sum(other.at_s == arrival.at_s for other in arrivals[:number])
        sent_s = time.monotonic()
        try:
            answer = miner.post(miner.sign(request, miner.net.validators[asker]))
        except httpx.TimeoutException:
            return None, False, False
        seconds = time.monotonic() - sent_s
        if answer.status_code != 200:
            return None, answer.status_code == _REFUSED, False
        proof = StoryResponse.model_validate_json(answer.content).proof
        brief = tasks.get(request.task_type).constraint(request, brief=True)
        return seconds, False, proof is not None and proof.grammar_sha256 == brief.sha256

    with ThreadPoolExecutor(len(arrivals)) as pool:
        done = list(pool.map(ask, range(len(arrivals))))
    answered = sum(seconds is not None for seconds, _, _ in done)
    refused = sum(turned_away for _, turned_away, _ in done)
    return Outcome(
        answered=answered,
        shortened=sum(shortened for _, _, shortened in done),
        late=len(done) - answered - refused,
        refused=refused,
        earnings=earnings(1.0, [seconds for seconds, _, _ in done], {}),
    )


def figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The mean of several outcomes. `time_points`: of 10, of the answers alone."""
    rows = []
    for one in outcomes:
        score, requests = one.earnings.score, one.answered + one.late + one.refused
        points = (score * requests / max(one.answered, 1) - 0.9) * 100
        rows.append({"answered": one.answered, "shortened": one.shortened, "late": one.late, "refused": one.refused,
                     "p95_s": min(one.earnings.p95_s, 60.0), "time_points": points, "reward": score})  # fmt: skip
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--gap", type=float, default=10.0, help="mean seconds from one block with requests to the next")
    parser.add_argument("--chinese", type=float, default=0.0, help="share of the requests that are in Chinese")
    parser.add_argument("--threads", type=int, default=1, help="of the miner")
    parser.add_argument("--seed", type=int, default=1, help="of the requests")
    given = parser.parse_args()
    shares: dict[Language, float] = {"en": 1 - given.chinese, "zh": given.chinese}
    languages = {language: share for language, share in shares.items() if share}
    asked = replace(traffic.read(traffic.NETWORK), gap_s=given.gap, languages=languages)
    arrivals = asked.arrivals(given.minutes * 60, given.seed)
    requests = requests_of(arrivals, {language: stages_of(given.file, language) for language in languages})
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        mix = Path(scratch) / "traffic.yaml"
        names = ("tasks", "languages", "chapters", "together")
        mix.write_text(yaml.safe_dump({**{name: dict(getattr(asked, name)) for name in names}, "gap_s": given.gap}))
        with dev_network(Path(scratch) / "chain", validators=max(asked.together)) as net:
            flags = ["--model.path", str(given.file), "--threads", str(given.threads), "--traffic", str(mix)]
            miner = start(net, Path(scratch), flags)
            try:
                miner.wait_until_ready()
                layout, told = _LAYOUT.search(miner.log), _PACE.search(miner.log)
                assert layout and told, miner.log
                real = figures([play(miner, arrivals, requests)])
            finally:
                miner.kill()
    pace = Pace(**json.loads(told[1]))
    n_ctx, n_slots = map(int, layout.groups())
    a_char = tokens_a_char(given.file)
    assert a_char
    simulated = figures([simulate(arrivals, pace, n_slots, n_ctx, 1.0, a_char, seed) for seed in SEEDS])
    print(f"{given.file.name}, {n_slots} at once, {given.threads} thread(s), {told[0]}; {len(arrivals)} requests")
    print(f"| | {' | '.join(real)} |\n{'|---' * (len(real) + 1)}|")
    for name, row in (("miner", real), ("simulator", simulated)):
        print(f"| {name} | {' | '.join(f'{value:.3g}' for value in row.values())} |")
    print(json.dumps({"requests": len(arrivals), "n_slots": n_slots, "miner": real, "simulator": simulated}))


if __name__ == "__main__":
    main()
