"""The dev network: the chain of devchain.py behind bittensor's own `Substrate` protocol, shared on one machine.

    with dev_network(directory) as net:                      # wallets made, registered, funded, staked
        client = bittensor.Client("local", substrate=DevSubstrate(directory))

Whoever comes first hosts the chain (a thread with a loopback TCP port; the file lock chain.lock says who), all others
join it through the port written to chain.json. When the host goes, the next one to connect hosts an empty chain anew
and registers the directory's wallets again. Requests are JSON lines: {"method", "params"} -> {"result"} | {"error"}.

It is for tests, the demo and trying things out. Keys of the dev wallets are stored unencrypted: they guard nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import socketserver
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from bittensor import Balance, ExtrinsicResult, RpcConnectionError, Wallet, calls
from bittensor import ChainError as SdkChainError

from storyfi_lite.chain.devchain import (
    RAO_PER_TAO,
    SPEC_VERSION,
    DevChain,
    DevState,
    Refused,
    signing_payload,
)
from storyfi_lite.errors import Unavailable

VALIDATOR_STAKE_RAO = 5000 * RAO_PER_TAO
REQUEST_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 4 * 2**20


def _json_ready(value: Any) -> Any:
    """Bytes as 0x-hex, as chain values are written; everything else as it is."""
    return "0x" + value.hex() if isinstance(value, bytes) else value


# The server -------------------------------------------------------------------


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        while line := self.rfile.readline(MAX_LINE_BYTES):
            try:
                request = json.loads(line)
                reply = {"result": self.server.chain.handle(request["method"], request["params"])}
            except Refused as error:
                reply = {"error": {"message": str(error), "name": error.name}}
            except (ValueError, KeyError, TypeError, IndexError) as error:
                reply = {"error": {"message": f"malformed request: {type(error).__name__}", "name": ""}}
            self.wfile.write(json.dumps(reply).encode() + b"\n")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, chain: DevChain) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.chain = chain
        self.connections: set[socket.socket] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""


class DevChainServer:
    """Hosts a DevChain for this machine. `start` returns None if another process (or server) hosts it already."""

    def __init__(self, chain: DevChain, directory: Path, lock: IO[str]) -> None:
        self.chain = chain
        self._lock = lock
        self._server = _Server(chain)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="dev-chain", daemon=True)
        self._thread.start()
        part = directory / "chain.json.part"
        part.write_text(json.dumps({"port": self._server.server_address[1]}))
        part.replace(directory / "chain.json")

    @classmethod
    def start(cls, directory: Path, chain: DevChain | None = None) -> DevChainServer | None:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "chain.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        (directory / "chain.json").unlink(missing_ok=True)  # a dead host's port may belong to somebody else by now
        return cls(chain or DevChain(), directory, lock)

    def close(self) -> None:
        """Idempotent. Open connections are cut."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._lock.close()


# The client -------------------------------------------------------------------


