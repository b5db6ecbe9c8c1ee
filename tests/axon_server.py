"""A miner of today, for tests/test_rounds.py: the real axon of bittensor 10.5.0, under its own interpreter, never under ours.

Answers every StoryGenerationSynapse with the story given as JSON on the command line, in protocol 3.2.0. Prints its hotkey and
port, then serves until its standard input ends.
"""

from __future__ import annotations

import json
import socket
import sys
from types import SimpleNamespace
from typing import Any

import bittensor as bt
from bittensor_wallet import Keypair
from pydantic import Field


class StoryGenerationSynapse(bt.Synapse):
    protocol_version: str = "3.2.0"
    task_type: str = ""
    user_input: str = ""
    blueprint: dict[str, Any] | None = None
    characters: Any = None
    story_arc: dict[str, Any] | None = None
    chapter_ids: list[int] | None = None
    output_data: dict[str, Any] | None = None
    generation_time: float = 0.0
    miner_version: str = ""
    model_info: dict[str, Any] = Field(default_factory=lambda: {"mode": "unknown", "name": "unknown"})


def main() -> None:
    story = json.loads(sys.argv[1])
    heard: list[str] = []

    def forward(synapse: StoryGenerationSynapse) -> StoryGenerationSynapse:
        heard.append(synapse.user_input)
        synapse.output_data = {**story, "title": synapse.user_input}
        synapse.generation_time, synapse.miner_version = 0.5, "3.2.0"
        synapse.model_info = {"mode": "local", "name": "llama-3-8b", "version": "1", "provider": "vllm"}
        return synapse

    forward.__annotations__ = {"synapse": StoryGenerationSynapse, "return": StoryGenerationSynapse}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wallet = SimpleNamespace(hotkey=Keypair.create_from_uri("//Axon"), coldkeypub=Keypair.create_from_uri("//Axon"))
    axon = bt.Axon(wallet=wallet, port=port, ip="127.0.0.1", external_ip="127.0.0.1", external_port=port)
    axon.attach(forward_fn=forward).start()
    print(json.dumps({"hotkey": wallet.hotkey.ss58_address, "port": port}), flush=True)
    sys.stdin.read()
    axon.stop()


if __name__ == "__main__":
    main()
