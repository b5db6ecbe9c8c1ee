"""Ways to bend the proof itself: who writes token by token what the claimed file nearly would have. For this machine only.

    python scripts/adversaries.py write --model SmolLM2-135M-Instruct.Q4_1.gguf --answers 6 --threads 1
    python scripts/adversaries.py again --model SmolLM2-135M-Instruct.Q4_1.gguf --answers 6 --threads 1
    python scripts/adversaries.py hotkeys --model SmolLM2-135M-Instruct.Q4_1.gguf
    python scripts/adversaries.py draws

`write`, a table of:

honest       the file's own choices
drafts       a coarser copy (Q3_K_M) proposes its N best tokens, the claimed file chooses among these alone
lenient      a coarser copy's token is taken wherever the claimed file's best is less than so many nats better: fewer corrections
             than speculative decoding needs
flat         wherever the best two are closer than so many nats, the dice choose: as a hand would that improves the text there
gibberish    the claimed file's eighth-best token at each place: what its noise seems to be there, which nobody else is judged by
title        the title is replaced by hand, all else is the file's own
no layers    a file with two of its layers left out
kv           keys and values in q8_0 or q4_0, claimed as f16

`again`: an honest file answers n times under the one seed, with other kernels, batches and types of keys and values, and the best by the
validator's own score is sent. How many texts there are, and what the best gains.

`hotkeys`: one machine answers one request for ten hotkeys, whose seeds differ, at once: how long that takes over one answer.

`draws`: a miner of a high claim that lies in some of its answers, among others of the same claim: how many rounds until it is paid
nothing, by the validator's own draw of 8 replays a round. It cannot know which answers are drawn.

Each prints a table, then one JSON line. `noise`: what the answers themselves show. `freedom`: the places of an answer where the writer could choose, or took another's token.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_proof
import llama_cpp
import numpy as np
from rich.table import Table

from storyfi_lite.engine.engine import Engine, EngineJob
from storyfi_lite.engine.model import Context as LlamaContext
from storyfi_lite.engine.model import Feed
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.sampler import Floats, scores
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.rounds.audit import choose
from storyfi_lite.validator import Context, Evidence, RewardPolicy, Verdict, load_policy, pool, score, standing
from storyfi_lite.validator.verdict import judge, noise_of
from storyfi_lite.validator.verify import verify_text

SEEN = 8
PROOFS = 8
LEFT_OUT = (20, 21)
TITLE = "Title: What the Tide Said"


@dataclass
class Writer:
    """One file and what it has read."""

    path: Path
    settings: EngineSettings
    held: int = 0
    context: LlamaContext = field(init=False)

    def __post_init__(self) -> None:
        self.model = bench_proof.load(self.path, self.settings)
        self.context = LlamaContext(self.model, self.settings)

    def begin(self) -> None:
        self.context.forget(0)
        self.held = 0

    def read(self, tokens: list[int]) -> Floats:
        """Returns what it expects next."""
        start, self.held = self.held, self.held + len(tokens)
        return self.context.decode([Feed(0, start, tokens, [len(tokens) - 1])])[0][0].copy()


Ranked = list[tuple[int, float]]
Choose = Callable[[list[Ranked]], tuple[int, bool]]


def ranked(rule: ChoiceRule, logits: Floats, params: SamplingParams) -> Ranked:
    """The best tokens that the rule allows, and their scores."""
    rule._adjust(logits)
    order, best = rule._ranked(logits)
    tokens = list(itertools.islice(order, SEEN))
    values = scores(logits, np.array(tokens), best, len(rule.tokens), params)
    return list(zip(tokens, map(float, values), strict=True))


def write(bench: bench_proof.Bench, writers: list[Writer], seed: int, choose: Choose) -> tuple[list[int], int, int]:
    """The tokens of an answer, its budget, and how often the writer was free."""
    script, params, budget = bench.script(seed), SamplingParams(seed), bench.given.max_tokens
    conversation = bench.model.chat_template.conversation(bench.model.vocabulary, script)
    rule = ChoiceRule(bench.model.vocabulary, conversation, script, params, budget)
    rule.force()
    new, freedom = list(rule.fed), 0
    for writer in writers:
        writer.begin()
    while not rule.done:
        logits = [writer.read(new) for writer in writers]
        token, free = choose([ranked(rule, one.copy(), params) for one in logits])
        freedom += free
        before = len(rule.fed)
        rule.score(logits[0], token)
        rule.force()
        new = rule.fed[before:]
    return rule.tokens, budget, freedom


def best(seen: list[Ranked]) -> tuple[int, bool]:
    return seen[0][0][0], False


def worst(seen: list[Ranked]) -> tuple[int, bool]:
    return seen[0][-1][0], True


def among_drafts(count: int) -> Choose:
    def choose(seen: list[Ranked]) -> tuple[int, bool]:
        drafts = {token for token, _ in seen[1][:count]}
        token = next((token for token, _ in seen[0] if token in drafts), seen[1][0][0])
        return token, token != seen[0][0][0]

    return choose


def lenient(nats: float) -> Choose:
    def choose(seen: list[Ranked]) -> tuple[int, bool]:
        draft, (own, top) = seen[1][0][0], seen[0][0]
        close = dict(seen[0]).get(draft, -np.inf) > top - nats
        return (draft if close else own), draft != own and close

    return choose


def flat(nats: float) -> Choose:
    dice = random.Random(1)

    def choose(seen: list[Ranked]) -> tuple[int, bool]:
        near = [token for token, value in seen[0][:2] if value > seen[0][0][1] - nats]
        return dice.choice(near), len(near) > 1

    return choose


def titled(bench: bench_proof.Bench, tokens: list[int]) -> list[int]:
    words = bench.model.vocabulary
    start = len(tokens) - 1 - tokens[-2::-1].index(words.end)
    _, rest = words.text_of(tokens[start:-1]).split("\n", 1)
    return [*tokens[:start], *words.tokenize(f"{TITLE}\n{rest}", special=False), words.end]


def without_layers(source: Path, scratch: Path) -> Path:
    """llama.cpp's own copy of the file without two layers."""
    params, target = llama_cpp.llama_model_quantize_default_params(), scratch / "short.gguf"
    params.only_copy, params.prune_layers = True, (ctypes.c_int32 * (len(LEFT_OUT) + 1))(*LEFT_OUT, -1)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    return target


