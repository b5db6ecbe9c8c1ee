"""Puts the dev chain of state.py behind bittensor's own `Substrate` protocol, and makes development wallets.

    with dev_network(directory) as net:                      # wallets made, registered, funded, staked
        client = bittensor.Client("local", substrate=DevSubstrate(directory))

Whoever comes first hosts the chain, all others join it. When the host goes, the next one to connect hosts an
empty chain anew and registers the directory's wallets again.

It is for tests, the demo and trying things out. The dev wallets' keys are stored unencrypted: they guard nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bittensor import Balance, ExtrinsicResult, RpcConnectionError, Wallet, calls
from bittensor import ChainError as SdkChainError

from storyfi_lite import files, stopping
from storyfi_lite.devchain.link import MOVED_BY, DevCall, DevChainServer, DevLink
from storyfi_lite.devchain.state import RAO_PER_TAO, ChainRefused, DevChain, DevState
from storyfi_lite.errors import Unavailable

VALIDATOR_STAKE_RAO = 5000 * RAO_PER_TAO


class DevSubstrate:
    """Implements bittensor's `Substrate` over the dev chain. A method that the dev chain lacks raises ChainError with its name."""

    def __init__(self, directory: Path) -> None:
        self.token_symbols: dict[int, str] = {}
        self._link = DevLink(directory)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise SdkChainError(f"the dev chain does not implement Substrate.{name}")

    async def _request(self, method: str, *params: Any) -> Any:
        try:
            return await asyncio.to_thread(self._link.request, method, *params)
        except ChainRefused as error:
            raise SdkChainError(str(error), error.name or None) from error

    def balance(self, rao: int, netuid: int = 0) -> Balance:
        return Balance(int(rao), netuid, None)

    async def connect(self) -> None:
        await self._request("block_number")

    async def close(self) -> None:
        self._link.close()

    async def block_hash(self, block: int | None = None) -> str:
        return await self._request("block_hash", block)

    async def block_number(self) -> int:
        return await self._request("block_number")

    async def block_time(self) -> float:
        return await self._request("block_time")

    async def query(
        self, module: str, storage_function: str, params: list | None = None, block_hash: str | None = None
    ) -> Any:
        return await self._request("query", module, storage_function, params or [])

    async def query_map(
        self, module: str, storage_function: str, params: list | None = None, block_hash: str | None = None
    ) -> list[tuple[Any, Any]]:
        rows = await self._request("query_map", module, storage_function, params or [])
        return [(key, value) for key, value in rows]

    async def runtime_call(self, api: str, method: str, params: list, block_hash: str | None = None) -> Any:
        return await self._request("runtime_call", api, method, params)

    async def blocks(self, *, finalized: bool = False) -> AsyncIterator[dict]:
        block = await self.block_number() - 1
        while True:
            head = await self.block_number()
            for number in range(block + 1, head + 1):
                yield {"header": {"number": number, "parentHash": await self.block_hash(number - 1)}}
            block = head
            await asyncio.sleep(await self.block_time() / 2)

    async def compose(self, call: Any) -> DevCall:
        module, function, params = call
        return DevCall(module, function, dict(params))

    async def estimate_fee(self, call: Any, keypair: Any) -> Balance:
        return Balance.from_rao(0)

    async def account_next_index(self, address: str) -> int:
        return await self._request("account_next_index", address)

    async def submit(
        self,
        call: Any,
        keypair: Any,
        *,
        nonce: int | None = None,
        period: int | None = None,
        wait_for_inclusion: bool = True,
        wait_for_finalization: bool = True,
    ) -> ExtrinsicResult:
        try:
            done = await asyncio.to_thread(self._link.submit, call, keypair, nonce)
        except ChainRefused as error:
            refusal = SdkChainError(str(error), error.name or None)
            return ExtrinsicResult(success=False, message=str(error), error=refusal)
        return ExtrinsicResult(
            success=True,
            message="Success",
            block_hash=done["block_hash"],
            extrinsic_id=f"{done['block']}-0000",
            fee=Balance.from_rao(0),
        )


