#!/usr/bin/env python3
"""What the whole miner does when something breaks, on loopback: the chain, the process, the API.

    python scripts/chaos.py cut                    the chain's connection is cut 20 times
    python scripts/chaos.py freeze --seconds 300   it neither answers nor closes for five minutes
    python scripts/chaos.py kill                   kill -9 in every phase, then a new start and every request again
    python scripts/chaos.py api                    an API server that answers 429, 500, half a body, nothing, …

Each starts `storyfi-lite mine` as a process, with a scripted model (tests/scripted_model.py), and prints a table
and one JSON line. Exit 1 if an answer was lost, delayed or not valid, or a request was answered twice."""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from storyfi_lite.devchain.substrate import DevNetwork, dev_network
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator.verify import verify
from tests import openai_server
from tests.api_server import Step
from tests.chain_faults import FaultyLine
from tests.mine_process import MAIN, OFTEN, MineProcess, Sent, small_model_flags, start
from tests.scripted_model import ScriptedModel, scripted_model
from tests.small_model import small_model

MAX_SECONDS = 3_600
MAX_CUTS = 1_000
DEADLINE_S = 57.0  # the miner's own, and its grace
QUIET_S = 5.0
LATE_S = 5.0  # an answer that waited for the chain would be late by 10 s, the shortest of its time-outs

Figures = dict[str, Any]


def blueprint(mark: str = "") -> StoryRequest:
    return StoryRequest(task_type="blueprint", user_input=f"{mark or mark_of()} a lighthouse keeper")


def mark_of(kind: str = "story") -> str:
    return f"story-{kind}-{uuid4().hex[:8]}"


def is_valid(request: StoryRequest, answer: httpx.Response) -> bool:
    return answer.status_code == 200 and verify(request, answer.content).valid


