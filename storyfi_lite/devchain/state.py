"""Keeps the dev chain's state, one subnet in memory, and applies the real chain's rules and refusals to it.

`DevChain.handle(method, params)` answers JSON-shaped requests; link.py carries them over a socket, substrate.py puts
them behind bittensor's `Substrate` protocol. Rules, error names and storage names are those of the subtensor
pallet, for the calls that a miner and a validator make; any other call is refused by name. Every extrinsic
must be signed by the account that sends it, with the account's next nonce.

What it is not: no consensus, no fees, no history (a read at an older block gives today's state), no epochs
(incentives are the stake-weighted weights of this moment), and timelocked commits are kept but never
revealed, because opening them needs drand's public beacon. Blocks follow the clock, so heights go on rising
when the chain is started again.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GENESIS_UNIX_S = 1_767_225_600  # 2026-01-01: block 0
RAO_PER_TAO = 10**9
ENDOWMENT_RAO = 10_000 * RAO_PER_TAO  # what an account owns when the chain first meets it
U16_MAX = 65535
PALLET = "SubtensorModule"


class ChainRefused(Exception):
    """Says why the chain refuses a request. `name` is the pallet's error name, or "" where there is none."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


@dataclass
class DevNeuron:
    hotkey: str
    coldkey: str
    registered_block: int
    stake_rao: int = 0
    last_update_block: int = 0
    axon: dict[str, int] | None = None


@dataclass
class DevState:
    """Holds everything that the dev chain remembers. The hyperparameters carry the pallet's names in lower case."""

    netuid: int = 108
    subnet_name: str = "StoryFi dev"
    block_time_s: float = 0.25  # the "fast blocks" of a local subtensor
    burn_rao: int = RAO_PER_TAO // 2000
    serving_rate_limit: int = 50  # blocks
    weights_set_rate_limit: int = 100  # blocks
    weights_version_key: int = 0
    max_validators: int = 64
    min_stake_rao: int = 1000 * RAO_PER_TAO  # to set weights, and for a permit
    commit_reveal_weights_enabled: bool = False
    neurons: list[DevNeuron] = field(default_factory=list)  # index = uid
    balances_rao: dict[str, int] = field(default_factory=dict)
    nonces: dict[str, int] = field(default_factory=dict)
    weights: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # validator uid -> (uid, u16)
    commits: list[dict[str, Any]] = field(default_factory=list)


def signing_payload(call: dict[str, Any], address: str, nonce: int) -> bytes:
    """Return the bytes that the sender of a dev extrinsic signs: one canonical JSON text."""
    return json.dumps(["storyfi-lite dev chain", call, address, nonce], sort_keys=True).encode()


