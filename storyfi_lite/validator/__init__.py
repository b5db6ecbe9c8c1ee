"""Verifies, scores and rewards answers, for any validator in a few lines. It uses no chain and no HTTP, and llama.cpp only
if a proof is asked for.

    verify(request, response) -> Verification    is it a valid answer?
    score(response, context, history) -> Score   0 to 100, each part with what it saw
    reward(score, claim, proof) -> Reward        what the claim about the model is worth
    CopyIndex().compare(round) -> Likeness each  who copied whom
    Prover(file).prove(request, response, seed)  did this file write it? -> Verdict, which reward() takes

A round, whole (`answers`: hotkey -> bytes, seconds from request to answer by your clock, time of arrival):

    index = CopyIndex()
    seen = {hotkey: verify(request, body) for hotkey, (body, _, _) in answers.items()}
    readable = [hotkey for hotkey in seen if seen[hotkey].readable]
    prints = {hotkey: fingerprint(request, seen[hotkey].data, hotkey) for hotkey in readable}
    like = dict(zip(readable, index.compare([Entry(prints[hotkey], answers[hotkey][2]) for hotkey in readable])))
    for hotkey, (_, elapsed_s, _) in answers.items():
        base = score(seen[hotkey], Context(request, elapsed_s), like.get(hotkey, UNCOMPARED))
        if seen[hotkey].response is not None:
            print(reward(base, seen[hotkey].response).log_line(hotkey))
    index.add(prints.values())
"""

from storyfi_lite.validator.copies import UNCOMPARED, CopyIndex, Entry, Fingerprint, Likeness, fingerprint
from storyfi_lite.validator.proof import Prover
from storyfi_lite.validator.reward import (
    ClaimedModel,
    Evidence,
    Reward,
    RewardPolicy,
    load_policy,
    moving_average,
    pool,
    reward,
    standing,
    weights,
)
from storyfi_lite.validator.score import Context, Score, score
from storyfi_lite.validator.structure import Part
from storyfi_lite.validator.verdict import Verdict
from storyfi_lite.validator.verify import Verification, verify

__all__ = [
    "UNCOMPARED",
    "ClaimedModel",
    "Context",
    "CopyIndex",
    "Entry",
    "Evidence",
    "Fingerprint",
    "Likeness",
    "Part",
    "Prover",
    "Reward",
    "RewardPolicy",
    "Score",
    "Verdict",
    "Verification",
    "fingerprint",
    "load_policy",
    "moving_average",
    "pool",
    "reward",
    "score",
    "standing",
    "verify",
    "weights",
]
