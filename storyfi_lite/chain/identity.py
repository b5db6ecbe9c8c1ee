"""Reads what a subnet's owner says of it on chain, and checks that the subnet is StoryFi.

A number says nothing: subnets are sold and numbers given to others. A name proves nothing either, since an owner may choose any
name; but it keeps an operator who mistyped the number from paying a stranger's registration fee.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from storyfi_lite.chain.networks import printable
from storyfi_lite.chain.types import SubnetIdentity
from storyfi_lite.errors import ConfigError

if TYPE_CHECKING:
    from bittensor import Client

NAMES = frozenset({"storyfi", "storynet", "storynetai"})  # StoryFi calls itself StoryNet since 2026


async def read_identity(client: Client, netuid: int) -> SubnetIdentity:
    """Read the identity that the owner published, "unnamed" if there is none. The text is a stranger's, so it is cut and
    stripped of control characters."""
    said = await client.subnets.subnet_identity(netuid) or {}
    name, repository, url = (
        "".join(char for char in str(said.get(key) or "") if char.isprintable()).strip()[:80]
        for key in ("subnet_name", "github_repo", "subnet_url")
    )
    return SubnetIdentity(name or SubnetIdentity.name, repository or url)


def check_subnet(identity: SubnetIdentity, netuid: int, network: str, known: str | None) -> None:
    """Raise ConfigError unless the subnet is called StoryFi, or `known`, the name that the operator gave."""
    words = re.findall(r"[a-z0-9]+", identity.name.casefold())
    if NAMES.intersection(words) or identity.name == known:
        return
    raise ConfigError(
        f"subnet {netuid} of {printable(network)} calls itself {identity}: that is not StoryFi\n"
        f"  btcli subnets list --network {printable(network)}   has StoryFi's number, for --netuid\n"
        f"  --i-know-this-subnet {identity.name!r}   if this is the subnet that you mean"
    )
