#!/usr/bin/env python3
"""Hours of honest work on a real miner, on loopback: is every answer valid, do memory and latency stay flat?

    python scripts/soak.py                          ten minutes with the smallest real model
    python scripts/soak.py --minutes 1440           a day
    python scripts/soak.py --scripted 0.2           a scripted model: many more requests through all the rest

It starts `storyfi-lite mine --network dev` and asks for whole stories, task after task, each with the answers
before it: over btauth/1 one after the other, and over the dendrite wire every --dendrite-every seconds with the
real client of bittensor 10.5.0 (scripts/make_dendrite_venv.sh). Each answer goes through the validator's verify.
It prints a table and one JSON line; Ctrl-C ends it early and prints what was seen. Exit 1 if an answer was not
valid, one was lost, or memory grew by more than --growth percent in the second half. Requests that the miner turned
away as busy or late (503, 408) are counted apart: that is what it should say on a machine too slow for them."""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from storyfi_lite.devchain.substrate import DevNetwork, dev_network
from storyfi_lite.protocol.messages import ModelInfo, StoryRequest, StoryResponse, TaskName
from storyfi_lite.validator.verify import verify
from tests.dendrite_process import MISSING, PYTHON, DendriteProcess, dendrite_process
from tests.mine_process import MineProcess, small_model_flags, start
from tests.scripted_model import scripted_model

MAX_MINUTES = 7 * 24 * 60.0
MAX_REQUESTS = 1_000_000
GROWTH_PERCENT = 5.0
SAMPLE_S = 2.0
KEPT_SAMPLES = 20_000
STORIES = ("a lighthouse keeper who hears the sea speak", "一个关于灯塔守护人的故事，他能听见大海说话")
TASKS: tuple[TaskName, ...] = ("blueprint", "characters", "story_arc", "chapters")

TURNED_AWAY = (408, 503)

Send = Callable[[StoryRequest], StoryResponse]


