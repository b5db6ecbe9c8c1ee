"""Reads the chain (who is registered with what stake, where miners listen) and writes endpoints and weights to it.

The miner and the validator use these names; every other name in this package is an implementation detail:

    wallet = open_wallet("test", "miner", "default")         # raises ConfigError with the btcli command
    session = await connect("test", wallet, netuid=108)      # raises ConfigError (another subnet, not registered), …
    await session.start()                                    # background refresh; never blocks an answer
    session.snapshot.by_hotkey.get(hotkey_ss58)              # Neuron | None, O(1), the last known state
    session.health()                                         # ChainHealth(connected, height, age_s, detail)
    await session.publish_axon(address, port)                # True if it had to write
    await session.set_weights({uid: weight})                 # WriteResult
    await session.close()

Importing this package loads no bittensor. It knows nothing of stories.
"""

from __future__ import annotations

from storyfi_lite.chain.session import ChainSession, Timing, connect
from storyfi_lite.chain.types import ChainHealth, MetagraphSnapshot, Neuron, WriteResult
from storyfi_lite.chain.wallets import open_wallet

__all__ = [
    "ChainHealth",
    "ChainSession",
    "MetagraphSnapshot",
    "Neuron",
    "Timing",
    "WriteResult",
    "connect",
    "open_wallet",
]
