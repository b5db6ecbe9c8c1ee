"""Keeps the last known state of the subnet at hand, and writes to the chain.

Reading `snapshot` never waits. A background task refreshes it. Whatever goes wrong there (a connection that hangs, drops,
refuses, tells of an impossible height or stands still) leaves the snapshot as it was, and the task goes on to the next endpoint
after a wait that doubles with each failure. A connection that failed is thrown away (client_thread.py). How old a snapshot may
be, the caller decides.

Use a session from one event loop. It knows nothing of stories, HTTP or scores.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from storyfi_lite.chain import networks
from storyfi_lite.chain.address import external_ip
from storyfi_lite.chain.client_thread import ClientThread
from storyfi_lite.chain.identity import check_subnet, read_identity
from storyfi_lite.chain.types import ChainHealth, MetagraphSnapshot, Neuron, SubnetIdentity, WriteResult
from storyfi_lite.chain.wallets import wallet_flags
from storyfi_lite.errors import BadInput, ConfigError, DoesNotFit, LiteError, Unavailable

if TYPE_CHECKING:
    from bittensor import Client, Wallet

T = TypeVar("T")
log = logging.getLogger("storyfi_lite.chain")

LAG_BLOCKS = 10  # what an honest endpoint may be behind another one


class ImplausibleHeight(Unavailable):
    """Says that an endpoint's block height cannot follow the one that we know, or stands still."""


@dataclass(frozen=True)
class Timing:
    """Holds every wait of a session, in seconds. The defaults suit 12 s blocks and a public endpoint."""

    refresh_s: float = 90.0
    open_s: float = 45.0  # connecting downloads the chain's metadata
    read_s: float = 30.0
    write_s: float = 90.0  # until the write is in a block
    stall_s: float = 180.0  # no new block for so long: the endpoint is stuck
    believe_s: float = 600.0  # all endpoints tell of an impossible height for so long: the chain was started anew
    backoff_first_s: float = 1.0
    backoff_most_s: float = 120.0
    republish_s: float = 600.0  # between attempts; the chain's own limit is 50 blocks


async def connect(
    network: str,
    wallet: Wallet | None,
    netuid: int,
    *,
    timing: Timing | None = None,
    must_be_registered: bool = True,
    known_subnet: str | None = None,
) -> ChainSession:
    """Open a session and read its first snapshot. `network`: as networks.endpoints takes it; `wallet` None: read only;
    `known_subnet`: the name of the subnet that the operator means, if that is not StoryFi's.

    Raises BadInput (network, netuid), Unavailable (no endpoint answers) or ConfigError (another subnet, hotkey not
    registered).
    """
    session = ChainSession(
        networks.endpoints(network), wallet, netuid, name=network, timing=timing, known_subnet=known_subnet
    )
    try:
        await session.open()
        session.check_subnet()
        if must_be_registered:
            session.check_registered()
    except BaseException:
        await session.close()
        raise
    return session