@contextmanager
def scene(think_s: float = 0.3) -> Iterator[tuple[DevNetwork, ScriptedModel, Path]]:
    """A chain, a model and a directory; no miner yet."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as name,
        dev_network(Path(name) / "chain") as net,
        scripted_model(think_s) as model,
    ):
        yield net, model, Path(name)


# --- the chain -----------------------------------------------------------------------------------------------------


class Streams:
    """Honest callers, one request after the other each, until the block ends."""

    def __init__(self, miner: MineProcess, count: int = 2) -> None:
        self._miner, self._count = miner, count
        self._over = threading.Event()
        self.latencies_s: list[float] = []
        self.lost = 0

    def __enter__(self) -> Streams:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self._count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            request = blueprint()
            start_s = time.monotonic()
            try:
                good = is_valid(request, self._miner.post(self._miner.sign(request)))
            except httpx.HTTPError:
                good = False
            self.latencies_s.append(time.monotonic() - start_s)
            self.lost += not good


def during_fault(fault: Callable[[FaultyLine, MineProcess], Figures], quiet_s: float) -> Figures:
    """Honest streams for `quiet_s`, then while `fault` runs; then the chain has to be seen again."""
    with scene() as (net, model, scratch):
        line = FaultyLine(net.directory)
        miner = start(net, scratch, model.flags, OFTEN)
        try:
            miner.wait_until_ready()
            with Streams(miner) as warm_up:
                time.sleep(1)
            with Streams(miner) as quiet:
                time.sleep(quiet_s)
            with Streams(miner) as busy:
                seen = fault(line, miner)
            recovered = wait_for(lambda: miner.metrics()["storyfi_chain_connected"] == 1.0, 60)
            height = miner.metrics()["storyfi_chain_height"]
            recovered = recovered and wait_for(lambda: miner.metrics()["storyfi_chain_height"] > height, 60)
        finally:
            line.close()
            miner.kill()
    return {
        **seen,
        "answers": len(busy.latencies_s),
        "lost": warm_up.lost + quiet.lost + busy.lost,
        "median_quiet_s": round(statistics.median(quiet.latencies_s), 3),
        "median_s": round(statistics.median(busy.latencies_s), 3),
        "slowest_quiet_s": round(max(quiet.latencies_s), 3),
        "slowest_s": round(max(busy.latencies_s), 3),
        "chain_seen_again": recovered,
    }


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.005)
    return False


def on_time(figures: Figures) -> bool:
    late = figures["slowest_s"] > figures["slowest_quiet_s"] + LATE_S
    return figures["lost"] == 0 and figures["answers"] > 0 and figures["chain_seen_again"] and not late


def cut(times: int, quiet_s: float = QUIET_S) -> tuple[Figures, bool]:
    """Each cut waits until the miner has connected again, so that each one hits."""

    def fault(line: FaultyLine, miner: MineProcess) -> Figures:
        hit = 0
        for _ in range(times):
            before = line.connections
            line.cut()
            hit += wait_for(lambda before=before: line.connections > before, 30)  # type: ignore[misc]
        return {"cuts": times, "connected_again": hit}

    figures = during_fault(fault, quiet_s)
    return figures, on_time(figures) and figures["connected_again"] == times


def freeze(seconds: float, quiet_s: float = QUIET_S) -> tuple[Figures, bool]:
    def fault(line: FaultyLine, miner: MineProcess) -> Figures:
        time.sleep(0.5)
        before = miner.usage().num_threads(), miner.usage().memory_info().rss
        line.freeze()
        time.sleep(seconds)
        metrics = miner.metrics()
        threads, rss = miner.usage().num_threads(), miner.usage().memory_info().rss
        line.thaw()
        return {
            "frozen_s": seconds,
            "chain_age_s": round(metrics["storyfi_chain_age_seconds"], 1),
            "threads_more": threads - before[0],
            "grown_bytes": rss - before[1],
        }

    figures = during_fault(fault, quiet_s)
    return figures, on_time(figures)


# --- kill -9 -------------------------------------------------------------------------------------------------------

IN_THE_TRANSACTION = f"""
import os, signal
from storyfi_lite.miner.nonces import SqliteNonceStore
SqliteNonceStore._forget = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
{MAIN}
"""
AFTER_THE_COMMIT = f"""
import os, signal
from storyfi_lite.miner.nonces import SqliteNonceStore
store = SqliteNonceStore.check_and_store
SqliteNonceStore.check_and_store = lambda *args: store(*args) and os.kill(os.getpid(), signal.SIGKILL)
{MAIN}
"""


@dataclass
class Victim:
    """A miner that will be killed, and all that was sent to it."""

    net: DevNetwork
    model: ScriptedModel
    scratch: Path
    sent: dict[str, Sent] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    line: FaultyLine | None = None

    def start(self, program: str = MAIN, flags: list[str] | None = None) -> MineProcess:
        return start(self.net, self.scratch, self.model.flags if flags is None else flags, program)

    def ask(self, miner: MineProcess, wire: str = "dendrite") -> None:
        """Ends without an answer if the miner dies."""
        mark = mark_of("kill")
        request = blueprint(mark)
        self.sent[mark] = miner.sign_as_dendrite(request) if wire == "dendrite" else miner.sign(request)
        with suppress(httpx.HTTPError):
            if miner.post(self.sent[mark]).status_code == 200:
                self.answered.add(mark)


def store_is_there(scratch: Path) -> bool:
    return any(scratch.glob("state/*/nonces.sqlite"))


def kill_while_starting(victim: Victim) -> None:
    """As soon as the replay store's file is there: its tables are being made."""
    miner = victim.start()
    wait_for(lambda: store_is_there(victim.scratch), 60)
    miner.kill()


def kill_while_loading(victim: Victim) -> None:
    """A real file, as soon as llama.cpp has it open."""
    miner = victim.start(flags=small_model_flags())
    maps = Path(f"/proc/{miner.process.pid}/maps")
    if not wait_for(lambda: small_model().name in maps.read_text(), 60):
        raise RuntimeError(f"the model was never loaded:\n{miner.log}")
    miner.kill()


