"""The validator's loop: who is asked what, over which wire, what their answers earn, and what is kept.

    query     one signed request to one miner, over either wire, timed by us
    draw      the next task, from real earlier answers
    audit     which answers are replayed, and their proofs
    round     one round's answers -> what each earned
    state     averages, evidence, old answers and stories, in SQLite
    loop      chain, rounds, weights, until a signal

What an answer is worth is decided in `storyfi_lite.validator`, which knows nothing of this package.
"""
