"""Today's validator, for tests/test_dendrite.py and test_peers.py: runs under the interpreter of bittensor 10.5.0 or 9.12.2,
never under ours.

Reads one JSON command a line (what to ask, with which client class), prints one JSON line with what the real
dendrite made of the answer. `Upstream` has the fields and defaults that the subnet's 3.2.0 synapse declares, `Upstream321` those
of 3.2.1; `Protected` also declares which fields its body hash covers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, ClassVar

import bittensor as bt
from bittensor.core.chain_data import AxonInfo
from bittensor.core.dendrite import Dendrite
from bittensor.utils import networking
from bittensor_wallet import Keypair
from pydantic import Field

networking.get_external_ip = lambda: "10.1.2.3"  # it would ask the internet


class Upstream(bt.Synapse):
    protocol_version: str = "3.2.0"
    task_type: str = ""
    user_input: str = ""
    blueprint: dict[str, Any] | None = None
    characters: dict[str, Any] | None = None
    story_arc: dict[str, Any] | None = None
    chapter_ids: list[int] | None = None
    output_data: dict[str, Any] | None = None
    generation_time: float = 0.0
    miner_version: str = ""
    model_info: dict[str, Any] | None = Field(default_factory=lambda: {"mode": "unknown", "name": "unknown"})
    miner_hotkey: str | None = None
    validator_hotkey: str | None = None

    def deserialize(self) -> dict[str, Any] | None:
        return self.output_data


class Upstream321(Upstream):
    protocol_version: str = "3.2.1"
    characters: list[dict[str, Any]] | None = None  # type: ignore[assignment]
    model_info: dict[str, Any] | None = None


class Protected(Upstream):
    required_hash_fields: ClassVar[tuple[str, ...]] = (
        "task_type",
        "user_input",
        "blueprint",
        "characters",
        "story_arc",
        "chapter_ids",
    )


CLASSES = {}
for name, base in {"upstream": Upstream, "3.2.1": Upstream321, "protected": Protected}.items():
    CLASSES[name] = type("StoryGenerationSynapse", (base,), {"__module__": __name__})


async def ask(dendrite: Dendrite, command: dict[str, Any]) -> dict[str, Any]:
    """One call of the real client; `age_s` and `nonce` shift or fix its clock."""
    synapse = CLASSES[command.get("class", "upstream")](**command["fields"])
    axon = AxonInfo(4, "127.0.0.1", command["port"], 4, command["miner"], command["miner"])
    clock = time.time_ns
    time.time_ns = lambda: command.get("nonce") or clock() - int(command.get("age_s", 0) * 10**9)
    try:
        answer = await dendrite.call(axon, synapse, timeout=command.get("timeout", 20.0), deserialize=False)
    finally:
        time.time_ns = clock
    return {
        "status": answer.dendrite.status_code,
        "message": answer.dendrite.status_message,
        "nonce": answer.dendrite.nonce,
        "success": answer.is_success,
        "blacklisted": answer.is_blacklist,
        "unverified": answer.failed_verification,
        "timed_out": answer.is_timeout,
        "axon_hotkey": answer.axon.hotkey,
        "dendrite_hotkey": answer.dendrite.hotkey,
        "deserialized": answer.deserialize(),
        "synapse": answer.model_dump(exclude={"dendrite", "axon"}),
    }


async def main() -> None:
    dendrites: dict[str, Dendrite] = {}
    print(json.dumps({"bittensor": bt.__version__}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):  # a blocked loop would keep connections open
        command = json.loads(line)
        uri = command.get("key", "//Validator")
        if uri not in dendrites:
            dendrites[uri] = Dendrite(Keypair.create_from_uri(uri))
        print(json.dumps(await ask(dendrites[uri], command)), flush=True)
    for dendrite in dendrites.values():
        await dendrite.aclose_session()


asyncio.run(main())
