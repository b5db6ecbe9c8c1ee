"""Checks what a miner needs, one thing after the other, and names the command that mends what is wrong.

A check is a function from a Setup to a frozen Check. None changes anything, raises for what it is there to find, or shows a key.
All of it is seen from this machine: whether a router or a provider lets strangers in can only be seen from outside.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import httpx

from storyfi_lite import files
from storyfi_lite.chain import ChainSession, connect, open_wallet
from storyfi_lite.chain.address import external_ip
from storyfi_lite.chain.networks import url_host
from storyfi_lite.errors import LiteError, Unavailable
from storyfi_lite.loaders.keys import API_KEYS, load_key
from storyfi_lite.machine import hardware, selftest
from storyfi_lite.machine.build import rebuild_command
from storyfi_lite.models.gguf import read_local
from storyfi_lite.models.registry import ApiModel, load_registry
from storyfi_lite.models.resolve import find
from storyfi_lite.models.store import Store
from storyfi_lite.options import ChainOptions

Status = Literal["ok", "mend", "skip"]

SKEW_FROM_S, SKEW_TO_S = -2.0, 8.0  # btauth/1 takes requests 2 s early to 10 s old; a block arrives up to 6 s late
CALL_TIMEOUT_S = 5.0
FREE_DISK_BYTES = 2 * 2**30  # logs, the nonce store and the chain's state


@dataclass(frozen=True)
class Setup:
    """Holds the options of `storyfi-lite mine` that can be wrong."""

    chain: ChainOptions
    port: int
    external_ip: str | None
    model: str | None
    api_key_file: Path | None = None


@dataclass(frozen=True)
class Check:
    """Holds one finding. `fix`: the mending command where status is "mend"."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def _mend(name: str, error: LiteError) -> Check:
    """Make a Check from an error: its first line says what is wrong, the others are the command."""
    first, _, rest = str(error).partition("\n")
    return Check(name, "mend", first, rest.strip())


def run(setup: Setup) -> Iterator[Check]:
    """Run all checks in order, and yield each when it is done."""
    yield check_wallet(setup)
    yield from check_chain(setup)
    yield check_port(setup)
    yield check_build(setup)
    yield check_model(setup)
    yield check_api_keys(setup)
    yield check_disk()


# Wallet and chain -------------------------------------------------------------


def check_wallet(setup: Setup) -> Check:
    """Check that the wallet is there and its hotkey can be read."""
    try:
        wallet = open_wallet(setup.chain.network, setup.chain.wallet, setup.chain.hotkey, setup.chain.wallet_path)
    except LiteError as error:
        return _mend("wallet", error)
    return Check("wallet", "ok", f"{setup.chain.wallet}/{setup.chain.hotkey}: {wallet.hotkey.ss58_address}")


def check_chain(setup: Setup) -> tuple[Check, ...]:
    """Check that the chain answers, the hotkey is registered, and the clock is right."""
    return asyncio.run(_check_chain(setup))


async def _check_chain(setup: Setup) -> tuple[Check, ...]:
    chain, wallet = setup.chain, None
    with suppress(LiteError):  # check_wallet says it
        wallet = open_wallet(chain.network, chain.wallet, chain.hotkey, chain.wallet_path)
    try:
        session = await connect(
            chain.network, wallet, chain.netuid, must_be_registered=False, known_subnet=chain.known_subnet
        )
    except LiteError as error:
        fix = "storyfi-lite doctor --network OTHER_ENDPOINT" if isinstance(error, Unavailable) else ""
        found = _mend("chain", error)
        unknown = [Check(name, "skip", "not known: see above") for name in ("registration", "clock")]
        return replace(found, fix=found.fix or fix), *unknown
    try:
        snapshot = session.snapshot
        seen = f"block {snapshot.block}, {len(snapshot.neurons)} neurons on subnet {chain.netuid}, {snapshot.identity}"
        try:
            clock = judge_clock(await session.clock_skew_s())
        except Unavailable as error:
            clock = Check("clock", "skip", str(error))
        return Check("chain", "ok", seen), _check_registration(session), clock
    finally:
        await session.close()


def _check_registration(session: ChainSession) -> Check:
    try:
        session.check_registered()
    except LiteError as error:
        return _mend("registration", error)
    neuron = session.own_neuron
    if neuron is None:
        return Check("registration", "skip", "not known: no wallet")
    where = "no endpoint published yet" if neuron.axon is None else f"published at {neuron.axon[0]}:{neuron.axon[1]}"
    return Check("registration", "ok", f"uid {neuron.uid}, {where}")


def judge_clock(skew_s: float) -> Check:
    """Judge this machine's clock. `skew_s`: as ChainSession.clock_skew_s gives it."""
    if SKEW_FROM_S <= skew_s <= SKEW_TO_S:
        return Check("clock", "ok", f"{skew_s:+.1f} s against the newest block, which is right")
    way = "ahead of" if skew_s > 0 else "behind"
    detail = f"this clock is {abs(skew_s):.0f} s {way} the chain's; signed requests will be refused as stale"
    return Check("clock", "mend", detail, "sudo timedatectl set-ntp true")


# Network ----------------------------------------------------------------------


