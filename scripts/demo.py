"""The demo that scripts/demo runs: a miner with a real model, one that cheats, a validator, the in-memory dev chain between them.

Everything is what runs on the real network but the chain's server, which lives in this process.
"""

from __future__ import annotations

from storyfi_lite import stopping

stopping.install()  # the imports below take a second

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from bittensor import http_auth
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from storyfi_lite.chain import connect
from storyfi_lite.devchain.substrate import DevNetwork, dev_network
from storyfi_lite.errors import Busy, LiteError
from storyfi_lite.models.registry import ModelSpec, load_registry
from storyfi_lite.models.store import Store
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse, parse_response
from storyfi_lite.protocol.seed import challenge_seed
from storyfi_lite.rounds.query import Reply, ask
from storyfi_lite.validator.reward import DEFAULT_POLICY
from storyfi_lite.validator.verify import verify
from storyfi_lite.wire.btauth import PATH

MODEL, QUANT = "smollm2-135m", "Q4_1"  # the file that a Python package carries: no hub is needed
STORY = "a lighthouse keeper who hears the sea speak"
PROGRAM = [sys.executable, "-m", "storyfi_lite"]
CHEATS = Path(__file__).with_name("cheats.py")
THREADS = str(max(1, (os.cpu_count() or 2) // 2))  # two miners answer at once

console = Console(highlight=False)


def main() -> None:
    story = sys.argv[1] if len(sys.argv) > 1 else STORY
    step("1", f"fetch the model {MODEL} (98 MB, once)")
    run([*PROGRAM, "pull", MODEL, "--quant", QUANT], stdout=subprocess.DEVNULL)
    with scratch_directory() as scratch, dev_network(scratch) as net:
        step("2", "start a chain in memory and a miner on it")
        with miner(net, scratch) as process:
            endpoint = asyncio.run(find_miner(net))
            step(
                "3",
                f"the validator found the miner on chain at {endpoint[0]}:{endpoint[1]} and asks for: {story}",
            )
            request = StoryRequest(task_type="blueprint", user_input=story)
            reply = ask(net.validators[0], net.miners[0].hotkey.ss58_address, endpoint, request)
            response = parse_response(reply.body)
            show_story(response)
            step("4", "what the validator checked")
            show_checks(net, request, reply, response)
            step("5", "what the miner refused")
            show_refusals(net, endpoint, request, reply.nonce_ns)
            step(
                "6",
                "a second miner joins: it runs a coarser file (Q2_K) and claims the same; the validator replays both",
            )
            with miner(net, scratch, "cheat", [sys.executable, str(CHEATS), "impostor"]):
                show_round(net, scratch, story)
            step("7", f"stopped by SIGTERM, exit code {stop(process)}")


def step(number: str, text: str) -> None:
    console.print(Text(f"\n{number} ", style="bold cyan") + Text(text, style="bold"))


@contextmanager
def scratch_directory() -> Iterator[Path]:
    with (
        tempfile.TemporaryDirectory(prefix="storyfi-demo-") as scratch,
        stopping.at_stop(partial(shutil.rmtree, scratch, ignore_errors=True)),
    ):
        yield Path(scratch)


@contextmanager
def child(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that does not outlive this one."""
    process = subprocess.Popen(command, **streams)

    def end() -> None:
        process.kill()
        process.wait()

    try:
        with stopping.at_stop(end):
            yield process
    finally:
        end()


def run(command: list[str], **streams: Any) -> None:
    """A program, to its end; the demo's end if it fails."""
    with child(command, **streams) as process:
        if process.wait():
            sys.exit(process.returncode)


@contextmanager
def miner(
    net: DevNetwork, scratch: Path, name: str = "miner", program: list[str] = PROGRAM
) -> Iterator[subprocess.Popen[bytes]]:
    """`storyfi-lite mine` as its own process, until its port answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec = load_registry().find(MODEL)
    assert isinstance(spec, ModelSpec)
    flags = {
        "--network": net.name, "--wallet": name, "--axon.port": str(port), "--state-dir": str(scratch / name),
        "--model.path": str(Store().path(spec, spec.file(QUANT))), "--threads": THREADS,
    }  # fmt: skip
    log = (scratch / f"{name}.log").open("w+b")
    command = [*program, "mine", *(word for pair in flags.items() for word in pair)]
    with log, child(command, stdout=log, stderr=log) as process:
        wait_until_ready(process, port, log)
        yield process


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    with console.status("loading the model"):
        for _ in range(600):
            if process.poll() is not None:
                log.seek(0)
                sys.exit(f"the miner ended with exit code {process.returncode}:\n{log.read().decode()}")
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
    sys.exit("the miner did not start within two minutes")


async def find_miner(net: DevNetwork) -> tuple[str, int]:
    """The endpoint that the miner published, read from the chain as a validator reads it."""
    session = await connect(net.name, net.validators[0], net.netuid)
    try:
        for _ in range(50):
            axon = session.snapshot.by_hotkey[net.miners[0].hotkey.ss58_address].axon
            if axon:
                return axon
            await session.close()
            await asyncio.sleep(0.2)
            session = await connect(net.name, net.validators[0], net.netuid)
    finally:
        await session.close()
    sys.exit("the miner published no endpoint")


def show_story(response: StoryResponse) -> None:
    story = response.output_data
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # Chinese has no spaces to break at
    for name in ("genre", "tone", "target_audience"):
        table.add_row(name.replace("_", " "), Text(story[name]))
    table.add_row("themes", Text(" · ".join(story["themes"])))
    table.add_row("setting", Text(story["setting"]))
    table.add_row("conflict", Text(story["core_conflict"]))
    subtitle = f"{response.model_name}, {len(response.tokens or [])} tokens in {response.generation_time:.1f} s"
    console.print(Panel(table, title=Text(story["title"], style="bold"), subtitle=subtitle, padding=(1, 2)))
    console.print(
        Text(
            "(135 million parameters write valid JSON, not literature; a GPU runs the real models)",
            style="dim",
        )
    )


def show_checks(net: DevNetwork, request: StoryRequest, reply: Reply, response: StoryResponse) -> None:
    result = verify(request, response)
    for check in result.checks:
        line(check.ok, check.name, check.detail)
    if not result.valid:
        sys.exit(1)
    line(
        reply.elapsed_s <= 30,
        "time",
        f"{reply.elapsed_s:.1f} s by the validator's clock; full marks up to 30 s",
    )
    validator, miner = (wallet.hotkey.ss58_address for wallet in (net.validators[0], net.miners[0]))
    seed = challenge_seed(validator, miner, str(reply.nonce_ns), request.task_type, request.user_input)
    bound = response.proof is not None and response.proof.seed == seed
    line(bound, "seed", "the answer is bound to this validator, miner and request")


def show_refusals(net: DevNetwork, endpoint: tuple[str, int], request: StoryRequest, used_nonce_ns: int) -> None:
    """Five requests that a miner must not answer."""
    body = request.model_dump_json(exclude_none=True).encode()
    validator, miner = net.validators[0], net.miners[0].hotkey.ss58_address

    def signed(receiver: str = miner, nonce_ns: int | None = None) -> dict[str, str]:
        return http_auth.sign(validator, method="POST", path=PATH, body=body, receiver_ss58=receiver, nonce_ns=nonce_ns)

    cases = {
        "forged": (signed(), body.replace(b"sea", b"sky") + b" "),
        "replayed": (signed(nonce_ns=used_nonce_ns), body),
        "stale": (signed(nonce_ns=time.time_ns() - 3_600_000_000_000), body),
        "misaddressed": (signed(receiver=validator.hotkey.ss58_address), body),
        "unsigned": ({}, body),
    }
    for name, (headers, content) in cases.items():
        status = send(endpoint, headers, content)
        line(status in (401, 403), name, f"refused with HTTP {status}")
        if status not in (401, 403):
            sys.exit(1)


def show_round(net: DevNetwork, scratch: Path, story: str) -> None:
    """One round of `storyfi-lite validate`. The packaged policy wants several replays before it pays or punishes; here one
    decides."""
    policy = DEFAULT_POLICY.read_text().replace("proven_needed: 3", "proven_needed: 1")
    (scratch / "policy.yaml").write_text(policy.replace("refuted_needed: 2", "refuted_needed: 1"))
    (scratch / "inputs.txt").write_text(f"{story}\n", encoding="utf-8")
    flags = ["--inputs", str(scratch / "inputs.txt")]
    flags += [
        "--rounds",
        "1",
        "--threads",
        THREADS,
        "--timeout",
        "300",
        "--reward-policy",
        str(scratch / "policy.yaml"),
    ]
    command = [*PROGRAM, "validate", "--network", net.name, "--state-dir", str(scratch), *flags]
    with (scratch / "validate.log").open("w+b") as log:
        run(command, stderr=log)
        log.seek(0)
        if b"nobody answered" in log.read():
            raise Busy("nobody answered")


def send(endpoint: tuple[str, int], headers: dict[str, str], body: bytes) -> int:
    return httpx.post(
        f"http://{endpoint[0]}:{endpoint[1]}{PATH}", headers=headers, content=body, timeout=60
    ).status_code


def line(ok: bool, name: str, detail: str) -> None:
    console.print(Text(f"  {'✓' if ok else '✗'} {name:<13}", style="green" if ok else "red") + Text(detail))


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60)


if __name__ == "__main__":
    try:
        main()
    except Busy:
        sys.exit(
            "error: the miner refused: by its measured speed the answer would have been late on this machine\n"
            "  scripts/demo   again, when other programs leave the CPU alone"
        )
    except LiteError as error:
        sys.exit(f"error: {error}")
    finally:
        stopping.finish()