class DevChain:
    """Answers requests on the state, one at a time. `now_s` gives unix seconds."""

    def __init__(self, state: DevState | None = None, now_s: Callable[[], float] = time.time) -> None:
        self.state = state or DevState()
        self._now_s = now_s
        self._lock = threading.Lock()
        self._methods: dict[str, Callable[..., Any]] = {
            "netuid": lambda: self.state.netuid,
            "block_number": self.block_number,
            "block_hash": self.block_hash,
            "block_time": lambda: self.state.block_time_s,
            "account_next_index": lambda address: self.state.nonces.get(address, 0),
            "query": self._query,
            "query_map": self._query_map,
            "runtime_call": self._runtime_call,
            "submit": self._submit,
        }
        self._calls: dict[str, Callable[[str, dict[str, Any]], None]] = {
            "burned_register": self._burned_register,
            "add_stake": self._add_stake,
            "serve_axon": self._serve_axon,
            "set_mechanism_weights": self._set_weights,
            "commit_timelocked_mechanism_weights": self._commit_weights,
        }

    def handle(self, method: str, params: list[Any]) -> Any:
        """Answer one request. Raises ChainRefused."""
        if method not in self._methods:
            raise ChainRefused(f"the dev chain has no method {method}")
        with self._lock:
            return self._methods[method](*params)

    # Blocks -------------------------------------------------------------------

    def block_number(self) -> int:
        return int((self._now_s() - GENESIS_UNIX_S) / self.state.block_time_s)

    def block_hash(self, block: int | None = None) -> str:
        number = self.block_number() if block is None else block
        return "0x" + hashlib.sha256(f"storyfi-lite dev block {number}".encode()).hexdigest()

    # Reads --------------------------------------------------------------------

    def _query(self, module: str, name: str, params: list[Any]) -> Any:
        state = self.state
        if (module, name) == ("Timestamp", "Now"):
            return int((GENESIS_UNIX_S + self.block_number() * state.block_time_s) * 1000)
        if (module, name) == ("System", "Account"):
            return {"nonce": state.nonces.get(params[0], 0), "data": {"free": self._balance_rao(params[0])}}
        if module != PALLET:
            raise ChainRefused(f"the dev chain does not implement the storage item {module}.{name}")
        if name == "Owner":
            return next((neuron.coldkey for neuron in state.neurons if neuron.hotkey == params[0]), None)
        reads: dict[str, Callable[[], Any]] = {
            "Uids": lambda: self._uid(params[1]),
            "SubnetIdentitiesV3": lambda: {"subnet_name": state.subnet_name, "github_repo": "", "subnet_url": ""},
            "SubnetworkN": lambda: len(state.neurons),
            "ValidatorPermit": self._permits,
            "LastUpdate": lambda: [neuron.last_update_block for neuron in state.neurons],
            "Burn": lambda: state.burn_rao,
            "CollateralLockShare": lambda: 0,
            "ServingRateLimit": lambda: state.serving_rate_limit,
            "WeightsSetRateLimit": lambda: state.weights_set_rate_limit,
            "WeightsVersionKey": lambda: state.weights_version_key,
            "CommitRevealWeightsEnabled": lambda: state.commit_reveal_weights_enabled,
            "MinAllowedWeights": lambda: 1,
            "MaxWeightsLimit": lambda: U16_MAX,
            "SubnetEpochConsensus": lambda: "Yuma",
            "Tempo": lambda: 360,
            "RevealPeriodEpochs": lambda: 1,
            "LastEpochBlock": lambda: self.block_number() // 360 * 360,
            "PendingEpochAt": lambda: 0,
            "SubnetEpochIndex": lambda: self.block_number() // 360,
            "BlocksSinceLastStep": lambda: self.block_number() % 360,
        }
        if name not in reads:
            raise ChainRefused(f"the dev chain does not implement the storage item {module}.{name}")
        return reads[name]() if params[0] == state.netuid else None

    def _query_map(self, module: str, name: str, params: list[Any]) -> Any:
        if (module, name) == (PALLET, "Weights"):
            return sorted(self.state.weights.items()) if params == [self.state.netuid] else []
        raise ChainRefused(f"the dev chain does not implement the storage map {module}.{name}")

    def _runtime_call(self, api: str, method: str, params: list[Any]) -> Any:
        """Answer SubnetInfoRuntimeApi.get_metagraph, with the fields that bittensor/metagraph.py reads."""
        if (api, method) != ("SubnetInfoRuntimeApi", "get_metagraph"):
            raise ChainRefused(f"the dev chain does not implement the runtime call {api}.{method}")
        if params != [self.state.netuid]:
            return None
        state, neurons, block = self.state, self.state.neurons, self.block_number()
        stakes = [neuron.stake_rao for neuron in neurons]
        total = sum(stakes) or 1
        count = len(neurons)
        return {
            "netuid": state.netuid,
            "name": state.subnet_name,
            "symbol": "δ",
            "block": block,
            "tempo": 360,
            "last_step": block // 360 * 360,
            "blocks_since_last_step": block % 360,
            "owner_hotkey": neurons[0].hotkey if neurons else "",
            "owner_coldkey": neurons[0].coldkey if neurons else "",
            "network_registered_at": 0,
            "num_uids": count,
            "max_uids": 256,
            "hotkeys": [neuron.hotkey for neuron in neurons],
            "coldkeys": [neuron.coldkey for neuron in neurons],
            "axons": [neuron.axon for neuron in neurons],
            "active": [True] * count,
            "validator_permit": self._permits(),
            "last_update": [neuron.last_update_block for neuron in neurons],
            "block_at_registration": [neuron.registered_block for neuron in neurons],
            "incentives": self._incentives(),
            "dividends": [stake * U16_MAX // total if uid in state.weights else 0 for uid, stake in enumerate(stakes)],
            "alpha_stake": stakes,
            "total_stake": stakes,
        }

    def _permits(self) -> list[bool]:
        neurons = self.state.neurons
        ranked = sorted(range(len(neurons)), key=lambda uid: -neurons[uid].stake_rao)[: self.state.max_validators]
        return [uid in ranked and n.stake_rao >= self.state.min_stake_rao for uid, n in enumerate(neurons)]

    def _incentives(self) -> list[int]:
        """Return each neuron's stake-weighted sum of all weight rows, as fractions of U16_MAX."""
        scores = [0.0] * len(self.state.neurons)
        for validator_uid, row in self.state.weights.items():
            row_sum = sum(value for _, value in row)
            for uid, value in row:
                scores[uid] += self.state.neurons[validator_uid].stake_rao * value / row_sum
        total = sum(scores)
        return [int(score / total * U16_MAX) if total else 0 for score in scores]

    def _uid(self, hotkey: str) -> int | None:
        return next((uid for uid, neuron in enumerate(self.state.neurons) if neuron.hotkey == hotkey), None)

    def _balance_rao(self, address: str) -> int:
        return self.state.balances_rao.setdefault(address, ENDOWMENT_RAO)

    # Writes -------------------------------------------------------------------

    def _submit(self, extrinsic: dict[str, Any]) -> dict[str, Any]:
        """Check signature and nonce, then run the call. A refused call uses up its nonce, as on the chain."""
        from bittensor.sp_core import Keypair

        call, address, nonce = extrinsic["call"], extrinsic["address"], extrinsic["nonce"]
        try:
            key = Keypair(ss58_address=address, crypto_type=extrinsic["crypto_type"])
            holds = key.verify(signing_payload(call, address, nonce), bytes.fromhex(extrinsic["signature"]))
        except (ValueError, TypeError):
            holds = False
        if not holds:
            raise ChainRefused("Invalid Transaction: transaction has a bad signature")
        if nonce != self.state.nonces.get(address, 0):
            raise ChainRefused("Invalid Transaction: transaction is outdated")
        function = self._calls.get(call["function"]) if call["module"] == PALLET else None
        if function is None:
            raise ChainRefused(f"the dev chain does not implement the call {call['module']}.{call['function']}")
        self.state.nonces[address] = nonce + 1
        function(address, call["params"])
        block = self.block_number()
        return {"block": block, "block_hash": self.block_hash(block)}

    def _registered(self, hotkey: str, params: dict[str, Any]) -> int:
        uid = self._uid(hotkey) if params["netuid"] == self.state.netuid else None
        if uid is None:
            raise ChainRefused("The hotkey is not registered in subnet", "HotKeyNotRegisteredInSubNet")
        return uid

    def _pay(self, coldkey: str, amount_rao: int) -> None:
        if amount_rao > self._balance_rao(coldkey):
            raise ChainRefused("Not enough balance", "NotEnoughBalanceToStake")
        self.state.balances_rao[coldkey] -= amount_rao

    def _burned_register(self, coldkey: str, params: dict[str, Any]) -> None:
        if params["netuid"] != self.state.netuid:
            raise ChainRefused("The subnet does not exist", "SubnetNotExists")
        if self._uid(params["hotkey"]) is not None:
            raise ChainRefused("The hotkey is registered already", "HotKeyAlreadyRegisteredInSubNet")
        if len(self.state.neurons) >= 256:
            raise ChainRefused("No neuron id is available", "NoNeuronIdAvailable")
        self._pay(coldkey, self.state.burn_rao)
        self.state.neurons.append(DevNeuron(params["hotkey"], coldkey, self.block_number()))

    def _add_stake(self, coldkey: str, params: dict[str, Any]) -> None:
        uid = self._registered(params["hotkey"], params)
        self._pay(coldkey, params["amount_staked"])
        self.state.neurons[uid].stake_rao += params["amount_staked"]

    def _serve_axon(self, hotkey: str, params: dict[str, Any]) -> None:
        neuron = self.state.neurons[self._registered(hotkey, params)]
        if params["ip_type"] not in (4, 6):
            raise ChainRefused("The ip type is not 4 or 6", "InvalidIpType")
        address = (ipaddress.IPv4Address if params["ip_type"] == 4 else ipaddress.IPv6Address)(params["ip"])
        if address.is_unspecified or address.is_multicast:  # loopback is what a dev chain is for
            raise ChainRefused("An invalid IP address is passed to the serve function", "InvalidIpAddress")
        if not 0 < params["port"] <= U16_MAX:
            raise ChainRefused("An invalid port is passed to the serve function", "InvalidPort")
        block = self.block_number()
        if neuron.axon is not None and block - neuron.axon["block"] < self.state.serving_rate_limit:
            raise ChainRefused("An axon was served within the rate limit", "ServingRateLimitExceeded")
        neuron.axon = {**{key: params[key] for key in ("ip", "port", "ip_type", "protocol", "version")}, "block": block}

    def _may_set_weights(self, hotkey: str, params: dict[str, Any]) -> int:
        uid = self._registered(hotkey, params)
        neuron, block = self.state.neurons[uid], self.block_number()
        if neuron.stake_rao < self.state.min_stake_rao:
            raise ChainRefused("Not enough stake to set weights", "NotEnoughStakeToSetWeights")
        if not self._permits()[uid]:
            raise ChainRefused("No validator permit", "NeuronNoValidatorPermit")
        since = block - neuron.last_update_block
        if neuron.last_update_block and since < self.state.weights_set_rate_limit:
            raise ChainRefused("Weights were set within the rate limit", "SettingWeightsTooFast")
        return uid

    def _set_weights(self, hotkey: str, params: dict[str, Any]) -> None:
        if self.state.commit_reveal_weights_enabled:
            raise ChainRefused("This subnet takes committed weights only", "CommitRevealEnabled")
        uid = self._may_set_weights(hotkey, params)
        if params["version_key"] < self.state.weights_version_key:
            raise ChainRefused("The weights version key is too old", "IncorrectWeightVersionKey")
        dests, values = params["dests"], params["weights"]
        if len(dests) != len(values):
            raise ChainRefused("uids and weights differ in length", "WeightVecNotEqualSize")
        if len(set(dests)) != len(dests):
            raise ChainRefused("A uid is given twice", "DuplicateUids")
        if any(not 0 <= dest < len(self.state.neurons) for dest in dests):
            raise ChainRefused("A uid does not exist", "UidVecContainInvalidOne")
        self.state.weights[uid] = list(zip(dests, values, strict=True))
        self.state.neurons[uid].last_update_block = self.block_number()

    def _commit_weights(self, hotkey: str, params: dict[str, Any]) -> None:
        if not self.state.commit_reveal_weights_enabled:
            raise ChainRefused("This subnet takes plain weights only", "CommitRevealDisabled")
        uid = self._may_set_weights(hotkey, params)
        self.state.commits.append({"uid": uid, "commit": params["commit"], "reveal_round": params["reveal_round"]})
        self.state.neurons[uid].last_update_block = self.block_number()