class DevLink:
    """A blocking connection to the dev chain's host. Thread-safe; connects again after a failure."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._file: Any = None

    def _open(self) -> None:
        deadline = time.monotonic() + REQUEST_TIMEOUT_S  # the host may be between its lock and its port
        while True:
            try:
                port = json.loads((self._directory / "chain.json").read_text())["port"]
                connection = socket.create_connection(("127.0.0.1", port), timeout=REQUEST_TIMEOUT_S)
                break
            except (OSError, ValueError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        with connection:
            self._file = connection.makefile("rwb")

    def request(self, method: str, *params: Any) -> Any:
        """Raises RpcConnectionError if the host cannot be reached, Refused if the chain says no."""
        line = json.dumps({"method": method, "params": params}, default=_json_ready).encode() + b"\n"
        with self._lock:
            try:
                if self._file is None:
                    self._open()
                self._file.write(line)
                self._file.flush()
                answer = self._file.readline()
                if not answer:
                    raise ConnectionError("the host closed the connection")
            except OSError as error:
                self._drop()
                raise RpcConnectionError(f"the dev chain's host cannot be reached: {error}") from error
        reply = json.loads(answer)
        if "error" in reply:
            raise Refused(reply["error"]["message"], reply["error"]["name"])
        return reply["result"]

    def submit(self, call: DevCall, keypair: Any, nonce: int | None = None) -> Any:
        """Sign and send one extrinsic. Raises Refused or RpcConnectionError."""
        address = keypair.ss58_address
        if nonce is None:
            nonce = self.request("account_next_index", address)
        extrinsic = {
            "call": json.loads(json.dumps(vars(call), default=_json_ready)),
            "address": address,
            "crypto_type": keypair.crypto_type,
            "nonce": nonce,
        }
        signature = bytes(keypair.sign(signing_payload(extrinsic["call"], address, nonce)))
        return self.request("submit", {**extrinsic, "signature": signature.hex()})

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        with self._lock:
            self._drop()


@dataclass(frozen=True)
class DevCall:
    """A composed call: what RpcSubstrate would have as SCALE bytes."""

    module: str
    function: str
    params: dict[str, Any]


def _missing(name: str) -> NoReturn:
    raise SdkChainError(f"the dev chain does not implement Substrate.{name}")


class DevSubstrate:
    """bittensor's `Substrate` over the dev chain. What it cannot do raises bittensor's ChainError, naming the call."""

    def __init__(self, directory: Path) -> None:
        self.token_symbols: dict[int, str] = {}
        self._link = DevLink(directory)

    async def _request(self, method: str, *params: Any) -> Any:
        try:
            return await asyncio.to_thread(self._link.request, method, *params)
        except Refused as error:
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

    async def finalized_block_number(self) -> int:
        return await self._request("block_number")

    async def block_time(self) -> float:
        return await self._request("block_time")

    async def spec_version(self) -> int:
        return SPEC_VERSION

    async def query(
        self, module: str, storage_function: str, params: list | None = None, block_hash: str | None = None
    ) -> Any:
        return await self._request("query", module, storage_function, params or [])

    async def query_map(
        self, module: str, storage_function: str, params: list | None = None, block_hash: str | None = None
    ) -> list[tuple[Any, Any]]:
        rows = await self._request("query_map", module, storage_function, params or [])
        return [(key, value) for key, value in rows]

    async def map_has_entries(
        self, module: str, storage_function: str, params: list, block_hash: str | None = None
    ) -> bool:
        return bool(await self.query_map(module, storage_function, params))

    async def query_batch(
        self, module: str, storage_function: str, param_sets: list[list], block_hash: str | None = None
    ) -> list[Any]:
        return [await self.query(module, storage_function, params) for params in param_sets]

    async def runtime_call(self, api: str, method: str, params: list, block_hash: str | None = None) -> Any:
        return await self._request("runtime_call", api, method, params)

    async def constant(self, module: str, name: str) -> Any:
        return await self._request("constant", module, name)

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
        except Refused as error:
            refusal = SdkChainError(str(error), error.name or None)
            return ExtrinsicResult(success=False, message=str(error), error=refusal)
        return ExtrinsicResult(
            success=True,
            message="Success",
            block_hash=done["block_hash"],
            extrinsic_id=f"{done['block']}-0000",
            fee=Balance.from_rao(0),
        )

    async def get_block(self, block_number: int | None = None, block_hash: str | None = None) -> dict | None:
        _missing("get_block")

    async def decode_scale(self, type_string: str, data: Any) -> Any:
        _missing("decode_scale")

    async def events(self, block_hash: str | None = None) -> list[dict]:
        _missing("events")

    async def estimate_weight(self, call: Any, keypair: Any) -> dict:
        _missing("estimate_weight")

    async def mev_next_key(self) -> bytes | None:
        _missing("mev_next_key")

    async def sign_extrinsic(self, call: Any, keypair: Any, *, nonce: int, period: int) -> tuple[bytes, str]:
        _missing("sign_extrinsic")

    async def find_extrinsic(self, extrinsic_hash: str, block_hash: str) -> ExtrinsicResult | None:
        _missing("find_extrinsic")

    async def prepare(self, call: Any, *, address: str, **options: Any) -> Any:
        _missing("prepare")

    async def submit_signature(self, unsigned: Any, signature: bytes | str, **options: Any) -> ExtrinsicResult:
        _missing("submit_signature")

    async def submit_signed(self, extrinsic: Any, keypair: Any, **options: Any) -> ExtrinsicResult:
        _missing("submit_signed")

    def multisig_account(self, signatories: list[str], threshold: int) -> Any:
        _missing("multisig_account")

    async def submit_multisig(
        self, call: Any, keypair: Any, multisig_account: Any, **options: Any
    ) -> ExtrinsicResult:
        _missing("submit_multisig")


# Wallets and the whole network ------------------------------------------------


@dataclass
class DevNetwork:
    """A dev network that this process uses. `server` is None if another process hosts the chain."""

    directory: Path
    netuid: int
    miners: tuple[Wallet, ...]
    validators: tuple[Wallet, ...]
    server: DevChainServer | None

    @property
    def name(self) -> str:
        """What to give as --network."""
        return f"dev:{self.directory}"

    @property
    def wallet_path(self) -> Path:
        return self.directory / "wallets"

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None

    def __enter__(self) -> DevNetwork:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def dev_network(
    directory: Path, *, miners: int = 1, validators: int = 1, state: DevState | None = None
) -> DevNetwork:
    """Host or join the dev chain of `directory`; make, register and stake its wallets where that is still to do.

    Wallets are bittensor wallets under directory/wallets, named miner, miner-2, …, validator, validator-2, …, each
    with the hotkey "default". `state` sets the chain's rules if this call becomes the host. May be called again at
    any time, by several processes at once. Raises Unavailable if the host does not answer.
    """
    server = DevChainServer.start(directory, DevChain(state))
    link = DevLink(directory)
    try:
        with (directory / "wallets.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two processes must not both make the same wallet
            net = DevNetwork(
                directory,
                link.request("netuid"),
                tuple(_wallet(directory, "miner", number) for number in range(1, miners + 1)),
                tuple(_wallet(directory, "validator", number) for number in range(1, validators + 1)),
                server,
            )
            for path in sorted(net.wallet_path.iterdir()):  # all of them: a new host starts with an empty chain
                _register(link, Wallet(path.name, path=str(net.wallet_path)), net.netuid)
    except (RpcConnectionError, Refused) as error:
        if server is not None:
            server.close()
        raise Unavailable(f"the dev chain in {directory} does not work: {error}") from error
    finally:
        link.close()
    return net


def _wallet(directory: Path, role: str, number: int) -> Wallet:
    wallet = Wallet(role if number == 1 else f"{role}-{number}", path=str(directory / "wallets"))
    if not wallet.coldkey_file.exists_on_device():
        wallet.create_new_coldkey(use_password=False, suppress=True)
    if not wallet.hotkey_file.exists_on_device():
        wallet.create_new_hotkey(use_password=False, suppress=True)
    return wallet


def _register(link: DevLink, wallet: Wallet, netuid: int) -> None:
    """Register the hotkey; a wallet named validator… gets stake enough for a permit."""
    hotkey = wallet.hotkey.ss58_address
    if link.request("query", "SubtensorModule", "Uids", [netuid, hotkey]) is not None:
        return
    register = calls.SubtensorModule.burned_register(netuid=netuid, hotkey=hotkey)
    link.submit(DevCall(*register), wallet.coldkey)
    if wallet.name.startswith("validator"):
        stake = calls.SubtensorModule.add_stake(hotkey=hotkey, netuid=netuid, amount_staked=VALIDATOR_STAKE_RAO)
        link.submit(DevCall(*stake), wallet.coldkey)
