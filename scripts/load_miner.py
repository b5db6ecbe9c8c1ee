#!/usr/bin/env python3
"""Hostile load on a miner, on loopback: do honest callers notice, does anything get through?

    python scripts/load_miner.py              5,000 hostile requests in a minute, beside 4 honest streams
    python scripts/load_miner.py --seconds 6 --hostile 500 --slow 20
    python scripts/load_miner.py --wire dendrite      the same over today's wire
    python scripts/load_miner.py --real --streams 1   `storyfi-lite mine` with a real model: it shares the cores

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from storyfi_lite.devchain.substrate import dev_network
from storyfi_lite.wire.btauth import PATH
from storyfi_lite.wire.dendrite import EMPTY_BODY_HASH, NAME, body_hash
from tests.mine_process import sign_as_dendrite, small_model_flags, start
from tests.miner_server import MINER, STRANGER, VALIDATOR, signed, story

MAX_SECONDS = 600
MAX_HOSTILE = 100_000
LATENCY_FACTOR = 1.1
GROWTH_BYTES = 20_000_000

Request = tuple[bytes, dict[str, str]]


@dataclass(frozen=True)
class Target:
    """A miner, and how one signs for it on one of its wires. `honest_text` is what the honest streams ask for."""

    url: str
    process: psutil.Process
    miner_ss58: str
    validator: Any  # a keypair
    honest_text: str
    wire: str

    @property
    def path(self) -> str:
        return PATH if self.wire == "btauth" else f"/{NAME}"

    def signed(self, body: bytes, key: Any = None, receiver: str = "", nonce_ns: int | None = None) -> dict[str, str]:
        key, receiver = key or self.validator, receiver or self.miner_ss58
        if self.wire == "btauth":
            return signed(body, key, path=PATH, receiver_ss58=receiver, nonce_ns=nonce_ns)
        return sign_as_dendrite(key, receiver, hash_of(body), nonce_ns)


def hash_of(body: bytes) -> str:
    """As a dendrite whose class declares the fields that its signature covers."""
    try:
        return body_hash(json.loads(body))
    except (ValueError, AttributeError):  # not JSON, or no object
        return EMPTY_BODY_HASH


def forged(target: Target) -> Request:
    body = story()
    name = "X-Bittensor-Hotkey" if target.wire == "btauth" else "bt_header_dendrite_hotkey"
    return body, {**target.signed(body, STRANGER), name: target.validator.ss58_address}


def changed_body(target: Target) -> Request:
    return story("changed"), target.signed(story())


def stale(target: Target) -> Request:
    body = story()
    return body, target.signed(body, nonce_ns=time.time_ns() - 3_600 * 10**9)


def wrong_receiver(target: Target) -> Request:
    body = story()
    return body, target.signed(body, receiver=STRANGER.ss58_address)


def unregistered(target: Target) -> Request:
    body = story()
    return body, target.signed(body, STRANGER)


def oversized(target: Target) -> Request:
    body = b"x" * 1_100_000
    return body, target.signed(b"")


def malformed(target: Target) -> Request:
    junk = random.randbytes(random.randrange(1, 2_000))
    return junk, target.signed(junk, STRANGER)


def unsigned(target: Target) -> Request:
    return story(), {}


KINDS: dict[str, Callable[[Target], Request]] = {
    kind.__name__: kind
    for kind in (forged, changed_body, stale, wrong_receiver, unregistered, oversized, malformed, unsigned)
}


class Load:
    """One run: honest streams, and hostile ones until the honest are done."""

    def __init__(self, target: Target, seconds: float) -> None:
        self.target, self.end_s = target, time.monotonic() + seconds
        self.seconds = seconds
        self.latencies_s: list[float] = []
        self.honest: Counter[int] = Counter()
        self.hostile: Counter[str] = Counter()
        self.accepted = 0
        self.replayable: Request | None = None

    async def honest_stream(self, client: httpx.AsyncClient) -> None:
        while time.monotonic() < self.end_s:
            body = story(self.target.honest_text)
            headers = self.target.signed(body)
            start_s = time.perf_counter()
            answer = await client.post(self.target.url + self.target.path, content=body, headers=headers)
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
            make = KINDS.get(kind, unsigned)  # no answer was there to replay yet: unsigned
            body, headers = self.replayable if kind == "replayed" and self.replayable else make(self.target)
            try:
                answer = await client.post(self.target.url + self.target.path, content=body, headers=headers)
            except httpx.TransportError:
                self.hostile[f"{kind} cut off"] += 1
                continue
            self.hostile[f"{kind} {answer.status_code}"] += 1
            self.accepted += answer.status_code == 200

    async def slow_connection(self) -> None:
        """Sends a header every second, and comes back when it is cut off."""
        host, port = self.target.url.removeprefix("http://").split(":")
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


async def measure(target: Target, streams: int, seconds: float, hostile: int, slow: int) -> Load:
    load = Load(target, seconds)
    honest = httpx.AsyncClient(trust_env=False, verify=False, timeout=60)
    others = httpx.AsyncClient(trust_env=False, verify=False, timeout=60, limits=httpx.Limits(max_connections=50))
    async with honest, others:
        tasks = [load.honest_stream(honest) for _ in range(streams)]
        attackers = min(8, hostile)
        tasks += [load.hostile_stream(others, hostile // attackers) for _ in range(attackers)]
        tasks += [load.slow_connection() for _ in range(slow)]
        await asyncio.gather(*tasks)
    return load


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two runs")
    parser.add_argument("--hostile", type=int, default=5_000, help="requests")
    parser.add_argument("--slow", type=int, default=200, help="slow connections at once")
    parser.add_argument("--think", type=float, default=1.0, help="seconds that the scripted model takes")
    parser.add_argument("--streams", type=int, default=4, help="honest callers at once")
    parser.add_argument("--wire", choices=["btauth", "dendrite"], default="btauth")
    parser.add_argument("--real", action="store_true", help="`storyfi-lite mine` with the smallest real model")
    given = parser.parse_args()
    if not (0 < given.seconds <= MAX_SECONDS and 0 <= given.hostile <= MAX_HOSTILE and 0 <= given.slow <= 500):
        parser.error(f"at most {MAX_SECONDS} seconds, {MAX_HOSTILE} hostile requests and 500 slow connections")
    return given


@contextmanager
def scripted(given: argparse.Namespace) -> Iterator[Target]:
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
            wait_until_up(url)
            text = f"sleep:{given.think}"
            yield Target(url, psutil.Process(process.pid), MINER.ss58_address, VALIDATOR, text, given.wire)
        finally:
            process.terminate()
            process.wait(90)


@contextmanager
def real(given: argparse.Namespace) -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as name, dev_network(Path(name) / "chain") as net:
        miner = start(net, Path(name), small_model_flags())
        try:
            miner.wait_until_ready()
            validator = net.validators[0].hotkey
            yield Target(miner.url, miner.usage(), miner.hotkey, validator, "a lighthouse keeper", given.wire)
        finally:
            miner.kill()


def main() -> int:
    given = arguments()
    with (real if given.real else scripted)(given) as target:
        return report(target, given)


def report(target: Target, given: argparse.Namespace) -> int:
    streams = given.streams
    asyncio.run(measure(target, streams, min(5, given.seconds), 0, 0))  # everything is imported and warm
    quiet = asyncio.run(measure(target, streams, given.seconds, 0, 0))
    before_bytes = target.process.memory_info().rss
    busy = asyncio.run(measure(target, streams, given.seconds, given.hostile, given.slow))
    grown_bytes = target.process.memory_info().rss - before_bytes
    figures = {
        "wire": target.wire,
        "model": "real" if given.real else "scripted",
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
