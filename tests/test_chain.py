"""The chain room: bittensor's real SDK over the dev chain, and a session that outlives a bad subtensor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import bittensor
import pytest
from websockets.asyncio.server import serve

from storyfi_lite.chain import ChainSession, Timing, connect, networks, open_wallet
from storyfi_lite.chain import address as address_module
from storyfi_lite.chain.address import external_ip
from storyfi_lite.chain.identity import check_subnet
from storyfi_lite.chain.types import SubnetIdentity
from storyfi_lite.devchain.state import GENESIS_UNIX_S, ChainRefused, DevChain, DevState, signing_payload
from storyfi_lite.devchain.substrate import DevNetwork, DevSubstrate, dev_network
from storyfi_lite.errors import BadInput, ConfigError, Unavailable
from tests.chain_faults import FaultyEndpoint

QUICK = Timing(
    refresh_s=0.02,
    open_s=2.0,
    read_s=0.3,
    write_s=2.0,
    stall_s=0.3,
    backoff_first_s=0.01,
    backoff_most_s=0.05,
    republish_s=0.0,
)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[DevNetwork]:
    """A dev chain whose rate limits allow two writes in a row."""
    state = DevState(block_time_s=0.02, serving_rate_limit=0, weights_set_rate_limit=0)
    with dev_network(tmp_path, state=state) as network:
        yield network


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def session_on(
    *endpoints: networks.Endpoint, wallet: Any = None, netuid: int = 108, timing: Timing = QUICK
) -> AsyncIterator[ChainSession]:
    session = ChainSession(endpoints, wallet, netuid, timing=timing)
    try:
        await session.open()
        await session.start()
        yield session
    finally:
        await session.close()


# The dev chain through bittensor's own client ---------------------------------


def test_sdk_reads_the_dev_chain_like_any_other(net: DevNetwork) -> None:
    async def go() -> None:
        async with bittensor.Client("local", substrate=DevSubstrate(net.directory)) as client:
            graph = await client.subnets.metagraph(net.netuid, commitments=False)
            assert graph is not None
            miner, validator = (graph.by_hotkey(w.hotkey.ss58_address) for w in (*net.miners, *net.validators))
            assert miner is not None and validator is not None
            assert (miner.validator_permit, miner.total_stake.alpha, miner.axon) == (False, 0, None)
            assert (validator.validator_permit, validator.total_stake.alpha) == (True, 5000)
            assert await client.neurons.uid(miner.hotkey, net.netuid) == miner.uid
            assert await client.subnets.metagraph(net.netuid + 1, commitments=False) is None
            assert await client.block_time() == 0.02
            first = await client.block()
            header = await client.wait_for_block(first + 2, timeout=30)
            assert header.number >= first + 2
            assert abs((await client.timestamp()).timestamp() - time.time()) < 30

    run(go())


def test_sdk_registers_pays_and_is_refused_by_name(net: DevNetwork) -> None:
    async def go() -> None:
        wallet = bittensor.Wallet("late", path=str(net.wallet_path))
        wallet.create_new_coldkey(use_password=False, suppress=True).create_new_hotkey(suppress=True)
        register = bittensor.calls.SubtensorModule.burned_register(net.netuid, wallet.hotkey.ss58_address)
        async with bittensor.Client("local", substrate=DevSubstrate(net.directory)) as client:
            serve_axon = bittensor.ServeAxon(netuid=net.netuid, ip="127.0.0.1", port=1)
            refused = await client.execute(serve_axon, wallet)
            assert refused.error is not None and refused.error.name == "HotKeyNotRegisteredInSubNet"
            assert (await client.submit_call(register, wallet)).success
            again = await client.submit_call(register, wallet)
            assert again.error is not None and again.error.code == bittensor.ErrorCode.ALREADY_EXISTS
            assert (await client.execute(serve_axon, wallet)).success
            account = await client.query(("System", "Account"), [wallet.coldkeypub.ss58_address])
            assert account["data"]["free"] == 10_000 * 10**9 - DevState().burn_rao

    run(go())


@pytest.mark.parametrize(
    "attempt",
    [
        lambda client: client.query(("SubtensorModule", "NoSuchItem"), [108]),
        lambda client: client.query_map(("SubtensorModule", "Uids"), [108]),
        lambda client: client.runtime(("SubnetInfoRuntimeApi", "get_all_dynamic_info"), []),
        lambda client: client.constant(("Balances", "ExistentialDeposit")),
        lambda client: client.decode_scale("Call", "0x00"),
        lambda client: client.block_info(),
    ],
)
def test_what_the_dev_chain_lacks_is_refused_by_name(net: DevNetwork, attempt: Callable[..., Any]) -> None:
    async def go() -> None:
        async with bittensor.Client("local", substrate=DevSubstrate(net.directory)) as client:
            with pytest.raises(bittensor.ChainError, match="dev chain does not implement"):
                await attempt(client)

    run(go())


def extrinsic(wallet: Any, port: int = 8091, nonce: int = 0) -> dict[str, Any]:
    params = {"netuid": 108, "ip": 2130706433, "port": port, "ip_type": 4, "protocol": 4, "version": 1}
    call = {"module": "SubtensorModule", "function": "serve_axon", "params": params}
    address = wallet.hotkey.ss58_address
    signature = wallet.hotkey.sign(signing_payload(call, address, nonce)).hex()
    return {"call": call, "address": address, "crypto_type": 1, "nonce": nonce, "signature": signature}


def test_dev_chain_takes_only_what_the_sender_signed(net: DevNetwork) -> None:
    assert net.server is not None
    chain, miner, other = net.server.chain, net.miners[0], net.validators[0]
    good = extrinsic(miner)
    for changed in (
        {"address": other.hotkey.ss58_address},
        {"call": {**good["call"], "params": {**good["call"]["params"], "port": 1}}},
        {"nonce": 1},
        {"signature": "00" * 64},
        {"signature": "not hex"},
    ):
        with pytest.raises(ChainRefused, match="bad signature"):
            chain.handle("submit", [{**good, **changed}])
    chain.handle("submit", [good])
    with pytest.raises(ChainRefused, match="outdated"):
        chain.handle("submit", [good])
    assert [n.axon and n.axon["port"] for n in chain.state.neurons].count(8091) == 1


def test_dev_chain_limits_how_often_an_axon_is_served(tmp_path: Path) -> None:
    now = [GENESIS_UNIX_S + 1000.0]
    chain = DevChain(DevState(serving_rate_limit=50, block_time_s=1.0), now_s=lambda: now[0])
    with dev_network(tmp_path) as net:
        wallet = net.miners[0]
    call = {
        "module": "SubtensorModule",
        "function": "burned_register",
        "params": {"netuid": 108, "hotkey": wallet.hotkey.ss58_address},
    }
    cold = wallet.coldkey
    signature = cold.sign(signing_payload(call, cold.ss58_address, 0)).hex()
    sender = {"address": cold.ss58_address, "crypto_type": 1, "nonce": 0, "signature": signature}
    chain.handle("submit", [{"call": call, **sender}])
    chain.handle("submit", [extrinsic(wallet, port=1, nonce=0)])
    now[0] += 49
    with pytest.raises(ChainRefused) as refused:
        chain.handle("submit", [extrinsic(wallet, port=2, nonce=1)])
    assert refused.value.name == "ServingRateLimitExceeded"
    now[0] += 1
    chain.handle("submit", [extrinsic(wallet, port=2, nonce=2)])
    assert chain.state.neurons[0].axon is not None
    assert chain.state.neurons[0].axon["port"] == 2


JOINER = """
import asyncio, json, sys
from storyfi_lite.chain import connect, open_wallet

