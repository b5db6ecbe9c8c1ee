"""A real miner on loopback for the tests: real HTTP, real signatures, a scripted loader and a directory in
memory.

As a program (`python -m tests.miner_server STATE_DIR`) it serves until a signal and prints its port first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from bittensor import http_auth
from bittensor.sp_core import Keypair

from storyfi_lite.errors import BadInput, Busy, EngineError
from storyfi_lite.loaders.base import Answer, Job, LoaderHealth, ModelClaim
from storyfi_lite.loaders.meter import Usage
from storyfi_lite.miner.admission import AdmissionPolicy, Gate
from storyfi_lite.miner.app import Miner
from storyfi_lite.miner.lifecycle import StoryServer, bind, serve
from storyfi_lite.miner.metrics import Metrics
from storyfi_lite.miner.nonces import SqliteNonceStore
from storyfi_lite.miner.service import StoryService
from storyfi_lite.protocol.messages import ModelInfo
from storyfi_lite.wire.btauth import BtAuth
from storyfi_lite.wire.dendrite import Dendrite

MINER = Keypair.create_from_uri("//Miner")
VALIDATOR = Keypair.create_from_uri("//Validator")
STRANGER = Keypair.create_from_uri("//Stranger")
NO_PERMIT = Keypair.create_from_uri("//NoPermit")
POOR = Keypair.create_from_uri("//Poor")
DENIED = Keypair.create_from_uri("//Denied")
ALLOWED = Keypair.create_from_uri("//Allowed")

BLUEPRINT = {
    "title": "灯塔与海",
    "genre": "奇幻",
    "setting": "海" * 300,
    "core_conflict": "雾" * 150,
    "themes": ["孤独", "记忆", "选择"],
    "tone": "忧郁",
    "target_audience": "成人",
}


@dataclass(frozen=True)
class FakeNeuron:
    uid: int
    hotkey_ss58: str
    stake_tao: float
    validator_permit: bool


@dataclass
class MemoryDirectory:
    neurons: dict[str, FakeNeuron]

    def lookup(self, hotkey_ss58: str) -> FakeNeuron | None:
        return self.neurons.get(hotkey_ss58)


def directory() -> MemoryDirectory:
    rows = [
        FakeNeuron(0, VALIDATOR.ss58_address, 5_000.0, True),
        FakeNeuron(1, NO_PERMIT.ss58_address, 5_000.0, False),
        FakeNeuron(2, POOR.ss58_address, 1.0, True),
        FakeNeuron(3, DENIED.ss58_address, 9_000.0, True),
        FakeNeuron(7, MINER.ss58_address, 0.0, False),
    ]
    return MemoryDirectory({row.hotkey_ss58: row for row in rows})


CLAIM = ModelClaim(
    "LocalModelLoader",
    "smollm2-135m",
    ModelInfo(mode="local", name="smollm2-135m", version="Q4_1", provider="llama.cpp"),
    gpu_memory_gb=0.0,
    multiplier=0.5,
)


@dataclass
class ScriptedLoader:
    """Answers with a canned blueprint; the first word of the input scripts it: sleep:SECONDS, hang, busy,
    bad, break."""

    jobs: list[Job] = field(default_factory=list)
    futures: list[Future[Answer]] = field(default_factory=list)
    alive: bool = True
    claim: ModelClaim = CLAIM
    usage: Usage | None = None

    def submit(self, job: Job) -> Future[Answer]:
        self.jobs.append(job)
        verb, _, argument = job.request.user_input.split()[0].partition(":")
        if verb == "busy":
            raise Busy("the queue is full", retry_after_s=6.2)
        if verb == "bad":
            raise BadInput("no blueprint was given")
        future: Future[Answer] = Future()
        self.futures.append(future)
        if verb == "break":
            future.set_exception(EngineError("llama_decode returned -3 at /secret/path"))
        elif verb == "sleep":
            threading.Timer(float(argument), self._finish, (future, job)).start()
        elif verb != "hang":
            self._finish(future, job)
        return future

    def _finish(self, future: Future[Answer], job: Job) -> None:
        if future.set_running_or_notify_cancel():
            text = json.dumps(BLUEPRINT, ensure_ascii=False, separators=(",", ":"))
            future.set_result(Answer(text, CLAIM, 0.25, 40, 3, tokens=(5, 6, 7), first_token_s=0.2))

    def health(self) -> LoaderHealth:
        running = sum(not future.done() for future in self.futures)
        return LoaderHealth(self.alive, "scripted", running=running, usage=self.usage)

    def close(self) -> None:
        for future in self.futures:
            future.cancel()


def make_miner(state_dir: Path, loader: ScriptedLoader | None = None, **gate: object) -> Miner:
    loader = loader or ScriptedLoader()
    transports = (BtAuth(MINER.ss58_address), Dendrite(MINER.ss58_address))
    policy = AdmissionPolicy(
        min_stake_tao=100.0,
        rate_per_minute=float(gate.pop("rate_per_minute", 6_000)),  # type: ignore[arg-type]
        allow=frozenset({ALLOWED.ss58_address}),
        deny=frozenset({DENIED.ss58_address}),
    )
    nonces = SqliteNonceStore(state_dir / "nonces.sqlite", retention_s=120)
    return Miner(
        loader=loader,
        gate=Gate(directory(), nonces, policy, **gate),  # type: ignore[arg-type]
        service=StoryService(loader, MINER.ss58_address, deadline_s=float(gate.pop("deadline_s", 55))),  # type: ignore[arg-type]
        metrics=Metrics(loader),
        transports=transports,
    )


@dataclass
class Running:
    """A miner that answers at `url`."""

    miner: Miner
    loader: ScriptedLoader
    server: StoryServer
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, body: bytes, headers: dict[str, str], path: str = "/story") -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=20, verify=False) as client:
            return client.post(self.url + path, content=body, headers=headers)

    def get(self, path: str, **headers: str) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=20, verify=False) as client:
            return client.get(self.url + path, headers=headers)

    def ask(self, text: str = "a lighthouse", key: Keypair = VALIDATOR, **fields: object) -> httpx.Response:
        body = story(text, **fields)
        return self.post(body, signed(body, key))


def story(text: str = "a lighthouse", **fields: object) -> bytes:
    return json.dumps({"task_type": "blueprint", "user_input": text, **fields}).encode()


def signed(body: bytes, key: Keypair = VALIDATOR, **options: object) -> dict[str, str]:
    options = {"method": "POST", "path": "/story", "receiver_ss58": MINER.ss58_address, **options}
    return http_auth.sign(key, body=body, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def running(miner: Miner) -> Iterator[Running]:
    """Serves `miner` in a thread until the block ends."""
    listener = bind("127.0.0.1", 0)
    server = StoryServer(miner)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),))
    thread.start()
    try:
        assert isinstance(miner.loader, ScriptedLoader)
        until(lambda: server.started)
        yield Running(miner, miner.loader, server, listener.getsockname()[1])
    finally:
        miner.loader.close()
        server.should_exit = server.force_exit = True
        thread.join(20)
        assert isinstance(miner.gate.nonces, SqliteNonceStore)
        miner.gate.nonces.close()


def until(condition: object, timeout_s: float = 10.0) -> None:
    """Waits for `condition()` to hold; fails the test if it does not."""
    end_s = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)


def main() -> None:
    from storyfi_lite import stopping
    from storyfi_lite.miner import logs

    stopping.install()
    logs.setup("text")
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    print(port, flush=True)
    asyncio.run(serve(make_miner(Path(sys.argv[1])), "127.0.0.1", port))
    sys.exit(stopping.exit_code(0))


if __name__ == "__main__":
    main()
