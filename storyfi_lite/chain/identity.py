"""Which subnet this is: what its owner says of it on chain, and whether that is StoryFi.

A number says nothing: subnets are sold and numbers given to others. Nor does a name prove anything, since any owner may choose
any; it keeps an honest mistake from paying a stranger's registration fee. Pure but for the one read.
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
    """Anybody may write anything there: text is cut and stripped of control characters. An owner who published nothing has an
    unnamed subnet."""
    said = await client.subnets.subnet_identity(netuid) or {}
    name, repository, url = (_plain(said.get(key)) for key in ("subnet_name", "github_repo", "subnet_url"))
    return SubnetIdentity(name or SubnetIdentity.name, repository or url)


def check_subnet(identity: SubnetIdentity, netuid: int, network: str, known: str | None) -> None:
    """Raises ConfigError unless the subnet is called StoryFi, or `known`, a name that the operator stands for."""
    words = re.findall(r"[a-z0-9]+", identity.name.casefold())
    if NAMES.intersection(words) or identity.name == known:
        return
    raise ConfigError(
        f"subnet {netuid} of {printable(network)} calls itself {identity}: that is not StoryFi\n"
        f"  btcli subnets list --network {printable(network)}   has StoryFi's number, for --netuid\n"
        f"  --i-know-this-subnet {identity.name!r}   if this is the subnet that you mean"
    )


def _plain(text: object) -> str:
    return "".join(char for char in str(text or "") if char.isprintable()).strip()[:80]