async def main(network):
    session = await connect(network, open_wallet(network, "validator", "default"), 108)
    miner = next(n for n in session.snapshot.neurons if n.axon)
    result = await session.set_weights({miner.uid: 1.0})
    print(json.dumps({"axon": miner.axon, "uid": miner.uid, "code": result.code, "mode": result.mode}))
    await session.close()

asyncio.run(main(sys.argv[1]))
"""


def test_two_processes_share_one_dev_chain(net: DevNetwork) -> None:
    async def go() -> None:
        session = await connect(net.name, open_wallet(net.name, "miner", "default"), net.netuid, timing=QUICK)
        try:
            assert await session.publish_axon(None, 8091) is True
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                JOINER,
                net.name,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parent.parent,
            )
            seen = json.loads((await process.communicate())[0])
            own = session.own_neuron
            assert own is not None
            assert seen == {"axon": ["127.0.0.1", 8091], "uid": own.uid, "code": "ok", "mode": "set"}
            await session.start()
            await until(lambda: session.own_neuron is not None and session.own_neuron.incentive == 1.0)
        finally:
            await session.close()

    run(go())


def test_the_next_process_hosts_the_dev_chain_when_the_host_is_gone(tmp_path: Path) -> None:
    first = dev_network(tmp_path, miners=2)
    second = dev_network(tmp_path)
    assert first.server is not None and second.server is None
    hotkeys = [wallet.hotkey.ss58_address for wallet in first.miners]

    async def go() -> None:
        session = await connect(second.name, None, 108, timing=QUICK)
        try:
            await session.start()
            height = session.health().height
            assert height is not None
            first.close()
            await until(lambda: not session.health().connected)
            await until(lambda: session.health().connected and (session.health().height or 0) > height)
            assert session.snapshot is not None
            assert set(hotkeys) <= set(session.snapshot.by_hotkey)
        finally:
            await session.close()

    run(go())
    with dev_network(tmp_path) as third:
        assert third.server is not None


# The session ------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["hang", "hang for good", "block the thread", "drop", "rate limit", "behind", "ahead", "frozen"]
)
def test_session_keeps_its_snapshot_and_recovers(net: DevNetwork, fault: str) -> None:
    async def go() -> None:
        endpoint = FaultyEndpoint(net.directory)
        async with session_on(endpoint, wallet=net.miners[0]) as session:
            before = session.snapshot
            assert before is not None and session.health().connected
            with pytest.raises(TypeError):
                before.by_hotkey["5Stranger"] = before.neurons[0]  # type: ignore[index]
            endpoint.fault = fault
            await until(lambda: not session.health().connected)
            held = session.snapshot
            assert held is not None and held.by_hotkey == before.by_hotkey
            await until(lambda: (session.health().age_s or 0) > 0.2)
            assert session.snapshot is held
            assert "faulty: " in session.health().detail
            endpoint.fault = None
            await until(lambda: session.health().connected)
            assert session.snapshot is not None
            assert held.block < session.snapshot.block < held.block + 10**6
            assert endpoint.clients >= 2

    run(go())


def test_a_session_that_hangs_closes_all_the_same(net: DevNetwork) -> None:
    async def go() -> None:
        endpoint = FaultyEndpoint(net.directory)
        async with session_on(endpoint) as session:
            endpoint.fault = "hang for good"
            await until(lambda: not session.health().connected)
        assert session.snapshot is not None

    run(go())


def test_a_half_dead_websocket_costs_nothing_but_a_turn(net: DevNetwork) -> None:
    """bittensor's real websocket client against a server that accepts and then says nothing."""

    async def go() -> None:
        release = asyncio.Event()

        async def silent(websocket: Any) -> None:
            await release.wait()

        async with serve(silent, "127.0.0.1", 0, close_timeout=0.1) as server:
            port = server.sockets[0].getsockname()[1]
            dead = networks.RpcEndpoint(f"ws://127.0.0.1:{port}")
            with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
                async with session_on(dead, timing=Timing(open_s=0.3)):
                    pass
            async with session_on(
                dead, FaultyEndpoint(net.directory), timing=Timing(open_s=0.5, refresh_s=0.05)
            ) as session:
                assert session.health().connected
                assert session.snapshot is not None
            release.set()

    run(go())


