"""Builds a miner from its options and runs it. No other module imports all of the miner's packages.

The order: wallet, nonce store, chain, loader; then the port; then the endpoint on chain. A step that fails closes what
the steps before it opened, and no port was ever open."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from bittensor.sp_core import ss58_decode

from storyfi_lite.chain import ChainSession, connect, open_wallet
from storyfi_lite.chain.networks import printable
from storyfi_lite.errors import BadInput
from storyfi_lite.loaders.base import Loader
from storyfi_lite.miner.admission import AdmissionPolicy, Gate
from storyfi_lite.miner.app import Miner
from storyfi_lite.miner.lifecycle import bind, serve
from storyfi_lite.miner.metrics import Metrics, watch_gpus
from storyfi_lite.miner.nonces import SqliteNonceStore
from storyfi_lite.miner.requests import RequestLog
from storyfi_lite.miner.service import StoryService
from storyfi_lite.opening.loader import open_loader
from storyfi_lite.opening.local import Notices, every_tenth
from storyfi_lite.options import ChainOptions, ModelOptions
from storyfi_lite.wire.btauth import BtAuth
from storyfi_lite.wire.dendrite import Dendrite
from storyfi_lite.wire.transport import Transport

log = logging.getLogger(__name__)

DEV_HOST, PUBLIC_HOST = "127.0.0.1", "0.0.0.0"
ALL_ADDRESSES = ("0.0.0.0", "::")


@dataclass(frozen=True, kw_only=True)
class MineOptions:
    """Holds the flags of `storyfi-lite mine`. `host`, `port`: where the miner listens; `external_*`: what validators call."""

    chain: ChainOptions
    model: ModelOptions
    port: int
    host: str | None
    external_ip: str | None
    external_port: int | None
    min_stake_tao: float
    any_neuron: bool
    rate_per_minute: float
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    open_pages: bool
    state_dir: Path | None


def run(options: MineOptions) -> None:
    """Mine until a signal. Raises a LiteError before the port is open if anything is missing or wrong."""
    asyncio.run(_run(options))


async def _run(options: MineOptions) -> None:
    policy = _policy(options)
    chain = options.chain
    default_host = DEV_HOST if chain.network.partition(":")[0] == "dev" else PUBLIC_HOST
    host = (options.host or default_host).removeprefix("[").removesuffix("]")
    bind(host, options.port).close()  # what is wrong with them is said before the minutes that a load may take
    wallet = open_wallet(chain.network, chain.wallet, chain.hotkey, chain.wallet_path)
    hotkey = wallet.hotkey.ss58_address
    async with AsyncExitStack() as opened:
        state_dir = options.state_dir or Path(platformdirs.user_state_dir("storyfi-lite"))
        transports: list[Transport] = [BtAuth(hotkey), Dendrite(hotkey)]
        # a nonce is kept as long as its signature counts
        retention_s = max(transport.window_s for transport in transports)
        requests = RequestLog(state_dir / hotkey / "requests.jsonl")
        nonces = SqliteNonceStore(state_dir / hotkey / "nonces.sqlite", retention_s)
        opened.callback(nonces.close)
        session = await connect(
            chain.network, wallet, chain.netuid, must_be_registered=False, known_subnet=chain.known_subnet
        )
        opened.push_async_callback(session.close)
        if session.own_neuron is None:
            log.warning("%s; first the model, to say how fast this machine writes", session.health().detail)
        log.info("choosing the model for this machine")
        notices = Notices(every_tenth(log.info), log.info)
        loader, model = await asyncio.to_thread(open_loader, options.model, notices, warm_up=True)
        opened.callback(loader.close)
        for name, fact in model.items():
            log.info("%s: %s", name, fact)
        session.check_registered()  # after the speed was told: a registration costs money
        miner = Miner(
            loader,
            Gate(session, nonces, policy),
            StoryService(loader, hotkey),
            _metrics(loader, session, requests),
            transports,
            facts=lambda: {"Model": model, **_cards(options, hotkey, session)},
            open_operator_pages=options.open_pages,
        )
        await session.start()

        async def announce() -> None:
            address = options.external_ip or (None if host in ALL_ADDRESSES else host)
            await session.publish_axon(address, options.external_port or options.port)

        await serve(miner, host, options.port, announce)


def _policy(options: MineOptions) -> AdmissionPolicy:
    for hotkey in (*options.allow, *options.deny):
        try:
            ss58_decode(hotkey)
        except ValueError as error:
            raise BadInput(f"{hotkey!r} is not a hotkey's ss58 address\n  --allow HOTKEY, --deny HOTKEY") from error
    return AdmissionPolicy(
        require_permit=not options.any_neuron,
        min_stake_tao=options.min_stake_tao,
        rate_per_minute=options.rate_per_minute,
        allow=frozenset(options.allow),
        deny=frozenset(options.deny),
    )


def _metrics(loader: Loader, session: ChainSession, requests: RequestLog) -> Metrics:
    metrics = Metrics(loader, requests=requests)
    watch_gpus(metrics.registry)
    metrics.gauge("chain_connected", "1 if the last call succeeded", lambda: session.health().connected)
    metrics.gauge("chain_height", "block of the snapshot in use", lambda: session.health().height)
    metrics.gauge("chain_age_seconds", "age of the snapshot in use", lambda: session.health().age_s)
    incentive = "what the chain gives this miner, 0 to 1"
    metrics.gauge("incentive", incentive, lambda: getattr(session.own_neuron, "incentive", None))
    return metrics


def _cards(options: MineOptions, hotkey: str, session: ChainSession) -> dict[str, dict[str, str]]:
    neuron, health = session.own_neuron, session.health()
    miner = {
        "hotkey": hotkey,
        "network": f"{', '.join(map(printable, options.chain.network.split(',')))}, netuid {options.chain.netuid}",
        "uid": "not registered" if neuron is None else str(neuron.uid),
    }
    if neuron is not None:
        miner["endpoint"] = "not published" if neuron.axon is None else "{}:{}".format(*neuron.axon)
        miner["incentive"] = f"{neuron.incentive:.5f}"
    chain = {
        "state": "connected" if health.connected else "not connected",
        "subnet": str(session.snapshot.identity),
        "height": str(health.height),
        "snapshot's age": "unknown" if health.age_s is None else f"{health.age_s:.0f} s",
        "detail": health.detail,
    }
    return {"Miner": miner, "Chain": chain}
