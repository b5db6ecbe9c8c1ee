#!/usr/bin/env python3
"""Hostile load on a miner, on loopback: do honest callers notice, does anything get through?

    python scripts/load_miner.py              5,000 hostile requests in a minute, beside 4 honest streams
    python scripts/load_miner.py --seconds 6 --hostile 500 --slow 20

It starts the miner of tests/miner_server.py (all real but the model, which answers after --think seconds) and
measures the honest streams alone, then beside forged, replayed, stale, wrongly addressed, oversized,
malformed, unregistered and unsigned requests and slow connections. It prints a table and one JSON line. Exit
1 if a hostile request was answered, an honest one was not, the honest median grew by more than a tenth, or
memory by 20 MB."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.miner_server import STRANGER, VALIDATOR, signed, story

MAX_SECONDS = 600
MAX_HOSTILE = 100_000
HONEST_STREAMS = 4
LATENCY_FACTOR = 1.1
GROWTH_BYTES = 20_000_000

Request = tuple[bytes, dict[str, str]]


def forged() -> Request:
    body = story()
    return body, {**signed(body, STRANGER), "X-Bittensor-Hotkey": VALIDATOR.ss58_address}


def changed_body() -> Request:
    return story("changed"), signed(story())


def stale() -> Request:
    body = story()
    return body, signed(body, nonce_ns=time.time_ns() - 3_600 * 10**9)


def wrong_receiver() -> Request:
    body = story()
    return body, signed(body, receiver_ss58=STRANGER.ss58_address)


def unregistered() -> Request:
    body = story()
    return body, signed(body, STRANGER)


def oversized() -> Request:
    body = b"x" * 1_100_000
    return body, signed(b"")


def malformed() -> Request:
    junk = random.randbytes(random.randrange(1, 2_000))
    return junk, signed(junk, STRANGER)


def unsigned() -> Request:
    return story(), {}


KINDS: dict[str, Callable[[], Request]] = {
    kind.__name__: kind
    for kind in (forged, changed_body, stale, wrong_receiver, unregistered, oversized, malformed, unsigned)
}


class Load:
    """One run: honest streams, and hostile ones until the honest are done."""

    def __init__(self, url: str, think_s: float, seconds: float) -> None:
        self.url, self.think_s, self.end_s = url, think_s, time.monotonic() + seconds
        self.seconds = seconds
        self.latencies_s: list[float] = []
        self.honest: Counter[int] = Counter()
        self.hostile: Counter[str] = Counter()
        self.accepted = 0
        self.replayable: Request | None = None

    async def honest_stream(self, client: httpx.AsyncClient) -> None:
        while time.monotonic() < self.end_s:
            body = story(f"sleep:{self.think_s}")
            headers = signed(body)
            start_s = time.perf_counter()
            answer = await client.post(self.url + "/story", content=body, headers=headers)
            self.latencies_s.append(time.perf_counter() - start_s)
            self.honest[answer.status_code] += 1
            if answer.status_code == 200:
                self.replayable = body, headers
            await asyncio.sleep(0.05)

    async def hostile_stream(self, client: httpx.AsyncClient, count: int) -> None:
        kinds = [*KINDS, "replayed"]
        pause_s = self.seconds / count
        start_s = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, start_s + number * pause_s - time.monotonic()))
            kind = kinds[number % len(kinds)]
            body, headers = self.replayable or unsigned() if kind == "replayed" else KINDS[kind]()
            try:
                answer = await client.post(self.url + "/story", content=body, headers=headers)
            except httpx.TransportError:
                self.hostile[f"{kind} cut off"] += 1
                continue
            self.hostile[f"{kind} {answer.status_code}"] += 1
            self.accepted += answer.status_code == 200

    async def slow_connection(self) -> None:
        """Sends a header every second, and comes back when it is cut off."""
        host, port = self.url.removeprefix("http://").split(":")
        while time.monotonic() < self.end_s:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"POST /story HTTP/1.1\r\nHost: x\r\n")
                while time.monotonic() < self.end_s:
                    writer.write(b"X-A: b\r\n")
                    await writer.drain()
                    await asyncio.sleep(1)
                writer.close()
            except OSError:
                self.hostile["slow connection cut off"] += 1


async def measure(url: str, think_s: float, seconds: float, hostile: int, slow: int) -> Load:
    load = Load(url, think_s, seconds)
    honest = httpx.AsyncClient(trust_env=False, verify=False, timeout=60)
    others = httpx.AsyncClient(trust_env=False, verify=False, timeout=60, limits=httpx.Limits(max_connections=50))
    async with honest, others:
        tasks = [load.honest_stream(honest) for _ in range(HONEST_STREAMS)]
        streams = min(8, hostile)
        tasks += [load.hostile_stream(others, hostile // streams) for _ in range(streams)]
        tasks += [load.slow_connection() for _ in range(slow)]
        await asyncio.gather(*tasks)
    return load


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two runs")
    parser.add_argument("--hostile", type=int, default=5_000, help="requests")
    parser.add_argument("--slow", type=int, default=200, help="slow connections at once")
    parser.add_argument("--think", type=float, default=1.0, help="seconds that the scripted model takes")
    given = parser.parse_args()
    if not (0 < given.seconds <= MAX_SECONDS and 0 <= given.hostile <= MAX_HOSTILE and 0 <= given.slow <= 500):
        parser.error(f"at most {MAX_SECONDS} seconds, {MAX_HOSTILE} hostile requests and 500 slow connections")
    return given


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory() as state:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.miner_server", state],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            return report(url, psutil.Process(process.pid), given)
        finally:
            process.terminate()
            process.wait(90)


def report(url: str, process: psutil.Process, given: argparse.Namespace) -> int:
    wait_until_up(url)
    asyncio.run(measure(url, given.think, min(5, given.seconds), 0, 0))  # everything is imported and warm
    quiet = asyncio.run(measure(url, given.think, given.seconds, 0, 0))
    before_bytes = process.memory_info().rss
    busy = asyncio.run(measure(url, given.think, given.seconds, given.hostile, given.slow))
    grown_bytes = process.memory_info().rss - before_bytes
    figures = {
        "seconds": given.seconds,
        "hostile": sum(busy.hostile.values()),
        "accepted": busy.accepted,
        "honest_quiet": dict(quiet.honest),
        "honest_busy": dict(busy.honest),
        "honest_median_ratio": round(statistics.median(busy.latencies_s) / statistics.median(quiet.latencies_s), 3),
        "honest_p99_quiet_s": round(p99(quiet.latencies_s), 3),
        "honest_p99_busy_s": round(p99(busy.latencies_s), 3),
        "grown_bytes": grown_bytes,
        "client_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024,
    }
    for kind, count in sorted(busy.hostile.items()):
        print(f"{kind:32} {count:6}")
    print(json.dumps(figures))
    good = (
        busy.accepted == 0
        and set(busy.honest) == set(quiet.honest) == {200}
        and figures["honest_median_ratio"] <= LATENCY_FACTOR
        and grown_bytes < GROWTH_BYTES
    )
    return 0 if good else 1


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def wait_until_up(url: str) -> None:
    for _ in range(200):
        try:
            httpx.get(url + "/health", trust_env=False, verify=False)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the miner did not start")


if __name__ == "__main__":
    sys.exit(main())
