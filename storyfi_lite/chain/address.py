"""Finds the address that validators shall call: the one that is given, a DNS name's, or this machine's own.

It never asks a third party ("what is my address?"). A DNS name, of a dynamic-DNS service for example, follows an address
behind NAT that changes: it is looked up again before every comparison with the chain.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from storyfi_lite.chain.networks import dev_directory, is_public
from storyfi_lite.errors import ConfigError, Unavailable

LOOKUP_TIMEOUT_S = 10.0


async def external_ip(given: str | None, network: str) -> str:
    """Return the IP address to publish on `network`, in its usual notation.

    `given` is an address, a DNS name or None for this machine's own. Raises ConfigError if there is none, or if validators on a
    public network cannot reach it; Unavailable if a name cannot be looked up now.
    """
    if given is None:
        found = own_ip() if dev_directory(network) is None else "127.0.0.1"
    else:
        found = await _look_up(given)
    address = ipaddress.ip_address(found)
    if address.is_unspecified or (is_public(network) and not address.is_global):
        whose = "this machine's own address" if given is None else f"--axon.external_ip {given}"
        raise ConfigError(
            f"{whose} is {found}, which validators on the internet cannot reach (NAT?)\n"
            "  --axon.external_ip ADDRESS   the router's public address, or a DNS name that follows it"
        )
    return str(address)


async def _look_up(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        loop = asyncio.get_running_loop()
        found = await asyncio.wait_for(loop.getaddrinfo(name, None, type=socket.SOCK_STREAM), LOOKUP_TIMEOUT_S)
    except (OSError, UnicodeError, asyncio.TimeoutError) as error:
        raise Unavailable(f"--axon.external_ip {name} cannot be looked up: {error or 'no answer'}") from error
    ips = [str(entry[4][0]) for entry in found]
    return next((ip for ip in ips if ":" not in ip), ips[0])  # IPv4 first: not every validator has IPv6


def own_ip() -> str:
    """Return the address of the interface that leads to the internet. Connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1, RFC 5737
        except OSError as error:
            raise ConfigError(
                f"this machine has no way to the internet ({error})\n  --axon.external_ip ADDRESS"
            ) from error
        return str(probe.getsockname()[0])