def kinds(
    path: Path, coarse: Path, short: Path, settings: EngineSettings
) -> Iterator[tuple[str, list[Writer], Choose]]:
    own = Writer(path, settings)
    yield "honest", [own], best
    for nats in (0.05, 0.2, 0.5):
        yield f"flat, {nats} nats", [own], flat(nats)
    yield "gibberish", [own], worst
    yield "title", [own], best
    draft = Writer(coarse, settings)
    for count in (1, 2, 4):
        yield f"drafts, {count}", [own, draft], among_drafts(count)
    for nats in (0.1, 0.3, 1.0):
        yield f"lenient, {nats} nats", [own, draft], lenient(nats)
    yield "no layers", [Writer(short, settings)], best
    yield "kv q8_0", [Writer(path, replace(settings, kv_type="q8_0"))], best
    yield "kv q4_0", [Writer(path, replace(settings, kv_type="q4_0"))], best


def again(bench: bench_proof.Bench) -> None:
    base = replace(bench.settings, n_slots=1)
    ways = {
        "as the replay": base,
        "prompts in batches of 16": replace(base, n_batch=16, n_ubatch=16),
        "no flash attention": replace(base, flash_attn=False),
        "weights not repacked": replace(base, mapped=True),
        "q8_0 keys and values": replace(base, kv_type="q8_0"),
        "no flash attention, not repacked": replace(base, flash_attn=False, mapped=True),
    }
    noise, seeds = bench.noise(), english(bench)
    table = Table("sent", "texts of an answer, mean", "score, mean", "evidence", "proven", "refuted", "open")
    facts: dict[str, object] = {"answers": len(seeds), "noise": round(noise, 4)}
    texts: dict[int, set[str]] = {seed: set() for seed in seeds}
    sent: dict[int, tuple[float, Verdict]] = {}
    for number, (name, settings) in enumerate(ways.items(), 1):
        bench_proof.note(name)
        for seed, one in bench.write(bench.given.model, settings, seeds):
            asked = Context(bench.request(seed), elapsed_s=0.0)
            points = score(verify_text(one.text.encode(), "blueprint"), asked).total
            verdict = judge(bench.replay(seed, one.tokens, one.max_tokens), noise)
            texts[seed].add(one.text)
            sent[seed] = max(sent.get(seed, (-1.0, verdict)), (points, verdict), key=lambda row: row[0])
        count = sum(map(len, texts.values())) / len(seeds)
        mean = sum(points for points, _ in sent.values()) / len(seeds)
        statuses, weighed = judged([verdict for _, verdict in sent.values()])
        best_of = f"the best of {number}" if number > 1 else "the first"
        facts[best_of] = {"texts": count, "score": round(mean, 2), "evidence": weighed, "verdicts": statuses}
        table.add_row(f"{best_of}: {name}", f"{count:.1f}", f"{mean:.2f}", weighed, *map(str, statuses))
    bench_proof.show(table, facts)


