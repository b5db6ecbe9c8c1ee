"""Judges the answers of one round; the caller hands in the function that replays them.

verify -> draw and replay -> compare with each other and with old answers -> score -> reward -> average. A miner that was asked
and did not answer gets 0 for the round.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from storyfi_lite.models.registry import Registry
from storyfi_lite.protocol.seed import challenge_seed
from storyfi_lite.rounds.audit import Candidate, candidate, choose, claimed_model
from storyfi_lite.rounds.query import Reply
from storyfi_lite.rounds.questions import Question, Story
from storyfi_lite.rounds.state import Outcome, Standing
from storyfi_lite.validator import (
    UNCOMPARED,
    Context,
    CopyIndex,
    Entry,
    Evidence,
    Fingerprint,
    Reward,
    RewardPolicy,
    Score,
    Verdict,
    Verification,
    fingerprint,
    moving_average,
    pool,
    reward,
    score,
    standing,
    verify,
)

log = logging.getLogger(__name__)

MAX_PROBLEM_CHARS = 500
Prove = Callable[[Sequence[Candidate]], Mapping[str, Verdict]]


@dataclass(frozen=True)
class MinerRow:
    """Reports what one miner did in one round. `paid_for`: what the multiplier rests on; "" without an answer. `problem`: why
    nothing is paid, or what was wrong; "" if nothing was."""

    hotkey: str
    wire: str
    problem: str
    elapsed_s: float | None = None
    valid: bool = False
    model: str = ""
    mode: str = ""
    base: float = 0.0
    proof: str = ""  # of this answer: proven, refuted, inconclusive; not drawn; no proof
    multiplier: float = 0.0
    final: float = 0.0
    average: float = 0.0
    paid_for: str = ""


@dataclass(frozen=True)
class RoundReport:
    number: int
    task: str
    user_input: str
    rows: tuple[MinerRow, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class RoundRules:
    """Holds what stays the same from round to round. `proofs`: the most replays in a round. `files`: sha256 of the files to
    replay with. `validator_ss58`: this validator's hotkey."""

    registry: Registry
    policy: RewardPolicy
    validator_ss58: str
    proofs: int
    files: Container[str]


@dataclass(frozen=True)
class _Seen:
    reply: Reply
    answer: Verification
    print: Fingerprint | None
    candidate: Candidate | None


def judge_round(
    number: int, question: Question, replies: Mapping[str, Reply | str], standings: Mapping[str, Standing],
    index: CopyIndex, rules: RoundRules, prove: Prove, dice: random.Random,
) -> tuple[RoundReport, Outcome]:  # fmt: skip
    """Judge one round. `replies`: every asked miner's, in order of arrival; a str says why there is none. `index` is only read."""
    seen = {
        hotkey: _look(hotkey, question, reply, standings.get(hotkey, Standing()), rules)
        for hotkey, reply in replies.items()
        if isinstance(reply, Reply)
    }
    candidates = [one.candidate for one in seen.values() if one.candidate]
    verdicts = prove(choose(candidates, rules.proofs, rules.policy, dice))
    scores = _scores(question, seen, verdicts, index)
    rows, after = [], {}
    for hotkey, reply in replies.items():
        before = standings.get(hotkey, Standing())
        if isinstance(reply, str):
            row = MinerRow(hotkey, before.wire, reply)
        else:
            row, before = _pay(hotkey, seen[hotkey], scores[hotkey], verdicts.get(hotkey), before, rules)
        average = moving_average(before.average, row.final, rules.policy)
        rows.append(replace(row, average=average))
        after[hotkey] = replace(before, average=average)
    report = RoundReport(number, question.request.task_type, question.request.user_input, tuple(rows))
    prints = [one.print for hotkey, one in seen.items() if one.print is not None]
    return report, Outcome(after, prints, _next_story(question, seen, scores), report.to_json())