def check_port(setup: Setup) -> Check:
    """Check that the port is free (or our miner's), and that the address that would be published leads back to it."""
    name, port = "port", setup.port
    try:
        ip = asyncio.run(external_ip(setup.external_ip, setup.chain.network))
    except LiteError as error:
        return _mend(name, error)
    try:
        reached = _leads_back(ip, port)
    except OSError as error:
        if _is_miner("127.0.0.1", port):
            reached = _is_miner(ip, port)
        else:
            return Check(name, "mend", f"port {port} cannot be opened: {error}", f"sudo ss -ltnp 'sport = :{port}'")
    if reached:
        return Check(name, "ok", f"{ip}:{port} leads here (whether from outside too, only a call from outside shows)")
    return Check(
        name,
        "mend",
        f"{ip}:{port} does not lead back here; a firewall, no port forwarding, or a router without a loop",
        f"sudo ufw allow {port}/tcp    then from another network: curl http://{ip}:{port}/health",
    )


def _leads_back(ip: str, port: int) -> bool:
    """Listen on the port, call ip:port, and return whether the call arrives here. Raises OSError if the port is taken."""
    word = secrets.token_bytes(16)
    with socket.create_server(("", port)) as server:
        server.settimeout(CALL_TIMEOUT_S)
        try:
            with socket.create_connection((ip, port), timeout=CALL_TIMEOUT_S) as caller, server.accept()[0] as called:
                called.sendall(word)
                return caller.recv(len(word)) == word
        except OSError:
            return False


def _is_miner(ip: str, port: int) -> bool:
    try:
        answer = httpx.get(f"http://{url_host(ip)}:{port}/health", timeout=CALL_TIMEOUT_S, trust_env=False)
        return answer.status_code in (200, 503)
    except httpx.HTTPError:
        return False


# Machine ----------------------------------------------------------------------


def check_build(setup: Setup) -> Check:
    """Check that llama.cpp is installed, computes right, and uses the GPU that is there."""
    selftest.ask_again()
    machine = hardware.probe()
    wrong = "" if machine.llama_gpu_build is None else selftest.fault("cpu")
    has_key = check_api_keys(setup).status == "ok"
    return judge_build(replace(machine, fault=wrong) if wrong else machine, has_key)


def judge_build(machine: hardware.Hardware, has_key: bool) -> Check:
    names = ", ".join(gpu.name for gpu in machine.gpus) or "no GPU"
    if machine.fault:
        first, _, fix = machine.fault.partition("\n")
        return Check("llama.cpp", "mend", first, fix.strip())
    if machine.llama_gpu_build is None and has_key:
        return Check("llama.cpp", "skip", "not installed; the API key will be used, at half the reward")
    if machine.llama_gpu_build is None:
        return Check("llama.cpp", "mend", "llama.cpp is not installed", rebuild_command())
    passed = ", ".join(part for part, why in selftest.noted("gpu").items() if not why) if machine.gpus else ""
    on_gpu = f", on the GPU with {passed}" if passed else ""
    built = f"{names}; built for the {'GPU' if machine.llama_gpu_build else 'CPU'}; its self-test passed{on_gpu}"
    return Check("llama.cpp", "ok", "; ".join([built, *machine.hints]))


def check_model(setup: Setup) -> Check:
    """Check that the model's file is whole, or any model's if none is named, by its header; no checksum is computed."""
    try:
        registry = load_registry()
        wanted = find(setup.model, registry) if setup.model else None
        if isinstance(wanted, ApiModel):
            return Check("model file", "skip", f"{wanted.key} is an API model")
        if isinstance(wanted, Path):
            read_local(wanted)
            return Check("model file", "ok", str(wanted))
        found = [(spec.key, path) for spec, _file, path in Store().complete_files(registry) if wanted in (None, spec)]
        for _, path in found:
            read_local(path)
    except LiteError as error:
        return _mend("model file", error)
    if found:
        key, path = found[0]
        return Check("model file", "ok", f"{key}: {path}" + (f", and {len(found) - 1} more" if found[1:] else ""))
    if wanted is None and check_api_keys(setup).status == "ok":
        return Check("model file", "skip", "no model file; the API key will be used, at half the reward")
    name = setup.model or "a model"
    return Check("model file", "mend", f"no file of {name} is here", f"storyfi-lite pull {setup.model or ''}".strip())


def check_api_keys(setup: Setup) -> Check:
    """Check which keys are set. A key is needed only for an API model."""
    try:
        present = [name for name in API_KEYS.values() if load_key(name, setup.api_key_file)]
    except LiteError as error:
        return _mend("API key", error)
    if present:
        return Check("API key", "ok", f"{' and '.join(present)} set")
    if setup.api_key_file is not None:
        fix = f"echo 'GEMINI_API_KEY=…' >> {setup.api_key_file}"
        return Check("API key", "mend", f"{setup.api_key_file} has no key; known: {', '.join(API_KEYS.values())}", fix)
    with suppress(LiteError):  # check_model says it
        model = load_registry().find(setup.model or "")
        if isinstance(model, ApiModel):
            return Check("API key", "mend", f"{setup.model} needs a key", f"export {API_KEYS[model.provider]}=…")
    return Check("API key", "skip", "none set; needed only without a local model")


def check_disk() -> Check:
    """Check that there is room where models are kept."""
    store = Store()
    there, free_bytes = files.nearest(store.root), store.free_bytes
    detail = f"{free_bytes / 2**30:.1f} GiB free in {there}"
    if free_bytes < FREE_DISK_BYTES:
        need = f"{FREE_DISK_BYTES / 2**30:.0f} GiB are needed beside the model"
        return Check("disk", "mend", f"{detail}; {need}", f"du -xh --max-depth=2 {there} | sort -h | tail")
    return Check("disk", "ok", detail)