class NoAnswer(Exception):
    """A status other than 200, in whichever way the wire says it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


@dataclass(frozen=True)
class Seen:
    """One answer. `at_s` since the start."""

    at_s: float
    wire: str
    task: str
    seconds: float


@dataclass(frozen=True)
class Sample:
    at_s: float
    rss_bytes: int
    threads: int
    files: int


@dataclass
class Record:
    """What was seen so far. Thread-safe enough: each list and counter only grows."""

    began_s: float = field(default_factory=time.monotonic)
    answers: list[Seen] = field(default_factory=list)
    invalid: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    turned_away: Counter[str] = field(default_factory=Counter)
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))

    def now_s(self) -> float:
        return time.monotonic() - self.began_s


@dataclass
class Soak:
    """One run: callers on threads, samples on this one, until the time or the count is over."""

    miner: MineProcess
    seconds: float
    most: int
    record: Record = field(default_factory=Record)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self, callers: list[threading.Thread]) -> None:
        """KeyboardInterrupt ends it early."""
        every_s = max(SAMPLE_S, self.seconds / KEPT_SAMPLES)
        for caller in callers:
            caller.start()
        try:
            while self.record.now_s() < self.seconds and len(self.record.answers) < self.most:
                self._sample()
                if self.over.wait(every_s):
                    break
        except KeyboardInterrupt:
            print("stopping early; waiting for the answers in hand", file=sys.stderr)
        self.over.set()
        for caller in callers:
            caller.join()

    def _sample(self) -> None:
        usage = self.miner.usage()
        with usage.oneshot():
            sample = Sample(self.record.now_s(), usage.memory_info().rss, usage.num_threads(), usage.num_fds())
        self.record.samples.append(sample)

    def caller(self, wire: str, send: Send, pause_s: float) -> threading.Thread:
        """Stories without end, one task each `pause_s` seconds at most."""

        def stories() -> None:
            number = 0
            while not self.over.is_set():
                self._story(wire, send, STORIES[number % len(STORIES)], pause_s)
                number += 1

        return threading.Thread(target=stories, name=wire)

    def _story(self, wire: str, send: Send, text: str, pause_s: float) -> None:
        """All four tasks, each with the answers before it; given up where one is lost or not valid."""
        stages: dict[str, Any] = {}
        for task in TASKS:
            if self.over.is_set():
                return
            if task == "chapters":
                stages["chapter_ids"] = [1]
            start_s = time.monotonic()
            answer = self._ask(wire, send, StoryRequest(task_type=task, user_input=text, **stages))
            if answer is None:
                self.over.wait(1.0)
                return
            stages[task] = answer
            self.over.wait(max(0.0, start_s + pause_s - time.monotonic()))

    def _ask(self, wire: str, send: Send, request: StoryRequest) -> dict[str, Any] | None:
        start_s = time.monotonic()
        try:
            response = send(request)
        except (httpx.HTTPError, NoAnswer) as error:
            polite = isinstance(error, NoAnswer) and error.status in TURNED_AWAY
            counts = self.record.turned_away if polite else self.record.lost
            counts[f"{wire} {request.task_type}: {error or type(error).__name__}"] += 1
            return None
        seconds = time.monotonic() - start_s
        found = verify(request, response)
        if not found.valid:
            self.record.invalid[f"{wire} {request.task_type}: {'; '.join(found.problems[:3])}"] += 1
            return None
        self.record.answers.append(Seen(self.record.now_s(), wire, request.task_type, seconds))
        return response.output_data


def btauth(miner: MineProcess) -> Send:
    def send(request: StoryRequest) -> StoryResponse:
        answer = miner.post(miner.sign(request))
        if answer.status_code != 200:
            raise NoAnswer(answer.status_code)
        return StoryResponse.model_validate_json(answer.content)

    return send


def dendrite(miner: MineProcess, net: DevNetwork, client: DendriteProcess) -> Send:
    """As a second validator. Upstream's synapse carries less than ours: what it lacks is filled in, unread."""
    key = json.loads(Path(net.validators[1].hotkey_file.path).read_text())["secretPhrase"]

    def send(request: StoryRequest) -> StoryResponse:
        fields = request.model_dump(exclude_none=True)
        answer = client.ask(miner.port, miner.hotkey, fields, key=key, timeout=60.0)
        synapse = answer["synapse"]
        if not answer["success"] or synapse["output_data"] is None:
            raise NoAnswer(int(answer["status"] or 0))
        return StoryResponse(
            output_data=synapse["output_data"],
            generation_time=synapse["generation_time"],
            miner_version=synapse["miner_version"],
            model_info=ModelInfo.model_validate(synapse["model_info"]),
            miner_mode="LocalModelLoader",
            model_name="",
            gpu_memory_gb=0.0,
        )

    return send


# --- what it comes to ----------------------------------------------------------------------------------------------


def figures(record: Record) -> dict[str, Any]:
    """Halves are halves of the time in which requests were sent."""
    end_s = record.samples[-1].at_s
    halves = [[seen for seen in record.answers if (seen.at_s > end_s / 2) == later] for later in (False, True)]
    middle, last = around(record, end_s / 2, end_s), around(record, end_s, end_s)
    first, second = (medians_s(half) for half in halves)
    return {
        "minutes": round(end_s / 60, 2),
        "answers": len(record.answers),
        "by_wire": dict(Counter(seen.wire for seen in record.answers)),
        "invalid": sum(record.invalid.values()),
        "lost": sum(record.lost.values()),
        "turned_away": sum(record.turned_away.values()),
        "median_s_first_half": first,
        "median_s_second_half": second,
        "slowest_s": round(max((seen.seconds for seen in record.answers), default=0.0), 2),
        "rss_mb_start": round(record.samples[0].rss_bytes / 1e6, 1),
        "rss_mb_middle": round(middle.rss_bytes / 1e6, 1),
        "rss_mb_end": round(last.rss_bytes / 1e6, 1),
        "growth_percent": round((last.rss_bytes / middle.rss_bytes - 1) * 100, 2),
        "threads_middle_end": [middle.threads, last.threads],
        "files_middle_end": [middle.files, last.files],
    }


