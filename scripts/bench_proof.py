"""How well the proof tells a file from its impostors, what honest settings shift, and how often honest answers are refuted.

    python scripts/bench_proof.py impostors --model SmolLM2-135M-Instruct.Q4_1.gguf --answers 50 --threads 1
    python scripts/bench_proof.py limits    --model SmolLM2-135M-Instruct.Q4_1.gguf --answers 20
    python scripts/bench_proof.py drift     --model SmolLM2-135M-Instruct.Q4_1.gguf
    python scripts/bench_proof.py honest    --model SmolLM2-135M-Instruct.Q4_1.gguf --answers 1000 --keep honest.jsonl
    python scripts/bench_proof.py cost      --model SmolLM2-135M-Instruct.Q4_1.gguf

impostors  write answers as a miner would and claim the given file; all are replayed with that file. Requantized copies of one
           file are the hardest case there is: the same model. A copy of the claimed file's own type is left out: it is the same
           file, nearly.
           With `--written FILE ...`, answers that `write --keep FILE` kept: the first file's are the honest ones.
limits     the noise that each single answer shows, computed in two ways, beside that of all and the one that best explains
           which tokens are behind; the honest answers' verdicts by the lowest and the highest of them.
drift      the claimed file under other slots, batches, threads, flash attention, KV types: what a verdict must absorb. Keys and
           values are replayed in the type that they were written with.
           `--written FILE` replays, in place of these, what `write --keep FILE` wrote elsewhere: on a GPU (`--gpu-layers`), on
           another machine, with another build of llama.cpp (LLAMA_CPP_LIB_PATH). With `--characters N` both ask for short
           English texts, as `honest` does.
honest     in rounds of 16 to one request, as validators ask; judged by the noise that one other answer shows. `--keep` adds each
           verdict to a file, so that a run that was cut goes on. `--characters N` judges English texts of N characters, up to a
           third more, in place of blueprints: cheaper where many are wanted, and what is said of short ones.
cost       CPU seconds of replay over those of generation, one slot, the answers of one round.

Each prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
from rich.console import Console
from rich.table import Table

from storyfi_lite import tasks
from storyfi_lite.cli.calibrate import STORIES
from storyfi_lite.engine.engine import Engine, EngineJob, Generation
from storyfi_lite.engine.model import Context, Model
from storyfi_lite.engine.replay import Replay, Replayer
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.grammar.prose import Prose
from storyfi_lite.grammar.script import Script, one_turn
from storyfi_lite.models.gguf import read_local
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.rounds.questions import made_up
from storyfi_lite.validator.calibration import rate_bound
from storyfi_lite.validator.verdict import ELSEWHERE, Verdict, behind, evidence, judge, noise_of

# llama_ftype of llama.h
IMPOSTORS = {"Q8_0": 7, "Q4_K_M": 15, "Q3_K_M": 12, "Q2_K": 10}
LENGTHS = (25, 50, 100, 150, 300)
ROUND = 16
FIRST_MADE_UP = len(STORIES)  # of the seeds: those before it ask in six languages
# For a base model that carries no chat template: the texts one after the other.
PLAIN = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=list(BENCHES))
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--answers", type=int, default=50)
    options.add_argument("--max-tokens", type=int, default=900)
    options.add_argument("--threads", type=int, default=0)
    options.add_argument("--slots", type=int, default=8)
    options.add_argument("--characters", type=int, help="one English text of so many, up to a third more")
    options.add_argument("--keep", type=Path, help="honest: margins so far, write: answers; one line of JSON an answer")
    options.add_argument("--gpu-layers", type=int, default=0, help="write: layers on the GPU")
    options.add_argument("--mapped", action="store_true", help="weights from the file's pages, not repacked")
    options.add_argument(
        "--written", type=Path, nargs="+", default=[], help="impostors, limits, drift: what `write` kept"
    )
    given = options.parse_args()
    if given.what == "write" and not given.keep:
        options.error("write needs --keep FILE")
    BENCHES[given.what](Bench(given))


class Bench:
    """One file, loaded for replays, and how answers are made."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.settings = EngineSettings(n_ctx=2048, n_slots=given.slots, n_threads=given.threads, mapped=given.mapped)
        alone = replace(self.settings, n_slots=1)
        self.model = load(given.model, alone)
        self.replayer = Replayer(Context(self.model, alone))
        self.other_way = Replayer(Context(self.model, replace(alone, flash_attn=False)))

    def write(self, path: Path, settings: EngineSettings, seeds: list[int]) -> Iterator[tuple[int, Generation]]:
        """An honest answer of that file to each seed's request, as many at a time as there are slots."""
        waiting: deque[tuple[int, Future[Generation]]] = deque()
        with Engine(path, settings, template_of(path)) as engine:
            for seed in seeds:
                until_s = time.monotonic() + 36_000
                sampling = SamplingParams(seed % 2**64)
                job = EngineJob(self.script(seed), sampling, until_s, max_tokens=self.given.max_tokens)
                waiting.append((seed, engine.submit(job)))
                if len(waiting) > 2 * settings.n_slots:
                    yield _oldest(waiting)
            while waiting:
                yield _oldest(waiting)

    def replay(self, seed: int, tokens: Sequence[int], max_tokens: int, by: Replayer | None = None) -> Replay:
        return self.replay_of(self.script(seed), seed, tokens, max_tokens, by)

    def replay_of(
        self, script: Script, seed: int, tokens: Sequence[int], max_tokens: int, by: Replayer | None = None
    ) -> Replay:
        conversation = self.model.chat_template.conversation(self.model.vocabulary, script)
        rule = ChoiceRule(self.model.vocabulary, conversation, script, SamplingParams(seed % 2**64), max_tokens)
        return (by or self.replayer).replay(rule, conversation, list(tokens))

    def two_ways(self, seed: int, tokens: Sequence[int], max_tokens: int) -> tuple[Replay, Replay]:
        return self.replay(seed, tokens, max_tokens), self.replay(seed, tokens, max_tokens, self.other_way)

    def noise(self) -> float:
        """As one honest answer shows it that is not among those judged."""
        [(seed, one)] = self.write(self.given.model, self.settings, [-1])
        return noise_of([self.two_ways(seed, one.tokens, one.max_tokens)])

    def replays(self, path: Path, settings: EngineSettings, seeds: list[int]) -> list[Replay]:
        """With the type of keys and values that the header of such an answer names."""
        by = self.replayer
        if settings.kv_type != self.settings.kv_type:
            by = Replayer(Context(self.model, replace(self.settings, n_slots=1, kv_type=settings.kv_type)))
        written = self.write(path, settings, seeds)
        return [self.replay(seed, generation.tokens, generation.max_tokens, by) for seed, generation in written]

    def request(self, seed: int) -> StoryRequest:
        """One for each seed; in rounds where many honest answers are wanted, or short ones."""
        if seed < 0 or not (self.given.what == "honest" or self.given.characters):
            return request_of(seed)
        if not self.given.characters:
            return request_of(seed // ROUND)
        dice = random.Random(seed // ROUND)
        texts = (made_up(dice) for _ in itertools.count())
        return StoryRequest(task_type="blueprint", user_input=next(text for text in texts if text.isascii()))

    def script(self, seed: int) -> Script:
        script = tasks.get("blueprint").script(self.request(seed))
        if not self.given.characters or seed < 0:
            return script
        form = Prose(self.given.characters, self.given.characters * 4 // 3)
        return one_turn(script.pieces[0].ask, {"setting": form}, script.system, script.material)


def _oldest(waiting: deque[tuple[int, Future[Generation]]]) -> tuple[int, Generation]:
    seed, future = waiting.popleft()
    return seed, future.result()


def load(path: Path, settings: EngineSettings) -> Model:
    return Model(path, settings, template_of(path))


def note(name: str) -> None:
    print(f"{time.strftime('%H:%M')} {name} …", file=sys.stderr, flush=True)


def template_of(path: Path) -> str | None:
    return None if "tokenizer.chat_template" in read_local(path).metadata else PLAIN


def requantized(source: Path, name: str, scratch: Path) -> Path:
    target = scratch / f"{name}.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = IMPOSTORS[name], True
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert code == 0, f"llama.cpp could not requantize to {name}"
    return target


def request_of(seed: int) -> StoryRequest:
    """Ten inputs in six languages, then made-up ones in two."""
    text = STORIES[seed] if 0 <= seed < len(STORIES) else made_up(random.Random(seed))
    return StoryRequest(task_type="blueprint", user_input=text)


# --- impostors -------------------------------------------------------------------------------------------------------


def impostors(bench: Bench) -> None:
    note("the noise of the claimed file")
    noise = bench.noise()
    seeds = list(range(bench.given.answers))
    if bench.given.written:
        rows = {path.stem: replays_of(bench, path) for path in bench.given.written}
    else:
        rows = written_now(bench, seeds)
    report(rows, noise)


def written_now(bench: Bench, seeds: list[int]) -> dict[str, list[Replay]]:
    note("the claimed file")
    rows = {"the claimed file": bench.replays(bench.given.model, bench.settings, seeds)}
    own = read_local(bench.given.model).metadata.get("general.file_type")
    with tempfile.TemporaryDirectory() as scratch:
        for name in (name for name, number in IMPOSTORS.items() if number != own):
            note(name)
            path = requantized(bench.given.model, name, Path(scratch))
            rows[name] = bench.replays(path, bench.settings, seeds)
            path.unlink()
    return rows


def auc(honest: list[float], cheat: list[float]) -> float:
    """The chance that a cheat's figure is above an honest one's."""
    return float(np.mean([(c > h) + 0.5 * (c == h) for c in cheat for h in honest])) if honest and cheat else math.nan


def windows(replays: list[Replay], length: int, noise: float) -> list[float]:
    """The evidence against the file of every stretch of so many free positions."""
    found = []
    for one in replays:
        leads = free(one)
        starts = range(0, len(leads) - length + 1, length)
        found += [-evidence(leads[start : start + length], ELSEWHERE * noise) for start in starts]
    return found


def free(replay: Replay) -> list[float]:
    return [lead for lead in replay.leads if lead < math.inf]


def fitted_noise(replays: list[Replay]) -> float:
    """The noise that best explains which of the tokens are behind: the writer's own, beside the file's."""
    leads = np.array([lead for one in replays for lead in free(one)])
    tried = np.geomspace(0.01, 10, 200)

    def likelihood(noise: float) -> float:
        chance = np.array([behind(lead, noise) for lead in leads])
        return float(np.where(leads < 0, np.log(chance), np.log1p(-chance)).sum())

    return float(max(tried, key=likelihood))


def report(rows: dict[str, list[Replay]], noise: float) -> None:
    honest = next(iter(rows.values()))
    aucs = [f"AUC {length}" for length in LENGTHS]
    columns = ("what ran", "positions", "match rate", "mean margin", "noise that fits", *aucs)
    table = Table(
        *columns, "evidence", "proven", "refuted", "open", title=f"noise of the claimed file {noise:.3f} nats"
    )
    facts: dict[str, object] = {"answers": len(honest), "noise": round(noise, 4)}
    for name, replays in rows.items():
        whole = [one for one in replays if not one.refuted]
        counts = [len(one.margins) for one in whole]
        rates, means = [one.match_rate for one in whole], [one.mean_margin for one in whole]
        by_length = [auc(windows(honest, length, noise), windows(whole, length, noise)) for length in LENGTHS]
        verdicts = [judge(one, noise) for one in replays]
        weighed = [one.evidence for one in verdicts if one.positions]
        judged = counted(verdicts)
        facts[name] = {
            "positions": span(counts, 0), "match_rate": span(rates, 3), "mean_margin": span(means, 4),
            "noise": round(fitted_noise(whole), 3), "evidence": span(weighed, 1),
            "auc": dict(zip(map(str, LENGTHS), [None if math.isnan(one) else round(one, 4) for one in by_length], strict=True)),
            "cannot_be_written": len(replays) - len(whole),
            "verdicts": judged,
        }  # fmt: skip
        shown = ["" if replays is honest or math.isnan(one) else f"{one:.4f}" for one in by_length]
        figures = (shown_span(counts, 0), shown_span(rates, 3), shown_span(means, 4), f"{fitted_noise(whole):.2f}")
        table.add_row(name, *figures, *shown, shown_span(weighed, 1), *map(str, judged))
    show(table, facts)


def counted(verdicts: Iterable[Verdict]) -> list[int]:
    """How many are proven, refuted and open."""
    statuses = [one.status for one in verdicts]
    return [statuses.count(status) for status in ("proven", "refuted", "inconclusive")]


def span(values: Sequence[float], digits: int) -> list[float]:
    return [round(min(values), digits), round(max(values), digits)] if values else []


def shown_span(values: Sequence[float], digits: int) -> str:
    return f"{min(values):.{digits}f}–{max(values):.{digits}f}" if values else "none replays"


def show(table: Table, facts: dict[str, object]) -> None:
    Console(width=None if Console().is_terminal else 180).print(table)
    print(json.dumps(facts))


# --- limits ----------------------------------------------------------------------------------------------------------


def limits(bench: Bench) -> None:
    if bench.given.written:
        rows = [row for path in bench.given.written for row in kept_answers(path)[: bench.given.answers]]
    else:
        written = bench.write(bench.given.model, bench.settings, list(range(bench.given.answers)))
        rows = [(seed, one.max_tokens, list(one.tokens)) for seed, one in written]
    pairs = [bench.two_ways(seed, tokens, max_tokens) for seed, max_tokens, tokens in rows]
    honest = [one for one, _ in pairs]
    alone = sorted(noise_of([pair]) for pair in pairs)
    together, fits = noise_of(pairs), fitted_noise(honest)
    table = Table("limits from", "noise", "proven", "refuted", "open")
    facts: dict[str, object] = {"answers": len(pairs), "fits": round(fits, 4)}
    named = {"all answers": together, "the calmest answer": alone[0], "the median one": alone[len(alone) // 2],
             "the noisiest": alone[-1], "who is behind": fits}  # fmt: skip
    for name, noise in named.items():
        counts = counted(judge(one, noise) for one in honest)
        facts[name] = {"noise": round(noise, 4), "proven": counts[0], "refuted": counts[1]}
        table.add_row(name, f"{noise:.3f}", *map(str, counts))
    show(table, facts)


# --- drift -----------------------------------------------------------------------------------------------------------


def drift(bench: Bench) -> None:
    """Each row was written with one setting changed; the replay's settings stay."""
    base = replace(bench.settings, n_slots=1)
    other_threads = 1 if bench.given.threads != 1 else 2
    rows = {
        "as the replay, one slot": base,
        "4 slots": replace(base, n_slots=4),
        "16 slots": replace(base, n_slots=16),
        "prompts in batches of 64": replace(base, n_batch=64, n_ubatch=64),
        f"{other_threads} thread(s)": replace(base, n_threads=other_threads),
        "no flash attention": replace(base, flash_attn=False),
        "q8_0 keys and values": replace(base, kv_type="q8_0"),
        "q4_0 keys and values": replace(base, kv_type="q4_0"),
    }
    seeds = list(range(bench.given.answers))
    columns = ("written with", "positions", "match rate", "mean margin", "its 99 %", "noise that fits", "evidence")
    table = Table(*columns, "proven", "refuted", "open")
    noise = bench.noise()
    facts: dict[str, object] = {"noise": round(noise, 4)}
    elsewhere = ((path.stem, replays_of(bench, path)) for path in bench.given.written)
    here = ((name, bench.replays(bench.given.model, settings, seeds)) for name, settings in rows.items())
    for name, replays in elsewhere if bench.given.written else here:
        margins = [margin for one in replays for margin in one.margins]
        mean, most = float(np.mean(margins)), float(np.quantile(margins, 0.99))
        matches, fits = margins.count(0.0) / len(margins), fitted_noise(replays)
        verdicts = [judge(one, noise) for one in replays]
        weighed = [one.evidence for one in verdicts]
        facts[name] = {
            "positions": len(margins), "match_rate": round(matches, 4), "noise": round(fits, 4),
            "mean_margin": round(mean, 5), "p99_margin": round(most, 4), "max_margin": round(max(margins), 4),
            "evidence": span(weighed, 1), "verdicts": counted(verdicts),
        }  # fmt: skip
        figures = (f"{len(margins):,}", f"{matches:.4f}", f"{mean:.4f}", f"{most:.3f}", f"{fits:.3f}")
        table.add_row(name, *figures, shown_span(weighed, 1), *map(str, counted(verdicts)))
    show(table, facts)


def write(bench: Bench) -> None:
    """One line an answer: its seed, tokens and budget."""
    settings = replace(bench.settings, n_gpu_layers=bench.given.gpu_layers)
    with bench.given.keep.open("w", buffering=1) as file:  # what is done is kept if it is cut short
        for seed, generation in bench.write(bench.given.model, settings, list(range(bench.given.answers))):
            file.write(json.dumps([seed, generation.max_tokens, *generation.tokens]) + "\n")
    print(json.dumps({"answers": bench.given.answers, "gpu_layers": bench.given.gpu_layers}))


def replays_of(bench: Bench, path: Path) -> list[Replay]:
    """Of the first `--answers`."""
    note(path.stem)
    rows = kept_answers(path)[: bench.given.answers]
    return [bench.replay(seed, tokens, max_tokens) for seed, max_tokens, tokens in rows]


def kept_answers(path: Path) -> list[tuple[int, int, list[int]]]:
    """Their seeds, budgets and tokens."""
    rows = map(json.loads, path.read_text().splitlines())
    return [(seed, max_tokens, tokens) for seed, max_tokens, *tokens in rows]


# --- honest ----------------------------------------------------------------------------------------------------------


def honest(bench: Bench) -> None:
    kept = _kept(bench.given.keep)
    seeds = [seed for seed in range(bench.given.answers) if seed not in kept]
    noise, started_s = bench.noise(), time.monotonic()
    for done, (seed, generation) in enumerate(bench.write(bench.given.model, bench.settings, seeds), 1):
        one = judge(bench.replay(seed, generation.tokens, generation.max_tokens), noise)
        kept[seed] = (one.evidence, one.positions, one.status)
        if bench.given.keep:
            with bench.given.keep.open("a") as file:
                file.write(json.dumps([seed, *kept[seed]]) + "\n")
        if done % 50 == 0:
            print(f"{len(kept)} answers, {(time.monotonic() - started_s) / done:.1f} s each", flush=True)
    _report_honest(kept, noise)


def _kept(path: Path | None) -> dict[int, tuple[float, int, str]]:
    if path is None or not path.exists():
        return {}
    rows = map(json.loads, path.read_text().splitlines())
    return {seed: (found, positions, status) for seed, found, positions, status in rows}


def _report_honest(kept: dict[int, tuple[float, int, str]], noise: float) -> None:
    found, positions, statuses = zip(*kept.values(), strict=True)
    counts = {status: statuses.count(status) for status in ("proven", "inconclusive", "refuted")}
    bound = rate_bound(counts["refuted"], len(kept))
    table = Table("honest answers", "positions", "proven", "open", "refuted", "least evidence", "refuted at most, 95 %")
    figures = (*map(str, counts.values()), f"{min(found):.1f}", f"{bound:.3%}")
    table.add_row(str(len(kept)), f"{min(positions)} to {max(positions)}", *figures)
    facts = {"answers": len(kept), **counts, "noise": round(noise, 4), "least_evidence": round(min(found), 2),
             "upper_bound_95": round(bound, 6), "positions": [min(positions), float(np.median(positions)), max(positions)],
             "evidence_quantiles": {str(q): round(float(np.quantile(found, q)), 1) for q in (0.001, 0.01, 0.1, 0.5)}}  # fmt: skip
    show(table, facts)


# --- cost ------------------------------------------------------------------------------------------------------------


def cost(bench: Bench) -> None:
    """One request, as many miners as answers: what a validator replays after a round."""
    script = tasks.get("blueprint").script(request_of(0))
    alone = replace(bench.settings, n_slots=1)
    written_s = replayed_s = 0.0
    tokens = 0
    with Engine(bench.given.model, alone, template_of(bench.given.model)) as engine:
        for seed in range(-1, bench.given.answers):
            started_s = time.process_time()
            sampling = SamplingParams(seed % 2**64)
            job = EngineJob(script, sampling, time.monotonic() + 3600, max_tokens=bench.given.max_tokens)
            generation = engine.submit(job).result()
            middle_s = time.process_time()
            ours = generation.conversation
            rule = ChoiceRule(bench.model.vocabulary, ours, script, sampling, generation.max_tokens)
            bench.replayer.replay(rule, ours, list(generation.tokens))
            if seed >= 0:  # the first of all pays for the prompt, on both sides
                written_s += middle_s - started_s
                replayed_s += time.process_time() - middle_s
                tokens += len(generation.tokens)
    table = Table("answers", "tokens", "generation, CPU s", "replay, CPU s", "ratio")
    ratio = replayed_s / written_s
    table.add_row(str(bench.given.answers), f"{tokens:,}", f"{written_s:.1f}", f"{replayed_s:.1f}", f"{ratio:.2f}")
    show(table, {"answers": bench.given.answers, "tokens": tokens, "replay_over_generation": round(ratio, 3)})


BENCHES = {"impostors": impostors, "limits": limits, "drift": drift, "write": write, "honest": honest, "cost": cost}

if __name__ == "__main__":
    main()