def _look(hotkey: str, question: Question, reply: Reply, before: Standing, rules: RoundRules) -> _Seen:
    request = question.request
    answer = verify(request, reply.body)
    if not answer.readable or answer.data is None:
        return _Seen(reply, answer, None, None)
    chance = None
    if answer.provable and answer.response is not None:
        seed = challenge_seed(rules.validator_ss58, hotkey, str(reply.nonce_ns), request.task_type, request.user_input)
        evidence = before.evidence
        chance = candidate(hotkey, request, answer.response, seed, evidence, rules.policy, rules.registry, rules.files)
    return _Seen(reply, answer, fingerprint(request, answer.data, hotkey), chance)


def _scores(
    question: Question, seen: Mapping[str, _Seen], verdicts: Mapping[str, Verdict], index: CopyIndex
) -> dict[str, Score]:
    """Score each answer. Of answers that are alike the proven one is the original, else the first to arrive."""
    proven = {hotkey for hotkey, one in verdicts.items() if one.status == "proven"}
    arrivals = {hotkey: at for at, hotkey in enumerate(seen)}
    prints = {hotkey: one.print for hotkey, one in seen.items() if one.print is not None}
    entries = [Entry(print, float(arrivals[hotkey]), hotkey in proven) for hotkey, print in prints.items()]
    like = dict(zip(prints, index.compare(entries), strict=True))
    return {
        hotkey: score(one.answer, Context(question.request, one.reply.elapsed_s), like.get(hotkey, UNCOMPARED))
        for hotkey, one in seen.items()
    }


def _pay(
    hotkey: str, one: _Seen, base: Score, verdict: Verdict | None, before: Standing, rules: RoundRules
) -> tuple[MinerRow, Standing]:
    response, evidence = one.answer.response, before.evidence
    if verdict is not None:
        evidence = pool(evidence, verdict, rules.policy)
    paid = Reward(0.0, 0.0, 0.0, "not an answer")
    if response is not None:
        paid = reward(base, response, _proof_of(one, verdict, evidence, rules), rules.policy, rules.registry)
    log.info(paid.log_line(hotkey))
    paid_for = paid.reason
    # a miner is paid for its standing, not for the one answer that was replayed
    if verdict is not None and verdict.status == "proven" and paid.reason.endswith("is not proven"):
        paid_for += f" yet: this answer is, {rules.policy.proof.proven_needed} of its answers have to be"
    problems = [base.zeroed or "", "" if base.zeroed else "; ".join(one.answer.problems[:2])]
    if verdict is not None and verdict.status == "refuted":
        problems.append(verdict.reason)
    row = MinerRow(
        hotkey,
        one.reply.wire,
        problem="; ".join(filter(None, problems))[:MAX_PROBLEM_CHARS],
        elapsed_s=one.reply.elapsed_s,
        valid=one.answer.valid,
        model=response.model_name[:60] if response else "",
        mode=response.miner_mode if response else "",
        base=base.total,
        proof=verdict.status if verdict is not None else "no proof" if one.candidate is None else "not drawn",
        multiplier=paid.multiplier,
        final=paid.final,
        paid_for=paid_for,
    )
    return row, replace(before, evidence=evidence, wire=one.reply.wire)


def _proof_of(one: _Seen, verdict: Verdict | None, evidence: Evidence, rules: RoundRules) -> Verdict | None:
    """Return the miner's standing; a proven one counts only for an answer that could be replayed and was not found wrong. Else a
    miner with a good standing could write its other answers with any model."""
    assert one.answer.response is not None
    model = claimed_model(rules.registry, one.answer.response)
    if model is None:
        return None
    pooled = standing(evidence, model.key, rules.policy)
    failed = verdict is not None and verdict.status != "proven"
    if pooled.status == "proven" and (one.candidate is None or failed):
        return Verdict("inconclusive", model=model.key)
    return pooled


def _next_story(question: Question, seen: Mapping[str, _Seen], scores: Mapping[str, Score]) -> Story | None:
    """Return the story with the best valid answer as its next stage. None after chapters, which no later task needs."""
    task = question.request.task_type
    valid = [hotkey for hotkey in seen if seen[hotkey].answer.valid and not scores[hotkey].zeroed]
    if task == "chapters" or not valid:
        return None
    best = seen[max(valid, key=lambda hotkey: scores[hotkey].total)].answer.data
    assert best is not None
    return replace(question.story, stages={**question.story.stages, task: best})
