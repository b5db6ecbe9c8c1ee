"""Runs the validator's rounds: asks every miner, has the answers judged, and keeps what each miner earned.

    query     one signed request to one miner, over either wire, timed by us
    questions the next task, from real earlier answers
    audit     which answers are replayed, and their proofs
    round     one round's answers -> what each earned
    state     averages, evidence, old answers and stories, in SQLite
    loop      chain, rounds, weights, until a signal

What an answer is worth is decided in `storyfi_lite.validator`, which knows nothing of this package.
"""