def test_the_other_endpoint_takes_over(net: DevNetwork) -> None:
    async def go() -> None:
        first, second = FaultyEndpoint(net.directory, "first"), FaultyEndpoint(net.directory, "second")
        async with session_on(first, second) as session:
            assert (first.clients, second.clients) == (1, 0)
            first.fault = "hang"
            await until(lambda: second.clients == 1 and session.health().connected)
            assert session.health().detail == "ok"

    run(go())


def test_a_height_that_every_endpoint_repeats_is_believed_in_time(net: DevNetwork) -> None:
    """The chain was started anew: refusing its height for ever would leave the miner deaf."""

    async def go() -> None:
        endpoint = FaultyEndpoint(net.directory)
        async with session_on(endpoint, timing=Timing(refresh_s=0.01, backoff_most_s=0.01, believe_s=0.2)) as session:
            held = session.snapshot
            assert held is not None
            endpoint.fault = "behind"
            await until(lambda: session.snapshot is not None and session.snapshot.block < held.block)
            assert session.health().connected

    run(go())


def test_an_endpoint_is_published_only_when_it_changed(net: DevNetwork) -> None:
    async def go() -> None:
        assert net.server is not None
        nonces = net.server.chain.state.nonces
        hotkey = net.miners[0].hotkey.ss58_address
        async with session_on(FaultyEndpoint(net.directory), wallet=net.miners[0]) as session:
            assert await session.publish_axon("127.0.0.1", 8091) is True
            assert session.own_neuron is not None and session.own_neuron.axon == ("127.0.0.1", 8091)
            assert await session.publish_axon("127.0.0.1", 8091) is False
            assert nonces[hotkey] == 1
            assert await session.publish_axon("127.0.0.1", 8092) is True
            assert nonces[hotkey] == 2
            assert session.health().detail == "ok"
            net.server.chain.state.neurons[session.own_neuron.uid].axon = None  # somebody reset it
            await until(lambda: nonces[hotkey] == 3)
        async with session_on(FaultyEndpoint(net.directory), wallet=net.miners[0]) as session:
            assert await session.publish_axon("127.0.0.1", 8092) is False

    run(go())


