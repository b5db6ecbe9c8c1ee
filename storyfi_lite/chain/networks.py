"""Turns the value of --network into endpoints, each of which makes clients.

test | finney | local         the networks that bittensor knows, with the fallback endpoints that it knows
ws://… | wss://…              one endpoint
dev | dev:DIRECTORY           the dev chain (devchain/), in DIRECTORY or the user's state directory
A,B,…                         tried in turn (not with dev)
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import platformdirs

from storyfi_lite.errors import BadInput
from storyfi_lite.options import is_url

if TYPE_CHECKING:
    from bittensor import Client

DEFAULT_NETUID = 108
_SCHEMES = ("ws", "wss")


class Endpoint(Protocol):
    """Makes clients for one address of the chain. `label` is safe to print."""

    @property
    def label(self) -> str: ...

    def client(self) -> Client:
        """Make a new client, not connected. May block for a moment."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class RpcEndpoint:
    """Makes clients for a websocket URL or a network's name, each without fallbacks: the session itself rotates endpoints."""

    network: str

    @property
    def label(self) -> str:
        return printable(self.network)

    def client(self) -> Client:
        from bittensor import Client

        return Client(self.network, fallback_endpoints=[], archive_endpoints=[])

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


@dataclass
class DevEndpoint:
    """Makes clients for the dev chain, and hosts that chain in this process if no other process does."""

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
    """Return the directory of the dev chain that `network` names; None for every other network."""
    name, _, directory = network.partition(":")
    if name != "dev":
        return None
    return Path(directory) if directory else Path(platformdirs.user_state_dir("storyfi-lite")) / "dev"


def printable(network: str) -> str:
    """Return one network's name in a form that is safe to show: a URL keeps its scheme, host and port; user, path and query may
    hold a provider's key and are dropped."""
    if "://" not in network:
        return network
    try:
        parts = urlsplit(network)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # malformed brackets or port
        return f"{network.partition(':')[0]}://…"
    return f"{parts.scheme}://{url_host(host)}" + (f":{port}" if port else "")


def url_host(host: str) -> str:
    """Return the host as a URL writes it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def default_netuid(network: str) -> int:
    """Return StoryFi's subnet number on the dev chain and, as of November 2025, the test network. Raises BadInput for every
    other network: there, yesterday's number may belong to another subnet today."""
    if network.partition(",")[0] == "test" or dev_directory(network) is not None:
        return DEFAULT_NETUID
    raise BadInput(
        f"--netuid is missing: StoryFi's number on {printable(network)} is not known here, and it has changed before\n"
        f"  btcli subnets list --network {printable(network)}   shows names and numbers"
    )


def is_public(network: str) -> bool:
    """Return whether endpoints published on `network` must be reachable from the internet; False for local networks only."""
    return not all(_is_local(name.strip()) for name in network.split(","))


def _is_local(name: str) -> bool:
    host = urlsplit(name).hostname if is_url(name, _SCHEMES) else None
    if name == "local" or host == "localhost" or dev_directory(name) is not None:
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def endpoints(network: str) -> list[Endpoint]:
    """Return the endpoints in the order in which they are tried. Raises BadInput."""
    names = [name.strip() for name in network.split(",") if name.strip()]
    if not names:
        raise BadInput("no network is named\n  --network test")
    directory = dev_directory(names[0])
    if directory is not None and len(names) == 1:
        return [DevEndpoint(directory)]
    from bittensor.settings import NETWORKS, default_fallback_endpoints

    found: dict[str, Endpoint] = {}
    for name in names:
        if name not in NETWORKS and not is_url(name, _SCHEMES):
            known = ", ".join(["dev (alone)", *sorted(NETWORKS), "ws://HOST:PORT"])
            raise BadInput(f"unknown network {printable(name)!r}; known: {known}")
        found[name] = RpcEndpoint(name)
    for name in names:  # after all that the operator named
        for url in default_fallback_endpoints(name):
            found.setdefault(url, RpcEndpoint(url))
    return list(found.values())
