"""What --network may say, and how a client for it is made.

test | finney | local         the networks that bittensor knows, with the fallback endpoints that it knows
ws://… | wss://…              one endpoint
dev | dev:DIRECTORY           the dev chain of dev.py, in DIRECTORY or the user's state directory
A,B,…                         tried in turn (not with dev)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import platformdirs

from storyfi_lite.errors import BadInput

if TYPE_CHECKING:
    from bittensor import Client


DEFAULT_NETUID = 108


class Endpoint(Protocol):
    """A place to reach the chain at. `label` is safe to print."""

    @property
    def label(self) -> str: ...

    def client(self) -> Client:
        """A new client, not connected. May block for a moment."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class RpcEndpoint:
    """A websocket endpoint, or a network's name. The session rotates, so the client gets no pool."""

    network: str

    @property
    def label(self) -> str:
        return printable(self.network)

    def client(self) -> Client:
        from bittensor import Client

        return Client(self.network, fallback_endpoints=[], archive_endpoints=[])

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class DevEndpoint:
    """The dev chain: hosted by this process if nobody else does."""

    directory: Path
    label: str = "dev"
    _servers: list[Any] = field(default_factory=list)

    def client(self) -> Client:
        from bittensor import Client

        from storyfi_lite.devchain.substrate import DevSubstrate, dev_network

        net = dev_network(self.directory)
        if net.server is not None:
            self._servers.append(net.server)
        return Client("local", substrate=DevSubstrate(self.directory))

    def close(self) -> None:
        while self._servers:
            self._servers.pop().close()


def dev_directory(network: str) -> Path | None:
    """Where the dev chain of this network name lives; None for every other network."""
    name, _, directory = network.partition(":")
    if name != "dev":
        return None
    return Path(directory) if directory else Path(platformdirs.user_state_dir("storyfi-lite")) / "dev"


def printable(network: str) -> str:
    """One network's name as it may be shown: of a URL the scheme, host and port, for user, path and query may hold a
    provider's key."""
    if "://" not in network:
        return network
    try:
        parts = urlsplit(network)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # brackets or a port that are none
        return f"{network.partition(':')[0]}://…"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}" + (f":{port}" if port else "")


def _is_endpoint(name: str) -> bool:
    try:
        parts = urlsplit(name)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def default_netuid(network: str) -> int:
    """StoryFi's subnet where its number is known: on the dev chain and, as of November 2025, on the test network. Raises
    BadInput for every other network: there a number of yesterday may be a stranger's today."""
    if network.partition(",")[0] == "test" or dev_directory(network) is not None:
        return DEFAULT_NETUID
    raise BadInput(
        f"--netuid is missing: StoryFi's number on {printable(network)} is not known here, and it has changed before\n"
        f"  btcli subnets list --network {printable(network)}   shows names and numbers"
    )


def is_public(network: str) -> bool:
    """Whether what is published there must be reachable from the internet: all but the plainly local."""
    return not all(_is_local(name.strip()) for name in network.split(","))


def _is_local(name: str) -> bool:
    host = urlsplit(name).hostname if _is_endpoint(name) else None
    if name == "local" or host == "localhost" or dev_directory(name) is not None:
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def endpoints(networks: str | Sequence[str]) -> list[Endpoint]:
    """The endpoints of one or several comma lists, in the order in which they are tried. Raises BadInput."""
    given = [networks] if isinstance(networks, str) else networks
    names = [name.strip() for value in given for name in value.split(",") if name.strip()]
    if not names:
        raise BadInput("no network is named\n  --network test")
    directory = dev_directory(names[0])
    if directory is not None and len(names) == 1:
        return [DevEndpoint(directory)]
    from bittensor.settings import NETWORKS, default_fallback_endpoints

    found: dict[str, Endpoint] = {}
    for name in names:
        if name not in NETWORKS and not _is_endpoint(name):
            known = ", ".join(["dev (alone)", *sorted(NETWORKS), "ws://HOST:PORT"])
            raise BadInput(f"unknown network {printable(name)!r}; known: {known}")
        found[name] = RpcEndpoint(name)
    for name in names:  # after all that the operator named
        for url in default_fallback_endpoints(name):
            found.setdefault(url, RpcEndpoint(url))
    return list(found.values())
