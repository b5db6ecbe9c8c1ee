"""Defines what the rest of the program sees of the chain: frozen values. It imports no bittensor and uses no network.

A `MetagraphSnapshot` is the last state that was read, with the time when it was read. A snapshot never changes: a newer one
takes its place, so a request that holds a snapshot sees one consistent state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType


@dataclass(frozen=True)
class SubnetIdentity:
    """Holds what the owner of a subnet published about it (identity.py)."""

    name: str = "unnamed"
    url: str = ""

    def __str__(self) -> str:
        return f"{self.name!r}" + (f" ({self.url})" if self.url else "")


@dataclass(frozen=True)
class Neuron:
    """Describes one registered hotkey of the subnet, as the chain's metagraph gives it.

    `stake_tao` is the chain's total stake of this hotkey on this subnet (alpha plus weighted TAO): the figure
    that validator permits are ranked by. `axon` is the published (ip, port), None if nothing is published.
    `incentive` is a fraction, 0 to 1.
    """

    uid: int
    hotkey_ss58: str
    stake_tao: float
    validator_permit: bool
    axon: tuple[str, int] | None
    incentive: float


@dataclass(frozen=True)
class MetagraphSnapshot:
    """Holds the subnet's state at one block. `taken_at_s`: time.monotonic() when the chain was first seen at this block."""

    block: int
    taken_at_s: float
    neurons: tuple[Neuron, ...]
    identity: SubnetIdentity = SubnetIdentity()

    @cached_property
    def by_hotkey(self) -> Mapping[str, Neuron]:
        return MappingProxyType({neuron.hotkey_ss58: neuron for neuron in self.neurons})


@dataclass(frozen=True)
class ChainHealth:
    """Says how the chain connection does. `height` and `age_s` are those of the snapshot in use; None without one.

    `connected` says whether the last call to the chain succeeded. `detail` is one line for the operator.
    """

    connected: bool
    height: int | None
    age_s: float | None
    detail: str


@dataclass(frozen=True)
class WriteResult:
    """Says what came of a write to the chain. True in a condition if the chain took the write.

    `code` is "ok", "unavailable", "timeout" (the outcome is not known) or
    bittensor's ErrorCode value, such as "rate_limited". `mode` is "set" or "committed" for weights
    (committed: the chain reveals them by itself at drand round `reveal_round`), else "". `block` is the
    including block where known.
    """

    ok: bool
    code: str
    message: str
    mode: str = ""
    block: int | None = None
    reveal_round: int | None = None

    def __bool__(self) -> bool:
        return self.ok