def hotkeys(bench: bench_proof.Bench) -> None:
    noise, request = bench.noise(), english(bench)[0]
    table = Table("hotkeys", "seconds", "texts", "evidence", "proven", "refuted", "open")
    facts: dict[str, object] = {"noise": round(noise, 4)}
    script = bench.script(request)
    for count in (1, 10):
        settings = replace(bench.settings, n_slots=count)
        with Engine(bench.given.model, settings, bench_proof.template_of(bench.given.model)) as engine:
            started_s = time.monotonic()
            jobs = [EngineJob(script, SamplingParams(seed), started_s + 3600, max_tokens=900) for seed in range(count)]
            found = [future.result() for future in [engine.submit(job) for job in jobs]]
            took_s = time.monotonic() - started_s
        replays = [bench.replay_of(script, seed, one.tokens, one.max_tokens) for seed, one in enumerate(found)]
        statuses, weighed = judged([judge(one, noise) for one in replays])
        texts = len({one.text for one in found})
        facts[str(count)] = {"seconds": round(took_s, 1), "texts": texts, "evidence": weighed, "verdicts": statuses}
        table.add_row(str(count), f"{took_s:.1f}", str(texts), weighed, *map(str, statuses))
    bench_proof.show(table, facts)


def english(bench: bench_proof.Bench) -> list[int]:
    seeds = range(bench_proof.FIRST_MADE_UP, bench_proof.FIRST_MADE_UP + 3 * bench.given.answers)
    return [seed for seed in seeds if bench.request(seed).user_input.isascii()][: bench.given.answers]


def judged(verdicts: list[Verdict]) -> tuple[list[int], str]:
    """How many are proven, refuted and open, and the span of their evidence."""
    return bench_proof.counted(verdicts), bench_proof.shown_span([one.evidence for one in verdicts], 1)


def draws() -> None:
    policy, table, found = (
        load_policy(),
        Table("miners", "lies", "rounds until it is refuted, median", "nine in ten"),
        {},
    )
    for miners in (16, 64, 192):
        for share in (0.1, 0.5, 1.0):
            rounds = sorted(rounds_until_refuted(miners, share, policy, random.Random(seed)) for seed in range(100))
            found[f"{miners} {share}"] = [rounds[50], rounds[90]]
            table.add_row(str(miners), f"{share:.0%}", str(rounds[50]), str(rounds[90]))
    bench_proof.show(table, found)


def rounds_until_refuted(miners: int, share: float, policy: RewardPolicy, dice: random.Random) -> int:
    standings: dict[Any, Evidence] = dict.fromkeys(range(miners), Evidence())
    for number in itertools.count(1):
        asked: Any = [SimpleNamespace(hotkey=miner, gain=1.0, evidence=standings[miner]) for miner in range(miners)]
        for one in choose(asked, PROOFS, policy, dice):
            lies = one.hotkey == 0 and dice.random() < share
            verdict = Verdict("refuted" if lies else "proven", model="llama-3-70b")
            standings[one.hotkey] = pool(one.evidence, verdict, policy)
        if standing(standings[0], "llama-3-70b", policy).status == "refuted":
            return number
    raise AssertionError


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=("write", "again", "hotkeys", "draws"))
    options.add_argument("--model", type=Path)
    options.add_argument("--answers", type=int, default=6)
    options.add_argument("--threads", type=int, default=0)
    given = options.parse_args()
    if given.what == "draws":
        draws()
    elif given.model:
        facts = argparse.Namespace(**vars(given), characters=None, slots=1, max_tokens=900, mapped=False)
        bench = bench_proof.Bench(facts)
        {"write": written, "again": again, "hotkeys": hotkeys}[given.what](bench)
    else:
        options.error(f"{given.what} needs --model FILE")


def written(bench: bench_proof.Bench) -> None:
    given = bench.given
    table = Table("who wrote", "freedom", "noise", "match rate", "evidence", "proven", "refuted", "open")
    found: dict[str, object] = {}
    noise, seeds = bench.noise(), english(bench)
    settings = replace(bench.settings, n_ctx=2048)
    with tempfile.TemporaryDirectory() as scratch:
        coarse = bench_proof.requantized(given.model, "Q3_K_M", Path(scratch))
        short = without_layers(given.model, Path(scratch))
        for name, writers, choose in kinds(given.model, coarse, short, settings):
            bench_proof.note(name)
            verdicts, shown, freedom = [], [], 0
            for seed in seeds:
                tokens, budget, free = write(bench, writers, seed, choose)
                tokens = titled(bench, tokens) if name == "title" else tokens
                pair = bench.two_ways(seed, tokens, budget)
                shown.append(noise_of([pair]))
                verdicts.append(judge(pair[0], noise))
                freedom += free
            counts, weighed = judged(verdicts)
            rates = bench_proof.shown_span([one.match_rate for one in verdicts], 3)
            strays = bench_proof.shown_span(shown, 3)
            found[name] = {"freedom": freedom / len(seeds), "noise": strays, "evidence": weighed, "verdicts": counts}
            table.add_row(name, f"{freedom / len(seeds):.0f}", strays, rates, weighed, *map(str, counts))
    bench_proof.show(table, {"answers": len(seeds), "noise": round(noise, 4), **found})


if __name__ == "__main__":
    main()