class ChainSession:
    """Holds one connection to one subnet. `connect` is the usual way to get one; tests give their own endpoints."""

    def __init__(
        self,
        endpoints: Sequence[networks.Endpoint],
        wallet: Wallet | None,
        netuid: int,
        *,
        name: str = "dev",
        timing: Timing | None = None,
        known_subnet: str | None = None,
    ) -> None:
        self._endpoints = list(endpoints)
        self._wallet = wallet
        self._key = None if wallet is None else wallet.hotkey  # loaded now, so that no password is asked for later
        self._netuid = netuid
        self._name = name
        self._known_subnet = known_subnet
        self._timing = timing or Timing()
        self._snapshot: MetagraphSnapshot | None = None
        self._block_time_s = 12.0
        self._client_thread: ClientThread | None = None
        self._opening = asyncio.Lock()
        self._turn = 0  # which endpoint comes next
        self._failures = 0  # in a row
        self._odd_since_s: float | None = None  # since when all endpoints tell of impossible heights
        self._problem = "not connected yet"
        self._error: Exception | None = None  # what the last refresh ran into
        self._published: tuple[str | None, int] | None = None  # our endpoint, address as external_ip takes it
        self._publish_problem = ""
        self._publish_after_s = 0.0
        self._task: asyncio.Task[None] | None = None

    # What callers read --------------------------------------------------------

    @property
    def snapshot(self) -> MetagraphSnapshot:
        """Return the last good state of the subnet. Never waits. Raises Unavailable before the first was read."""
        if self._snapshot is None:
            raise Unavailable(f"nothing is known of the chain: {self.health().detail}")
        return self._snapshot

    @property
    def own_neuron(self) -> Neuron | None:
        """Return this wallet's neuron in the snapshot; None if the wallet is not (or no longer) registered."""
        if self._snapshot is None or self._key is None:
            return None
        return self._snapshot.by_hotkey.get(self._key.ss58_address)

    def lookup(self, hotkey_ss58: str) -> Neuron | None:
        """Return the hotkey's neuron in the snapshot, None if it is not registered. Raises Unavailable without a snapshot."""
        return self.snapshot.by_hotkey.get(hotkey_ss58)

    def check_subnet(self) -> None:
        """Raise ConfigError if the snapshot is of a subnet that is neither StoryFi's nor known to the operator."""
        if self._snapshot is not None:
            check_subnet(self._snapshot.identity, self._netuid, self._name.split(",")[0], self._known_subnet)

    def check_registered(self) -> None:
        """Raise ConfigError, with the command that registers, if this wallet's hotkey is not in the snapshot."""
        if self._wallet is None or self._snapshot is None or self.own_neuron is not None:
            return
        hotkey, network = self._wallet.hotkey.ss58_address, networks.printable(self._name.split(",")[0])
        raise ConfigError(
            f"hotkey {hotkey} is not registered on subnet {self._netuid} of {network}\n"
            f"  btcli subnets register --netuid {self._netuid} --network {network} {wallet_flags(self._wallet)}"
        )

    def health(self) -> ChainHealth:
        snapshot = self._snapshot
        details = [detail for detail in (self._problem, self._publish_problem) if detail]
        try:
            self.check_subnet()
        except ConfigError as error:
            details.append(str(error).partition("\n")[0])
        if snapshot is not None and self._key is not None and self.own_neuron is None:
            details.append(f"hotkey {self._key.ss58_address} is not registered on subnet {self._netuid}")
        return ChainHealth(
            connected=not self._problem,
            height=None if snapshot is None else snapshot.block,
            age_s=None if snapshot is None else time.monotonic() - snapshot.taken_at_s,
            detail="; ".join(details) or "ok",
        )

    # Lifecycle ----------------------------------------------------------------

    async def open(self) -> None:
        """Read the first snapshot, trying each endpoint once. Raises Unavailable, BadInput, or what kept a dev chain from being
        hosted."""
        for _ in self._endpoints:
            if await self._refresh_once() is None:
                return
            if isinstance(self._error, (BadInput, ConfigError, DoesNotFit)):  # ours, not the chain's
                raise self._error
        tried = ", ".join(endpoint.label for endpoint in self._endpoints)
        raise Unavailable(f"the chain cannot be reached at {tried}: {self._problem}")

    async def start(self) -> None:
        """Keep the snapshot fresh and the endpoint published in the background, until close()."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_fresh(), name="chain-refresh")

    async def close(self) -> None:
        """Close the connection. Idempotent; takes a second or two at most, whatever state the connection is in."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        if self._client_thread is not None:
            await self._client_thread.close()
            self._client_thread = None
        for endpoint in self._endpoints:
            endpoint.close()

    async def _keep_fresh(self) -> None:
        wait_s = self._timing.refresh_s
        while True:
            await asyncio.sleep(wait_s)
            try:
                failed_wait_s = await self._refresh_once()
                wait_s = self._timing.refresh_s if failed_wait_s is None else failed_wait_s
                if failed_wait_s is None and self._published and time.monotonic() >= self._publish_after_s:
                    await self._ensure_published(*self._published)
            except LiteError as error:
                log.warning("chain: %s", error)  # publishing: health() tells of it too
            except Exception:  # this task must outlive every surprise, and tell of it
                log.exception("chain: refreshing failed in an unforeseen way")

    # Reading ------------------------------------------------------------------

    async def _refresh_once(self) -> float | None:
        """Read the metagraph. Returns None on success, else the wait before the next endpoint is tried, in seconds."""
        try:
            self._accept(await self._call(self._read_subnet, self._timing.read_s))
        except Exception as error:  # the SDK's, the transport's and the sockets' errors have no common base
            self._failures += 1
            self._error = error
            self._problem = f"{self._endpoints[self._turn].label}: {error or type(error).__name__}"
            self._drop_client_thread()
            self._turn = (self._turn + 1) % len(self._endpoints)
            wait_s = min(self._timing.backoff_most_s, self._timing.backoff_first_s * 2 ** min(self._failures - 1, 20))
            wait_s = max(wait_s * random.uniform(0.5, 1.0), _retry_after_s(error))
            log.warning("chain: %s; next try in %.1f s", self._problem, wait_s)
            return wait_s
        if self._failures:
            log.info("chain: connected again after %d failures", self._failures)
        self._failures, self._problem, self._error = 0, "", None
        return None

    async def _read_subnet(self, client: Client) -> tuple[int, tuple[Neuron, ...], SubnetIdentity]:
        graph = await client.subnets.metagraph(self._netuid, commitments=False)
        if graph is None:
            raise BadInput(f"there is no subnet {self._netuid} on {self._name}\n  btcli subnets list")
        neurons = tuple(
            Neuron(
                uid=row.uid,
                hotkey_ss58=row.hotkey,
                stake_tao=row.total_stake.rao / 1e9,
                validator_permit=row.validator_permit,
                axon=_axon(row.axon),
                incentive=row.incentive,
            )
            for row in graph.neurons
        )
        return graph.block, neurons, await read_identity(client, self._netuid)

    def _accept(self, read: tuple[int, tuple[Neuron, ...], SubnetIdentity]) -> None:
        """Make what was read the new snapshot. Raises ImplausibleHeight, and then keeps the old one."""
        block, neurons, identity = read
        now_s, old, problem = time.monotonic(), self._snapshot, ""
        if old is not None:
            most = old.block + 2 * (now_s - old.taken_at_s) / self._block_time_s + 10 * LAG_BLOCKS
            if not old.block - LAG_BLOCKS <= block <= most:
                problem = f"the height {'leapt' if block > most else 'went back'} from {old.block} to {block}"
        if problem:
            if self._odd_since_s is None:
                self._odd_since_s = now_s
            if now_s - self._odd_since_s < self._timing.believe_s:
                raise ImplausibleHeight(problem)
            log.warning("chain: %s, and nobody says otherwise: starting from there", problem)
            old = None
        self._odd_since_s = None
        if self._snapshot is None or self._snapshot.identity != identity:
            log.info("chain: subnet %d of %s is %s", self._netuid, networks.printable(self._name), identity)
        if old is None or block > old.block:
            self._snapshot = MetagraphSnapshot(block, now_s, neurons, identity)
        elif now_s - old.taken_at_s > self._timing.stall_s:
            raise ImplausibleHeight(f"no new block since {old.block}, {now_s - old.taken_at_s:.0f} s ago")
        elif block == old.block:
            self._snapshot = MetagraphSnapshot(block, old.taken_at_s, neurons, identity)

    async def clock_skew_s(self) -> float:
        """Measure how far this machine's clock is ahead of the chain's, in seconds; negative: behind.

        Waits for a new block and compares its time stamp. A right clock shows 0 to about 6 s, the time that a block takes to
        be made and to arrive. Raises Unavailable.
        """

        async def compare(client: Client) -> float:
            header = await client.wait_for_block()
            stamp = await client.timestamp(header.number)
            return time.time() - stamp.timestamp()

        try:
            return await self._call(compare, self._timing.read_s + 3 * self._block_time_s)
        except Exception as error:  # as in _refresh_once
            raise Unavailable(f"the chain's clock cannot be read: {error}") from error

    # Writing ------------------------------------------------------------------

    async def publish_axon(self, address: str | None, port: int) -> bool:
        """Make the chain say that this hotkey answers at address:port. Returns True if that had to be written.

        `address` is an IP address, a DNS name, or None for this machine's own. From now on the background
        task compares it with the chain after every refresh, and writes again when it changed. If the chain
        cannot take it now (rate limit, no connection), that is logged, health().detail says so, and it is
        tried again. Raises ConfigError if the address cannot be reached from outside or the hotkey is not
        registered.
        """
        self._published = address, port
        try:
            return await self._ensure_published(address, port)
        except Unavailable as error:
            log.warning("chain: %s", error)
            return False

    async def _ensure_published(self, address: str | None, port: int) -> bool:
        from bittensor import ServeAxon

        self._publish_problem = "the endpoint is not published"
        ip = await external_ip(address, self._name)
        self.check_registered()
        neuron = self.own_neuron
        if neuron is not None and neuron.axon == (ip, port):
            self._publish_problem = ""
            return False
        result = await self._write(ServeAxon(netuid=self._netuid, ip=ip, port=port))
        if result.code != "unavailable":
            self._publish_after_s = time.monotonic() + self._timing.republish_s
        if not result:
            self._publish_problem = f"the endpoint {ip}:{port} is not published: {result.message}"
            refused = result.code in ("not_registered", "invalid_argument")
            raise (ConfigError if refused else Unavailable)(self._publish_problem)
        log.info("chain: endpoint %s:%d published", ip, port)
        self._publish_problem = ""
        await self._refresh_once()  # so that the snapshot shows it
        return True

    async def set_weights(self, weights: Mapping[int, float]) -> WriteResult:
        """Set this validator's weights (uid -> relative weight), committed or plain and under the version key that the subnet
        asks for.

        Raises BadInput for weights that no chain would take, ConfigError for another subnet than StoryFi's. Every other
        outcome is in the result, with bittensor's code.
        """
        from bittensor import BittensorError, SetWeights

        try:
            intent = SetWeights(netuid=self._netuid, weights=dict(weights))
        except BittensorError as error:
            raise BadInput(f"weights: {error}") from error
        return await self._write(intent)

    async def _write(self, intent: Any) -> WriteResult:
        from bittensor import BittensorError, ChainError, RpcConnectionError

        key = self._key
        if key is None:
            raise ConfigError("writing to the chain needs a wallet")
        self.check_subnet()

        async def execute(client: Client) -> Any:
            wanted = intent
            if intent.op == "set_weights":
                version_key = await client.query(("SubtensorModule", "WeightsVersionKey"), [self._netuid])
                wanted = dataclasses.replace(intent, version_key=int(version_key or 0))
            return await client.execute(wanted, key, wait_for_finalization=False)

        try:
            result = await self._call(execute, self._timing.write_s)
            result.raise_for_failure()
        except ChainError as error:
            return WriteResult(False, error.code.value, str(error))
        except TimeoutError as error:
            return WriteResult(False, "timeout", f"{error}; whether it was written is not known")
        except (RpcConnectionError, OSError) as error:
            return WriteResult(False, "unavailable", str(error) or type(error).__name__)
        except BittensorError as error:
            raise BadInput(str(error)) from error
        reveal_round = result.data.get("reveal_round")
        mode = "" if intent.op != "set_weights" else "set" if reveal_round is None else "committed"
        block = int(result.extrinsic_id.split("-")[0]) if result.extrinsic_id else None
        return WriteResult(True, "ok", result.message, mode, block, reveal_round)

    # The connection -----------------------------------------------------------

    async def _call(self, job: Callable[[Client], Awaitable[T]], timeout_s: float) -> T:
        """Run a job on the client thread, opening one if there is none. A thread that times out is abandoned."""
        async with self._opening:
            thread = self._client_thread
            if thread is None:
                thread = ClientThread(self._endpoints[self._turn].client)
                try:
                    await thread.open(self._timing.open_s)
                    self._block_time_s = await thread.call(lambda client: client.block_time(), self._timing.read_s)
                except BaseException:
                    thread.abandon()
                    raise
                self._client_thread = thread
        try:
            return await thread.call(job, timeout_s)
        except TimeoutError:
            self._drop_client_thread(thread)
            raise

    def _drop_client_thread(self, thread: ClientThread | None = None) -> None:
        """Abandon the current client thread, or `thread` if that is still the current one."""
        if self._client_thread is not None and thread in (None, self._client_thread):
            self._client_thread.abandon()
            self._client_thread = None


def _axon(text: str | None) -> tuple[str, int] | None:
    """Split bittensor's "ip:port" or "[ip]:port"."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)


def _retry_after_s(error: Exception) -> float:
    """Return how long the endpoint asked us to stay away, at most ten minutes; 0 if it asked for nothing."""
    with contextlib.suppress(TypeError, ValueError):
        return min(600.0, max(0.0, float(getattr(error, "retry_after", None) or 0)))
    return 0.0
