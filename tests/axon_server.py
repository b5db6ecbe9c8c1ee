"""The network's other miners (peers/miners.json) behind the real axon of bittensor 9 or 10, under its own interpreter.

Each answers every request with the story for its task, given as JSON on the command line, and with what that miner says of
itself. Prints one JSON line, {name: [hotkey, port]}, then serves until its standard input ends.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bittensor as bt
from bittensor.core.axon import Axon
from bittensor_wallet import Keypair
from pydantic import Field

PEERS = json.loads(Path(__file__).with_name("peers").joinpath("miners.json").read_text())


class Common(bt.Synapse):
    task_type: str = ""
    user_input: str = ""
    blueprint: dict[str, Any] | None = None
    story_arc: dict[str, Any] | None = None
    chapter_ids: list[int] | None = None
    output_data: dict[str, Any] | None = None
    generation_time: float = 0.0
    miner_version: str = ""
    miner_hotkey: str | None = None
    validator_hotkey: str | None = None


class Protocol320(Common):
    protocol_version: str = "3.2.0"
    characters: dict[str, Any] | None = None
    model_info: dict[str, Any] = Field(
        default_factory=lambda: {
            "mode": "unknown", "name": "unknown", "version": None, "provider": None, "parameters": {},
        }
    )  # fmt: skip


class Protocol321(Common):
    protocol_version: str = "3.2.1"
    characters: list[dict[str, Any]] | None = None
    model_info: dict[str, Any] | None = None


# The class's name is the path that an axon serves.
CLASSES = {
    version: type("StoryGenerationSynapse", (base,), {"__module__": __name__})
    for version, base in {"3.2.0": Protocol320, "3.2.1": Protocol321}.items()
}


def serve(peer: dict[str, Any], stories: dict[str, Any]) -> Axon:
    def forward(synapse: Any) -> Any:
        synapse.output_data = dict(stories[synapse.task_type])
        synapse.generation_time = 0.5
        for name, value in peer["sets"].items():
            setattr(synapse, name, value)
        if peer["embeds"]:
            synapse.output_data["_model_info"] = synapse.model_info
        return synapse

    synapse = CLASSES[peer["protocol"]]
    forward.__annotations__ = {"synapse": synapse, "return": synapse}
    key = Keypair.create_from_uri(f"//{peer['name']}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wallet = SimpleNamespace(hotkey=key, coldkeypub=key)
    axon = Axon(wallet=wallet, port=port, ip="127.0.0.1", external_ip="127.0.0.1", external_port=port)
    return axon.attach(forward_fn=forward).start()


def main() -> None:
    stories = json.loads(sys.argv[1])
    axons = {peer["name"]: serve(peer, stories) for peer in PEERS}
    where = {name: [axon.wallet.hotkey.ss58_address, axon.port] for name, axon in axons.items()}
    print(json.dumps(where), flush=True)
    sys.stdin.read()
    for axon in axons.values():
        axon.stop()


if __name__ == "__main__":
    main()
