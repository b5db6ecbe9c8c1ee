"""The dendrite wire, judged by the real client: bittensor 10.5.0 in its own environment, over loopback."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storyfi_lite.wire.http_status import PUBLIC_TEXT
from tests.dendrite_process import MISSING, PYTHON, DendriteProcess, dendrite_process
from tests.miner_server import BLUEPRINT, MINER, STRANGER, VALIDATOR, Running, make_miner, running, until

CHARACTERS = [{"id": "protagonist", "name": "林", "archetype": "守望者"}]
TASKS: dict[str, dict[str, Any]] = {
    "blueprint": {},
    "characters": {"blueprint": BLUEPRINT},
    "story_arc": {"blueprint": BLUEPRINT, "characters": {"characters": CHARACTERS}},
    "chapters": {
        "blueprint": BLUEPRINT,
        "characters": {"characters": CHARACTERS},
        "story_arc": {"title": "灯塔", "chapters": [{"id": 1, "storyProgress": 0.05}]},
        "chapter_ids": [1, 2],
    },
}


class Client:
    """The real dendrite, calling one of the tests' miners."""

    def __init__(self, process: DendriteProcess) -> None:
        self._process = process
        self.version = process.version

    def ask(self, port: int, task: str = "blueprint", text: str = "a tale", **command: Any) -> dict[str, Any]:
        fields = {"task_type": task, "user_input": text, **TASKS.get(task, {}), **command.pop("fields", {})}
        return self._process.ask(port, command.pop("miner", MINER.ss58_address), fields, **command)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    if not PYTHON.exists():
        pytest.skip(MISSING)
    with dendrite_process() as process:
        yield Client(process)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(make_miner(tmp_path)) as found:
        yield found


@contextlib.contextmanager
def on_the_way(port: int, change: Callable[[bytes], bytes] = lambda data: data) -> Iterator[tuple[int, list[bytes]]]:
    """A man in the middle, who may `change` what he hears. Yields his port and what he heard."""
    heard: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data = self.request.recv(65_536)
            head, _, body = data.partition(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            while len(body) < length:
                body += self.request.recv(65_536)
            heard.append(head + b"\r\n\r\n" + body)
            self.request.sendall(send_raw(port, change(heard[-1])))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        yield proxy.server_address[1], heard
        proxy.shutdown()
        thread.join()


def send_raw(port: int, data: bytes) -> bytes:
    """The bytes of the answer; the connection is closed by asking for it."""
    head, _, body = data.partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_the_judge_is_the_version_that_validators_run(client: Client) -> None:
    assert client.version == "10.5.0"


@pytest.mark.parametrize("cls", ["upstream", "protected"])
@pytest.mark.parametrize("task", TASKS)
def test_all_four_tasks(client: Client, server: Running, task: str, cls: str) -> None:
    answer = client.ask(server.port, task, "灯塔 — a “tale”\n", **{"class": cls})
    assert (answer["status"], answer["success"]) == (200, True)
    synapse = answer["synapse"]
    assert synapse["output_data"] == BLUEPRINT  # whatever the task: the loader is scripted
    assert synapse["model_info"]["name"] == "smollm2-135m"
    assert synapse["miner_version"].startswith("storyfi-lite ")
    assert synapse["protocol_version"] == "3.2.0"
    assert synapse["generation_time"] == 0.25
    assert (synapse["task_type"], synapse["user_input"]) == (task, "灯塔 — a “tale”\n")
    assert {key: synapse[key] for key in TASKS[task]} == TASKS[task]
    assert answer["axon_hotkey"] == MINER.ss58_address
    assert answer["dendrite_hotkey"] == VALIDATOR.ss58_address
    request = server.loader.jobs[0].request
    assert request.model_dump(include=set(TASKS[task])) == TASKS[task]


def test_its_time_out_frees_the_slot(client: Client, server: Running) -> None:
    answer = client.ask(server.port, text="hang", timeout=0.4)
    assert answer["timed_out"]
    until(lambda: server.loader.futures[0].cancelled())


def test_our_time_out_is_its_time_out(client: Client, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyfi_lite.miner.service.GRACE_S", 0.0)
    object.__setattr__(server.miner.service, "deadline_s", 0.3)
    assert client.ask(server.port, text="hang")["timed_out"]


@pytest.mark.parametrize(
    ("text", "number"), [("busy", 503), ("bad", 400), ("break", 500), ("x" * 10_001, 400), ("", 400)]
)
def test_its_error_statuses(client: Client, server: Running, text: str, number: int) -> None:
    answer = client.ask(server.port, text=text + " " if text in ("busy", "bad", "break") else text)
    assert (answer["status"], answer["message"]) == (number, PUBLIC_TEXT[number])
    assert not answer["success"]
    assert answer["synapse"]["output_data"] is None


def test_unregistered_is_blacklisted(client: Client, server: Running) -> None:
    answer = client.ask(server.port, key="//Stranger")
    assert answer["blacklisted"] and answer["message"] == "forbidden"
    assert not server.loader.jobs


def test_addressed_to_another_miner(client: Client, server: Running) -> None:
    assert client.ask(server.port, miner=STRANGER.ss58_address)["unverified"]
    assert server.miner.metrics.refused_by_reason == {"wrong_receiver": 1}


def test_forged_in_a_validators_name(client: Client, server: Running) -> None:
    def forge(data: bytes) -> bytes:
        return data.replace(STRANGER.ss58_address.encode(), VALIDATOR.ss58_address.encode())

    with on_the_way(server.port, forge) as (port, _):
        assert client.ask(port, key="//Stranger")["unverified"]
    assert server.miner.metrics.refused_by_reason == {"bad_signature": 1}


def test_a_body_that_was_changed_is_seen_where_the_class_hashes_it(client: Client, server: Running) -> None:
    with on_the_way(server.port, lambda data: data.replace(b"a tale", b"A TALE")) as (port, _):
        assert client.ask(port, **{"class": "protected"})["unverified"]
        assert server.miner.metrics.refused_by_reason == {"body_changed": 1}
        # upstream's class covers nothing: the limit that wire/dendrite.py states
        assert client.ask(port)["success"]
    assert [job.request.user_input for job in server.loader.jobs] == ["A TALE"]


def test_a_body_hash_that_was_changed_too(client: Client, server: Running) -> None:
    def change(data: bytes) -> bytes:
        head, _, body = data.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"computed_body_hash")]
        return b"\r\n".join([*lines, b"computed_body_hash: " + b"0" * 64]) + b"\r\n\r\n" + body

    with on_the_way(server.port, change) as (port, _):
        assert client.ask(port)["unverified"]
    assert server.miner.metrics.refused_by_reason == {"bad_signature": 1}