def kill_while_registering(victim: Victim) -> None:
    """The endpoint's extrinsic is on its way to the chain."""
    on_its_way = threading.Event()
    line = FaultyLine(victim.net.directory, lambda piece: on_its_way.set() if b"serve_axon" in piece else None)
    try:
        miner = victim.start()
        if not on_its_way.wait(60):
            raise RuntimeError(f"no endpoint was published:\n{miner.log}")
        miner.kill()
    finally:
        line.close()


def kill_while_answering(victim: Victim) -> None:
    victim.model.think_s = 5.0
    miner = victim.start().wait_until_ready()
    with ThreadPoolExecutor(4) as pool:
        for wire in ("btauth", "dendrite", "btauth", "dendrite"):
            pool.submit(victim.ask, miner, wire)
        wait_for(lambda: sum(victim.model.asked.values()) >= 4, 30)
        miner.kill()
    victim.model.think_s = 0.3


def kill_in_a_burst(victim: Victim) -> None:
    """Somewhere in forty requests at once: the store is written, the model asked, answers go out."""
    victim.model.think_s = 0.0
    miner = victim.start().wait_until_ready()
    with ThreadPoolExecutor(40) as pool:
        for _ in range(40):
            pool.submit(victim.ask, miner)
        wait_for(lambda: len(victim.answered) >= 3, 30)
        miner.kill()
    victim.model.think_s = 0.3


def kill_in_the_transaction(victim: Victim) -> None:
    """Between a nonce's row and its commit."""
    miner = victim.start(IN_THE_TRANSACTION).wait_until_ready()
    victim.ask(miner)
    miner.process.wait(30)


def kill_after_the_commit(victim: Victim) -> None:
    """The nonce is remembered, the model not asked yet."""
    miner = victim.start(AFTER_THE_COMMIT).wait_until_ready()
    victim.ask(miner)
    miner.process.wait(30)


def kill_while_stopping(victim: Victim) -> None:
    victim.model.think_s = 5.0
    miner = victim.start().wait_until_ready()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(victim.ask, miner)
        wait_for(lambda: sum(victim.model.asked.values()) >= 1, 30)
        miner.process.terminate()
        wait_for(lambda: "stopping" in miner.log, 30)
        miner.kill()
    victim.model.think_s = 0.3


PHASES: dict[str, Callable[[Victim], None]] = {
    "starting": kill_while_starting,
    "loading": kill_while_loading,
    "registering": kill_while_registering,
    "answering": kill_while_answering,
    "burst": kill_in_a_burst,
    "transaction": kill_in_the_transaction,
    "commit": kill_after_the_commit,
    "stopping": kill_while_stopping,
}


def after_the_kill(victim: Victim) -> Figures:
    """The next start: a new story is answered, and everything from before is sent twice over again."""
    accepted = {mark for mark in victim.sent if victim.model.asked[mark]} | victim.answered
    miner = victim.start().wait_until_ready()
    try:
        replays = [miner.post(sent).status_code for _ in range(2) for sent in victim.sent.values()]
        refused = miner.metrics().get('storyfi_refusals_total{reason="replayed"}', 0.0)
        request = blueprint()
        works = is_valid(request, miner.post(miner.sign(request)))
        exit_code = miner.stop()
    finally:
        miner.kill()
    twice = sorted(mark for mark in victim.sent if victim.model.asked[mark] > 1)
    return {
        "sent": len(victim.sent),
        "accepted_before": len(accepted),
        "accepted_twice": len(twice),
        "replays_refused": int(refused),
        "first_accepted_after": replays.count(200),
        "next_start_works": works and exit_code == 143,
    }


