"""Runs llama.cpp through llama-cpp-python: batches, slots, grammar masks, the seeded sampler.

    settings.py     plain values: how a model is loaded, how tokens are chosen
    sampler.py      logits -> scores, a pure function
    our_words.py    what keeps our instructions out of an answer
    rule.py         one answer's choice rule: grammar + budget + repetition + sampler
    vocabulary.py   token ids <-> bytes
    prompt.py       chat template -> prompt tokens
    model.py        native handles: Model, Context
    dry_run.py      what a layout takes on each device, by llama.cpp itself
    engine.py       submit(job) -> Future; the one thread that owns the context
    replay.py       one prefill over a given answer: margins for the proof
    read_ahead.py   the next layer's weights, for a model whose weights stay in its file
    in_step.py      several batches through such a model's layers, one reading of the file for all

Knows neither HTTP nor the chain. Importing the package loads nothing; engine.engine loads llama.cpp.
"""
