"""Runs the validator as a process: asks every miner, has the round judged, keeps it, sets weights; until a signal.

It owns the chain session, the HTTP client and the clock. A round that a signal or an error ends counts for nobody: the state
holds whole rounds only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from storyfi_lite.chain import ChainSession, connect, open_wallet
from storyfi_lite.chain.networks import dev_directory, is_public, printable
from storyfi_lite.errors import BadInput, LiteError, Unavailable
from storyfi_lite.models.registry import load_registry
from storyfi_lite.models.store import Store
from storyfi_lite.opening.local import SILENT, LocalOpener
from storyfi_lite.options import ChainOptions
from storyfi_lite.protocol.messages import MAX_USER_INPUT_CHARS
from storyfi_lite.rounds.audit import Auditor, KnownFile, known_files
from storyfi_lite.rounds.query import Reply, Target, client, query
from storyfi_lite.rounds.questions import Question, draw
from storyfi_lite.rounds.round import RoundReport, RoundRules, judge_round
from storyfi_lite.rounds.state import State
from storyfi_lite.validator import CopyIndex, Prover, load_policy, weights
from storyfi_lite.validator.reward import DEFAULT_POLICY

if TYPE_CHECKING:
    from bittensor import Wallet

log = logging.getLogger(__name__)

WEIGHTS_EVERY_BLOCKS = 100  # the chain's own limit, on most subnets


@dataclass(frozen=True, kw_only=True)
class ValidateOptions:
    """Holds the flags of `storyfi-lite validate`. `model_paths`: files to replay with, beside those that were pulled."""

    chain: ChainOptions
    rounds: int | None
    interval_s: float
    timeout_s: float
    proofs: int
    model_paths: tuple[Path, ...]
    n_threads: int | None
    policy_path: Path | None
    inputs_path: Path | None
    dry_run: bool
    state_dir: Path | None


def run(options: ValidateOptions, show: Callable[[RoundReport], None]) -> None:
    """Validate until the process is stopped, or for `options.rounds` rounds. Raises a LiteError if it cannot start, and
    Unavailable if nobody answered in a dry run."""
    asyncio.run(_run(options, show))


async def _run(options: ValidateOptions, show: Callable[[RoundReport], None]) -> None:
    registry = load_registry()
    inputs = _inputs(options.inputs_path)
    policy = load_policy(options.policy_path or DEFAULT_POLICY, registry)
    chain = options.chain
    wallet = open_wallet(chain.network, chain.wallet, chain.hotkey, chain.wallet_path)
    files = await asyncio.to_thread(known_files, registry, Store(), options.model_paths)
    opener = LocalOpener(SILENT, registry)

    def open_prover(file: KnownFile) -> Prover:
        return opener.prover_of(file.spec, file.file, file.path, options.n_threads)

    auditor = Auditor(files, registry, open_prover)
    rules = RoundRules(registry, policy, wallet.hotkey.ss58_address, options.proofs, auditor.files)
    with contextlib.closing(_state(options, wallet)) as state, contextlib.closing(auditor):
        session = await connect(chain.network, wallet, chain.netuid, known_subnet=chain.known_subnet)
        try:
            await session.start()
            names = sorted(f"{file.spec.key} {file.file.quant}" for file in files.values())
            log.info("replays at most %d answers a round, of: %s", options.proofs, ", ".join(names) or "nothing")
            if not names:
                log.warning("no model file is here, so no claim can be proven: storyfi-lite pull MODEL --quant QUANT")
            if session.own_neuron is not None and not session.own_neuron.validator_permit:
                log.warning("this hotkey has no validator permit: miners will refuse it, and the chain its weights")
            loop = _Loop(options, wallet, session, state, auditor, rules, inputs)
            await loop.run(show)
        finally:
            await session.close()


def _inputs(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from None
    found = [line for line in lines if line]
    if not found or max(map(len, found)) > MAX_USER_INPUT_CHARS:
        raise BadInput(f"{path}: wanted are user inputs, one a line, of at most {MAX_USER_INPUT_CHARS:,} characters")
    return found


def _state(options: ValidateOptions, wallet: Wallet) -> State:
    root = options.state_dir or Path(platformdirs.user_state_dir("storyfi-lite"))
    # by the subnet, not by the endpoint's name: the same chain is reached under several
    subnet = "dev" if dev_directory(options.chain.network) else f"netuid-{options.chain.netuid}"
    kept = State(root / wallet.hotkey.ss58_address / subnet / "validator.sqlite")
    if not options.dry_run:
        return kept
    with contextlib.closing(kept):
        return kept.copy()


@dataclass
class _Loop:
    _options: ValidateOptions
    _wallet: Wallet
    _session: ChainSession
    _state: State
    _auditor: Auditor
    _rules: RoundRules
    _inputs: list[str]

    def __post_init__(self) -> None:
        self._dice = random.SystemRandom()  # no miner can foresee what is asked, nor who is checked
        self._index = CopyIndex(self._state.fingerprints())

    async def run(self, show: Callable[[RoundReport], None]) -> None:
        done = shown = 0
        while self._options.rounds is None or done < self._options.rounds:
            started_s = asyncio.get_running_loop().time()
            report = await self._round()
            if report is not None:
                show(report)
                shown += 1
            if not self._options.dry_run:
                await self._set_weights()
            done += 1
            if done != self._options.rounds:
                await asyncio.sleep(started_s + self._options.interval_s - asyncio.get_running_loop().time())
        if self._options.dry_run and not shown:
            raise Unavailable(self._nobody())

    def _nobody(self) -> str:
        """Say who is missing, and on a development chain how to start one."""
        network = self._options.chain.network
        if self._miners():
            said = "nobody answered"
        else:
            said = f"no miner on {printable(network)}, netuid {self._options.chain.netuid}, has published an endpoint"
        if dev_directory(network):
            said += f"\n  storyfi-lite mine --network {network}   in another terminal, if none runs there"
        return said

    async def _round(self) -> RoundReport | None:
        question = draw(self._dice, self._state.stories(), self._inputs)
        standings = self._state.standings()
        targets = [Target(hotkey, at, standings[hotkey].wire if hotkey in standings else "")
                   for hotkey, at in self._miners().items()]  # fmt: skip
        if not targets:
            if not self._options.dry_run:  # its error says the same
                log.warning("%s", self._nobody().replace("\n ", ";"))
            return None
        log.info("asking %d miners for %s: %s", len(targets), question.request.task_type, question.request.user_input)
        replies = await self._ask_all(targets, question)
        if not any(isinstance(reply, Reply) for reply in replies.values()):
            why = "; ".join(sorted({str(reply) for reply in replies.values()}))
            log.warning("nobody answered (%s); this round is not counted", why)
            return None
        registered, own = self._session.snapshot.by_hotkey, self._rules.validator_ss58
        # registered miners of earlier rounds that have no endpoint now get 0; else they would keep their weight for ever
        gone = [hotkey for hotkey in standings if hotkey in registered and hotkey not in replies and hotkey != own]
        replies |= dict.fromkeys(gone, "no endpoint")
        number, prove = self._state.rounds + 1, self._auditor.prove
        report, outcome = await asyncio.to_thread(
            judge_round, number, question, replies, standings, self._index, self._rules, prove, self._dice
        )
        self._state.save(outcome)
        self._index.add(outcome.fingerprints)
        return report

    def _miners(self) -> dict[str, tuple[str, int]]:
        """Return every miner with a published endpoint. On a public network only public addresses count, or a miner could make
        this machine call its own neighbours."""
        public = is_public(self._options.chain.network)
        return {
            neuron.hotkey_ss58: neuron.axon
            for neuron in self._session.snapshot.neurons
            if neuron.axon is not None
            and neuron.hotkey_ss58 != self._rules.validator_ss58
            and (not public or ipaddress.ip_address(neuron.axon[0]).is_global)
        }

    async def _ask_all(self, targets: list[Target], question: Question) -> dict[str, Reply | str]:
        """Ask all miners at once, so that all have the same time. Returns the replies in order of arrival."""
        replies: dict[str, Reply | str] = {}

        async def one(target: Target) -> None:
            wallet, timeout_s = self._wallet, self._options.timeout_s
            try:
                replies[target.hotkey_ss58] = await query(connection, wallet, target, question.request, timeout_s)
            except LiteError as error:
                replies[target.hotkey_ss58] = str(error)

        async with client() as connection:
            await asyncio.gather(*map(one, targets))
        return replies

    async def _set_weights(self) -> None:
        """Set the weights if it is time. What the chain refuses now is tried again after the next round."""
        snapshot, last = self._session.snapshot, self._state.weights_block
        if last is not None and last <= snapshot.block < last + WEIGHTS_EVERY_BLOCKS:
            return  # a height above the chain's own is another chain's, begun anew under the same name
        averages = {
            neuron.uid: standing.average
            for hotkey, standing in self._state.standings().items()
            if (neuron := snapshot.by_hotkey.get(hotkey)) is not None
        }
        shares = weights(averages)
        if not shares:
            log.info("nobody earned anything yet; no weights are set")
            return
        result = await self._session.set_weights(shares)
        if result:
            self._state.weights_set(result.block or snapshot.block)
            log.info("weights %s for %d miners", result.mode, len(shares))
        else:
            log.warning("weights are not set: %s; next try after the next round", result.message)