def around(record: Record, at_s: float, end_s: float) -> Sample:
    """The medians of the tenth of the time that ends at `at_s`."""
    near = [sample for sample in record.samples if at_s - end_s / 10 <= sample.at_s <= at_s] or [record.samples[-1]]
    return Sample(
        at_s,
        int(statistics.median(sample.rss_bytes for sample in near)),
        int(statistics.median(sample.threads for sample in near)),
        int(statistics.median(sample.files for sample in near)),
    )


def medians_s(answers: list[Seen]) -> dict[str, float]:
    by_task = {task: [seen.seconds for seen in answers if seen.task == task] for task in TASKS}
    return {task: round(statistics.median(seconds), 2) for task, seconds in by_task.items() if seconds}


def show(record: Record, seen: dict[str, Any]) -> None:
    end_s = record.samples[-1].at_s
    print(
        f"{'until minute':>12} {'answers':>8} {'median s':>9} {'slowest s':>10} {'RSS MB':>8} {'threads':>8} {'files':>6}"
    )
    for tenth in range(1, 11):
        until_s = end_s * tenth / 10
        part = [answer.seconds for answer in record.answers if min(9, int(answer.at_s / end_s * 10)) == tenth - 1]
        sample = around(record, until_s, end_s)
        times = f"{statistics.median(part):9.2f} {max(part):10.2f}" if part else f"{'':9} {'':10}"
        print(
            f"{until_s / 60:12.1f} {len(part):8} {times} {sample.rss_bytes / 1e6:8.1f} {sample.threads:8} {sample.files:6}"
        )
    for name, counts in (("not valid", record.invalid), ("lost", record.lost), ("turned away", record.turned_away)):
        for what, count in counts.items():
            print(f"{name}: {count} x {what}")
    print(json.dumps(seen))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--requests", type=int, default=MAX_REQUESTS, help="stop after so many answers")
    parser.add_argument("--streams", type=int, default=1, help="callers over btauth at once")
    parser.add_argument("--dendrite-every", type=float, default=12.0, help="seconds between calls; 0: no such caller")
    parser.add_argument("--threads", type=int, default=1, help="of the real model")
    parser.add_argument("--scripted", type=float, metavar="SECONDS", help="a scripted model that takes so long")
    parser.add_argument("--growth", type=float, default=GROWTH_PERCENT, help="percent of memory, in the second half")
    given = parser.parse_args()
    if not (0 < given.minutes <= MAX_MINUTES and 0 < given.requests <= MAX_REQUESTS and 1 <= given.streams <= 16):
        parser.error(f"at most {MAX_MINUTES:g} minutes, {MAX_REQUESTS:,} requests and 16 streams")
    if given.dendrite_every and not PYTHON.exists():
        parser.error(f"{MISSING}, or give --dendrite-every 0")
    return given


@contextmanager
def model_flags(given: argparse.Namespace) -> Iterator[list[str]]:
    if given.scripted is not None:
        with scripted_model(given.scripted) as model:
            yield model.flags
        return
    yield small_model_flags(given.threads)


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the miner is not left behind
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        net = opened.enter_context(dev_network(scratch / "chain", validators=2))
        miner = start(net, scratch, opened.enter_context(model_flags(given)))
        opened.callback(miner.kill)
        miner.wait_until_ready()
        soak = Soak(miner, given.minutes * 60, given.requests)
        callers = [soak.caller("btauth", btauth(miner), 0.0) for _ in range(given.streams)]
        if given.dendrite_every:
            client = opened.enter_context(dendrite_process())
            callers.append(soak.caller("dendrite", dendrite(miner, net, client), given.dendrite_every))
        soak.run(callers)
        seen = figures(soak.record) | {"exit_code": miner.stop()}
    show(soak.record, seen)
    bad = seen["invalid"] or seen["lost"] or not seen["answers"] or seen["growth_percent"] > given.growth
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
