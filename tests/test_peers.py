"""The network's other software and ours, both ways, as tests/peers/ says: its miners asked by our validator, its validators'
requests answered by our miner; over the real axon and dendrite of bittensor 10.5 and, marked slow, 9.12."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storyfi_lite import tasks
from storyfi_lite.errors import Unavailable
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.rounds.query import NO_WIRE, Reply, ask
from storyfi_lite.tasks.base import language_of
from storyfi_lite.validator.score import Context, score
from storyfi_lite.validator.verify import verify
from tests.dendrite_process import (
    MISSING,
    OLD_MISSING,
    OLD_PYTHON,
    PYTHON,
    DendriteProcess,
    axon_process,
    dendrite_process,
)
from tests.miner_server import BLUEPRINT, MINER, VALIDATOR, Running, make_miner, running
from tests.stories import example, request_for

PEERS = Path(__file__).with_name("peers")
MINERS: list[dict[str, Any]] = json.loads((PEERS / "miners.json").read_text())
VALIDATORS: list[dict[str, Any]] = json.loads((PEERS / "validators.json").read_text())
ASKED = [(one["protocol"], task) for one in VALIDATORS for task in one["requests"]]
STORIES = {task: example(tasks.get(task).schema_of(request_for(task))) for task in tasks.TASKS}
WALLET: Any = SimpleNamespace(hotkey=VALIDATOR)
CLASSES = {"3.2.0": "upstream", "3.2.1": "3.2.1"}
VERSIONS = [
    pytest.param((PYTHON, MISSING), id="10.5"),
    pytest.param((OLD_PYTHON, OLD_MISSING), id="9.12", marks=pytest.mark.slow),
]


def python(param: tuple[Path, str]) -> Path:
    if not param[0].exists():
        pytest.skip(param[1])
    return param[0]


@pytest.fixture(scope="module", params=VERSIONS)
def axons(request: pytest.FixtureRequest) -> Iterator[dict[str, tuple[str, int]]]:
    with axon_process(STORIES, python(request.param)) as found:
        yield found


@pytest.fixture(scope="module", params=VERSIONS)
def client(request: pytest.FixtureRequest) -> Iterator[DendriteProcess]:
    with dendrite_process(python(request.param)) as process:
        yield process


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(make_miner(tmp_path)) as found:
        yield found


# --- their miners, our validator -------------------------------------------------------------------------------------


def ask_when_up(where: tuple[str, int], request: StoryRequest, wire: str = NO_WIRE) -> Reply:
    end_s = time.monotonic() + 30
    while True:
        try:
            return ask(WALLET, where[0], ("127.0.0.1", where[1]), request, wire=wire)
        except Unavailable as error:
            assert time.monotonic() < end_s, error
            time.sleep(0.1)


@pytest.mark.parametrize("miner", MINERS, ids=lambda miner: miner["name"])
def test_what_a_miner_says_of_itself_is_understood_and_refuses_no_story(
    axons: dict[str, tuple[str, int]], miner: dict[str, Any]
) -> None:
    request = request_for("blueprint", "一个关于深海灯塔的故事")
    reply = ask_when_up(axons[miner["name"]], request)
    seen = verify(request, reply.body)
    assert seen.valid and seen.response is not None, seen.problems
    claim = seen.response
    assert [claim.model_info.mode, claim.miner_mode, claim.model_name] == miner["understood"]
    assert claim.output_data == STORIES["blueprint"]
    parts = {part.name: part for part in score(seen, Context(request, 5.0)).parts}
    assert parts["schema"].points == parts["time"].points == 10


@pytest.mark.parametrize("protocol", CLASSES)
def test_every_task_reaches_a_miner_of_either_protocol(axons: dict[str, tuple[str, int]], protocol: str) -> None:
    """Each protocol's class refuses the other's form of `characters`. What answered is remembered and asked first."""
    where, wire = axons[next(miner["name"] for miner in MINERS if miner["protocol"] == protocol)], NO_WIRE
    for task in tasks.TASKS:
        request = request_for(task)
        reply = ask_when_up(where, request, wire)
        assert verify(request, reply.body).valid
        wire = reply.wire
    assert wire == {"3.2.0": "dendrite", "3.2.1": "dendrite-3.2.1"}[protocol]


def test_a_miner_that_shows_our_protocol_is_asked_over_btauth_from_then_on(server: Running) -> None:
    reply = ask(WALLET, MINER.ss58_address, ("127.0.0.1", server.port), request_for("blueprint"), wire=NO_WIRE)
    assert reply.wire == "btauth"


# --- their validators, our miner -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "task"), ASKED)
def test_a_validators_request_is_answered(client: DendriteProcess, server: Running, protocol: str, task: str) -> None:
    given = next(one["requests"][task] for one in VALIDATORS if one["protocol"] == protocol)
    fields = {"task_type": task, **given}
    answer = client.ask(server.port, MINER.ss58_address, fields, **{"class": CLASSES[protocol]})
    assert (answer["status"], answer["success"]) == (200, True)
    assert answer["deserialized"] == BLUEPRINT  # whatever the task: the loader is scripted
    synapse = answer["synapse"]
    assert synapse["protocol_version"] == protocol
    assert {key: synapse[key] for key in fields} == fields  # the client overwrites its own fields with what came back
    assert synapse["model_info"]["mode"] == "local"
    heard = server.loader.jobs[0].request
    five = given.get("characters")
    assert heard.characters == ({"characters": five} if isinstance(five, list) else five)
    assert heard.model_dump(include={"user_input", "blueprint", "story_arc", "chapter_ids"}, exclude_none=True) == {
        key: value for key, value in given.items() if key != "characters"
    }
    task_of = tasks.get(task)
    assert task_of.messages(heard).user and task_of.constraint(heard).sha256  # it can be written, too


def test_their_prompts_are_read_as_chinese() -> None:
    prompts = [one["requests"][task]["user_input"] for one in VALIDATORS for task in one["requests"]]
    assert all(language_of(prompt) == "zh" for prompt in prompts)