def test_a_replay_is_refused_also_after_a_restart(client: Client, tmp_path: Path) -> None:
    with running(make_miner(tmp_path)) as first, on_the_way(first.port) as (port, heard):
        assert client.ask(port)["success"]
        assert status(send_raw(first.port, heard[0])) == 401
        assert first.miner.metrics.refused_by_reason == {"replayed": 1}
    with running(make_miner(tmp_path)) as second:
        assert status(send_raw(second.port, heard[0])) == 401
        assert second.miner.metrics.refused_by_reason == {"replayed": 1}


@pytest.mark.parametrize("age_s", [70, 3_600, -10])
def test_stale_whatever_the_unsigned_headers_say(client: Client, server: Running, age_s: int) -> None:
    """The 10.5 axon takes an hour-old request with an old version or a long time-out and an empty nonce
    table."""
    with on_the_way(server.port) as (port, heard):
        assert client.ask(port, age_s=age_s, timeout=7_200)["unverified"]
    version = next(line for line in heard[0].split(b"\r\n") if line.startswith(b"bt_header_dendrite_version"))
    assert status(send_raw(server.port, heard[0].replace(version, b"bt_header_dendrite_version: 700"))) == 401
    assert server.miner.metrics.refused_by_reason == {"stale": 2}


def test_unsigned(client: Client, server: Running) -> None:
    def strip(data: bytes) -> bytes:
        head, _, body = data.partition(b"\r\n\r\n")
        kept = [line for line in head.split(b"\r\n") if not line.startswith(b"bt_header_dendrite_signature")]
        return b"\r\n".join(kept) + b"\r\n\r\n" + body

    with on_the_way(server.port, strip) as (port, _):
        assert client.ask(port)["unverified"]
    assert server.miner.metrics.refused_by_reason == {"malformed_headers": 1}