def test_a_changed_external_address_is_published_again(net: DevNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    current = ["10.0.0.1"]

    async def look_up(name: str) -> str:
        assert name == "home.example"
        return current[0]

    monkeypatch.setattr(address_module, "_look_up", look_up)

    async def go() -> None:
        async with session_on(FaultyEndpoint(net.directory), wallet=net.miners[0]) as session:
            await session.publish_axon("home.example", 8091)
            current[0] = "10.0.0.2"
            await until(lambda: session.own_neuron is not None and session.own_neuron.axon == ("10.0.0.2", 8091))

    run(go())


def test_a_refused_publication_is_told_and_tried_again(tmp_path: Path) -> None:
    async def go() -> None:
        with dev_network(tmp_path, state=DevState(block_time_s=0.02, serving_rate_limit=10**6)) as net:
            assert net.server is not None
            async with session_on(FaultyEndpoint(tmp_path), wallet=net.miners[0]) as session:
                assert await session.publish_axon(None, 8091) is True
                assert await session.publish_axon(None, 8092) is False
                assert "rate limit" in session.health().detail
                net.server.chain.state.serving_rate_limit = 0
                await until(lambda: session.own_neuron is not None and session.own_neuron.axon == ("127.0.0.1", 8092))
                await until(lambda: session.health().detail == "ok")

    run(go())


def test_weights_are_set_and_read_back(net: DevNetwork) -> None:
    async def go() -> None:
        async with session_on(FaultyEndpoint(net.directory), wallet=net.validators[0]) as session:
            assert session.own_neuron is not None
            miner_uid = 1 - session.own_neuron.uid
            result = await session.set_weights({miner_uid: 3.0, session.own_neuron.uid: 1.0})
            assert result and (result.code, result.mode, result.reveal_round) == ("ok", "set", None)
            async with bittensor.Client("local", substrate=DevSubstrate(net.directory)) as client:
                rows = await client.weights.weights(net.netuid)
            assert rows[session.own_neuron.uid][miner_uid] == pytest.approx(0.75, abs=1e-4)
            assert net.server is not None
            net.server.chain.state.weights_set_rate_limit = 10**6
            again = await session.set_weights({miner_uid: 1.0})
            assert not again and again.code == "rate_limited" and "Retry in" in again.message
            for wrong in ({miner_uid: -1.0}, {miner_uid: float("nan")}, {}):
                net.server.chain.state.weights_set_rate_limit = 0
                with pytest.raises(BadInput):
                    await session.set_weights(wrong)

    run(go())


def test_weights_carry_the_version_that_the_subnet_asks_for(net: DevNetwork) -> None:
    async def go() -> None:
        assert net.server is not None
        state = net.server.chain.state
        state.weights_version_key = 3210
        async with session_on(FaultyEndpoint(net.directory), wallet=net.validators[0]) as session:
            assert (await session.set_weights({0: 1.0})).ok

    run(go())


# Which subnet this is ---------------------------------------------------------


@pytest.mark.parametrize("name", ["StoryFi", "storynet", "StoryNet AI", "The StoryFi subnet", "StorynetAI"])
def test_a_subnet_with_one_of_storyfis_names_needs_no_word_from_the_operator(name: str) -> None:
    check_subnet(SubnetIdentity(name), 7, "finney", None)


@pytest.mark.parametrize("name", ["unnamed", "Omron", "Story", "StoryFinance", "notstoryfi"])
def test_another_subnet_is_refused_unless_it_is_named(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_subnet(SubnetIdentity(name, "https://example.org"), 7, "wss://node.example/KEY", None)
    said = str(refused.value)
    assert f"subnet 7 of wss://node.example calls itself '{name}' (https://example.org): that is not StoryFi" in said
    assert f"--i-know-this-subnet '{name}'" in said and "btcli subnets list" in said and "KEY" not in said
    with pytest.raises(ConfigError):
        check_subnet(SubnetIdentity(name), 7, "finney", "Bitmind")
    check_subnet(SubnetIdentity(name), 7, "finney", name)


def test_on_a_strangers_subnet_nothing_is_hinted_published_or_set(net: DevNetwork) -> None:
    assert net.server is not None
    state = net.server.chain.state

    async def go() -> None:
        stranger = bittensor.Wallet("stranger", path=str(net.directory / "elsewhere"))
        stranger.create_new_hotkey(suppress=True)
        state.subnet_name = "Omron\x1b[31m\u202e"
        with pytest.raises(ConfigError, match=r"calls itself 'Omron\[31m': that is not StoryFi") as refused:
            await connect(net.name, stranger, net.netuid)
        assert "register" not in str(refused.value)
        session = await connect(net.name, net.validators[0], net.netuid, known_subnet="Omron[31m")
        assert session.health().detail == "ok" and (await session.set_weights({0: 1.0})).ok
        await session.close()

    run(go())


def test_a_number_that_is_sold_while_we_run_gets_no_more_writes(net: DevNetwork) -> None:
    assert net.server is not None
    state = net.server.chain.state

    async def go() -> None:
        async with session_on(FaultyEndpoint(net.directory), wallet=net.validators[0]) as session:
            state.subnet_name = "Omron"
            await until(lambda: "'Omron': that is not StoryFi" in session.health().detail)
            with pytest.raises(ConfigError, match="not StoryFi"):
                await session.set_weights({0: 1.0})
            with pytest.raises(ConfigError, match="not StoryFi"):
                await session.publish_axon("127.0.0.1", 8091)
            assert not state.weights and all(neuron.axon is None for neuron in state.neurons)

    run(go())


@pytest.mark.parametrize("network", ["finney", "local", "wss://node.example:443/KEY", "finney,test"])
def test_no_network_but_test_and_dev_has_a_number_of_its_own(network: str) -> None:
    assert networks.default_netuid("test") == networks.default_netuid("dev:/tmp/x") == 108
    with pytest.raises(BadInput, match=r"--netuid is missing.*\n  btcli subnets list --network ") as missing:
        networks.default_netuid(network)
    assert "KEY" not in str(missing.value)


def test_weights_are_committed_where_the_subnet_demands_it(tmp_path: Path) -> None:
    async def go() -> None:
        state = DevState(commit_reveal_weights_enabled=True)
        with dev_network(tmp_path, state=state) as net:
            async with session_on(FaultyEndpoint(tmp_path), wallet=net.validators[0]) as session:
                result = await session.set_weights({0: 1.0})
                assert result.mode == "committed"
                assert state.commits[0]["reveal_round"] == result.reveal_round
                assert len(state.commits[0]["commit"]) > 100

    run(go())


def test_writes_that_cannot_succeed_come_back_with_a_reason(net: DevNetwork) -> None:
    async def go() -> None:
        endpoint = FaultyEndpoint(net.directory)
        async with session_on(endpoint, wallet=net.miners[0], timing=Timing(write_s=0.2)) as session:
            poor = await session.set_weights({0: 1.0})
            assert (poor.ok, poor.code) == (False, "insufficient_balance")
            endpoint.fault = "drop"
            assert (await session.set_weights({0: 1.0})).code == "unavailable"
            endpoint.fault = "hang"
            assert (await session.set_weights({0: 1.0})).code == "timeout"

    run(go())


def test_connect_says_what_is_missing(net: DevNetwork) -> None:
    wallets = net.wallet_path

    async def go() -> None:
        with pytest.raises(BadInput, match="there is no subnet 7"):
            await connect(net.name, net.miners[0], 7)
        stranger = bittensor.Wallet("stranger", path=str(net.directory / "elsewhere"))
        stranger.create_new_hotkey(suppress=True)
        with pytest.raises(ConfigError) as missing:
            await connect(net.name, stranger, net.netuid)
        assert "is not registered on subnet 108" in str(missing.value)
        assert "\n  btcli subnets register --netuid 108 --network " in str(missing.value)
        assert f"--wallet stranger --wallet-hotkey default --wallet-path {stranger.path}" in str(missing.value)
        session = await connect(net.name, stranger, net.netuid, must_be_registered=False)
        assert "is not registered" in session.health().detail
        with pytest.raises(ConfigError, match="not registered"):
            await session.publish_axon(None, 8091)
        await session.close()

    run(go())
    with pytest.raises(ConfigError, match=r"no wallet 'nobody'.*\n  btcli wallet create --wallet nobody "):
        open_wallet("test", "nobody", "default", wallets)
    with pytest.raises(ConfigError, match=r"no hotkey 'second'\n  btcli wallet new-hotkey --wallet miner "):
        open_wallet("test", "miner", "second", wallets)
    (wallets / "miner" / "hotkeys" / "default").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_wallet("test", "miner", "default", wallets)


def test_the_btcli_commands_exist() -> None:
    """The commands that our messages name, against the btcli that is installed."""
    from bittensor.cli.commands import subnets, wallet
    from typer.main import get_command

    groups = {"wallet": get_command(wallet.app), "subnets": get_command(subnets.app)}
    for (group, name), options in {
        ("wallet", "create"): {"--wallet", "--wallet-hotkey", "--wallet-path"},
        ("wallet", "new-hotkey"): {"--wallet", "--wallet-hotkey", "--wallet-path"},
        ("wallet", "regen-hotkey"): {"--overwrite", "--wallet"},
        ("subnets", "register"): {"--netuid", "--network", "--wallet", "--wallet-hotkey"},
        ("subnets", "list"): {"--network"},
    }.items():
        found: Any = groups[group]
        assert options <= {flag for param in found.commands[name].params for flag in param.opts}, name


# Names and addresses ----------------------------------------------------------


@pytest.mark.parametrize(("name", "hotkey"), [("../x", "default"), ("miner", "a/b"), (".", "default"), ("", "default")])
@pytest.mark.parametrize("network", ["dev", "test"])
def test_a_wallets_name_is_no_path(network: str, name: str, hotkey: str) -> None:
    with pytest.raises(BadInput, match="--wallet-path"):
        open_wallet(network, name, hotkey)


def test_network_names() -> None:
    def labels(network: str) -> list[str]:
        return [endpoint.label for endpoint in networks.endpoints(network)]

    assert labels("test") == ["test"]
    assert labels("finney")[0] == "finney" and len(labels("finney")) > 1
    assert labels("ws://a:1,wss://b,local") == ["ws://a:1", "wss://b", "local"]
    assert labels("wss://user:password@host:443/v1/KEY?k=KEY") == ["wss://host:443"]
    assert labels("ws://[::1]:9944/KEY") == ["ws://[::1]:9944"]
    assert labels("dev") == ["dev"]
    assert networks.dev_directory("dev:/some/where") == Path("/some/where")
    assert networks.dev_directory("test") is None
    for public in ("test", "finney", "wss://node.example", "local,wss://node.example"):
        assert networks.is_public(public)
    for local in (
        "dev",
        "dev:/some/where",
        "local",
        "ws://127.0.0.1:9944",
        "ws://localhost",
        "ws://192.168.1.9",
    ):
        assert not networks.is_public(local)
    for wrong in ("", "nakamoto", "http://host", "test,dev", "dev,test", "ws://", "ws://host:99999", "ws://host:x"):
        with pytest.raises(BadInput):
            networks.endpoints(wrong)


@pytest.mark.parametrize("url", ["https://host/KEY", "https://user:KEY@host", "wss://[host/KEY", "ws://host:99999/KEY"])
def test_a_providers_key_is_not_in_the_error(url: str) -> None:
    with pytest.raises(BadInput, match="known: dev") as error:
        networks.endpoints(url)
    assert "KEY" not in str(error.value)
    networks.is_public(url)  # nor is it a crash


def test_external_ip() -> None:
    async def go() -> None:
        assert await external_ip("203.0.113.7", "local") == "203.0.113.7"
        assert await external_ip("8.8.8.8", "test") == "8.8.8.8"
        assert await external_ip(None, "dev") == "127.0.0.1"
        assert await external_ip("localhost", "local") == "127.0.0.1"
        for private in ("127.0.0.1", "192.168.1.5", "0.0.0.0", "::1"):
            with pytest.raises(ConfigError, match="cannot reach"):
                await external_ip(private, "test")
        with pytest.raises(Unavailable, match="cannot be looked up"):
            await external_ip("no such name", "test")

    run(go())