def kill(phases: list[str]) -> tuple[Figures, bool]:
    figures: Figures = {}
    for phase in phases:
        with scene() as (net, model, scratch):
            victim = Victim(net, model, scratch)
            PHASES[phase](victim)
            figures[phase] = after_the_kill(victim)
    good = all(seen["next_start_works"] and seen["accepted_twice"] == 0 for seen in figures.values())
    return figures, good


# --- the API -------------------------------------------------------------------------------------------------------

GOOD = openai_server.text('{"title":"a story"}')
FAULTS: dict[str, Step] = {
    "429": openai_server.error(429, "slow down"),
    "429-for-an-hour": openai_server.error(429, "quota", {"retry-after": "3600"}),
    "500": openai_server.error(500, "internal"),
    "half-a-body": Step(body=GOOD.body, sent=0.5),
    "wrong-json": Step(body=b'{"choices": ['),
    "prose": openai_server.text("Once upon a time a lighthouse keeper heard the sea speak."),
    "nothing": Step(hang=True),
    "drip": Step(drip_s=0.2),
}


def api(with_hangs: bool) -> tuple[Figures, bool]:
    """Each fault once, with good answers after it, and for ever, all side by side on one miner."""
    names = [name for name, step in FAULTS.items() if with_hangs or not (step.hang or step.drip_s)]
    with scene(think_s=0.0) as (net, model, scratch):
        model.faults = {f"story-once-{name}": (FAULTS[name], 1) for name in names}
        model.faults |= {f"story-ever-{name}": (FAULTS[name], 1_000) for name in names}
        miner = start(net, scratch, model.flags)
        try:
            miner.wait_until_ready()
            with ThreadPoolExecutor(4) as pool:  # as many as the loader calls at once
                seen = dict(zip(model.faults, pool.map(lambda mark: outcome(miner, mark), model.faults), strict=True))
            healed = outcome(miner, mark_of())
            log = miner.log
        finally:
            miner.kill()
    figures = {mark.removeprefix("story-"): {**row, "calls": model.asked[mark]} for mark, row in seen.items()}
    in_words = log.count("not answered: the OpenAI API")
    good = healed["valid"] and all(
        row["seconds"] <= DEADLINE_S and (row["valid"] or row["status"] in (408, 503)) for row in seen.values()
    )
    return {**figures, "healed": healed, "errors_in_the_log": in_words}, good


def outcome(miner: MineProcess, mark: str) -> Figures:
    request = blueprint(mark)
    start_s = time.monotonic()
    answer = miner.post(miner.sign(request), timeout_s=DEADLINE_S + 30)
    return {
        "status": answer.status_code,
        "valid": is_valid(request, answer),
        "seconds": round(time.monotonic() - start_s, 2),
    }


# --- command line --------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("cut").add_argument("--times", type=int, default=20)
    kinds.add_parser("freeze").add_argument("--seconds", type=float, default=300)
    kinds.add_parser("kill").add_argument("--phase", action="append", choices=PHASES, help="[default: all of them]")
    kinds.add_parser("api").add_argument("--no-hangs", action="store_true", help="leave out what takes a minute")
    given = parser.parse_args()
    if not (1 <= getattr(given, "times", 1) <= MAX_CUTS and 0 < getattr(given, "seconds", 1) <= MAX_SECONDS):
        parser.error(f"at most {MAX_CUTS} cuts and {MAX_SECONDS} seconds")
    return given


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the miner is not left behind
    if given.kind == "cut":
        figures, good = cut(given.times)
    elif given.kind == "freeze":
        figures, good = freeze(given.seconds)
    elif given.kind == "kill":
        figures, good = kill(given.phase or list(PHASES))
    else:
        figures, good = api(not given.no_hangs)
    for name, value in figures.items():
        cells = value.items() if isinstance(value, dict) else [("", value)]
        print(f"{name:22}", "  ".join(f"{key} {cell}".strip() for key, cell in cells))
    print(json.dumps({"kind": given.kind, "good": good, **figures}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