# Wallets and the whole network ------------------------------------------------


@dataclass
class DevNetwork(contextlib.AbstractContextManager["DevNetwork"]):
    """Holds a dev network that this process uses. `server` is None if another process hosts the chain."""

    directory: Path
    netuid: int
    miners: tuple[Wallet, ...]
    validators: tuple[Wallet, ...]
    server: DevChainServer | None

    @property
    def name(self) -> str:
        """Return the value to give as --network."""
        return f"dev:{self.directory}"

    @property
    def wallet_path(self) -> Path:
        return self.directory / "wallets"

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None

    def __exit__(self, *exc: object) -> None:
        self.close()


def dev_network(directory: Path, *, miners: int = 1, validators: int = 1, state: DevState | None = None) -> DevNetwork:
    """Host or join the dev chain of `directory`; make, register and stake those of its wallets that still need it.

    Wallets are bittensor wallets under directory/wallets, named miner, miner-2, …, validator, validator-2, …,
    each with the hotkey "default". `state` sets the chain's rules if this call becomes the host. May be
    called again at any time, by several processes at once. Raises Unavailable if the host does not answer, ConfigError or
    DoesNotFit where `directory` cannot be written.
    """
    with files.writing(directory, MOVED_BY), contextlib.closing(DevLink(directory)) as link:
        server = DevChainServer.start(directory, DevChain(state))
        try:
            with _wallets_lock(directory):
                net = DevNetwork(
                    directory,
                    link.request("netuid"),
                    tuple(_make_wallet(directory, name) for name in _names("miner", miners)),
                    tuple(_make_wallet(directory, name) for name in _names("validator", validators)),
                    server,
                )
                for path in sorted(net.wallet_path.iterdir()):  # all of them: a new host starts with an empty chain
                    _register(link, Wallet(path.name, path=str(net.wallet_path)), net.netuid)
        except (RpcConnectionError, ChainRefused) as error:
            if server is not None:
                server.close()
            raise Unavailable(f"the dev chain in {directory} does not work: {error}") from error
    return net


def dev_wallet(directory: Path, name: str) -> Wallet:
    """Open the dev wallet of that name with hotkey "default", making it if it is missing; dev_network registers it."""
    with files.writing(directory, MOVED_BY):
        directory.mkdir(parents=True, exist_ok=True)
        with _wallets_lock(directory):
            return _make_wallet(directory, name)


@contextlib.contextmanager
def _wallets_lock(directory: Path) -> Iterator[None]:
    """Keep two processes from making the same wallet at once."""
    with (directory / "wallets.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _names(role: str, count: int) -> list[str]:
    return [role if number == 1 else f"{role}-{number}" for number in range(1, count + 1)]


def _make_wallet(directory: Path, name: str) -> Wallet:
    """Make both keys of a wallet or, on a full disk, none: half a wallet would be taken for a whole one next time."""
    wallets = directory / "wallets"
    if not (wallets / name).exists():
        with stopping.held(), tempfile.TemporaryDirectory(dir=directory) as part:
            made = Wallet(name, path=part)
            made.create_new_coldkey(use_password=False, suppress=True)
            made.create_new_hotkey(use_password=False, suppress=True)
            wallets.mkdir(exist_ok=True)
            (Path(part) / name).rename(wallets / name)
    return Wallet(name, path=str(wallets))


def _register(link: DevLink, wallet: Wallet, netuid: int) -> None:
    """Register the wallet's hotkey; a wallet named validator… gets enough stake for a permit."""
    hotkey = wallet.hotkey.ss58_address
    if link.request("query", "SubtensorModule", "Uids", [netuid, hotkey]) is not None:
        return
    register = calls.SubtensorModule.burned_register(netuid=netuid, hotkey=hotkey)
    link.submit(DevCall(*register), wallet.coldkey)
    if wallet.name.startswith("validator"):
        stake = calls.SubtensorModule.add_stake(hotkey=hotkey, netuid=netuid, amount_staked=VALIDATOR_STAKE_RAO)
        link.submit(DevCall(*stake), wallet.coldkey)
