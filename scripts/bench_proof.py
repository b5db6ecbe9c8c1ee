"""How well the proof tells a file from its impostors, what honest settings shift, and how often honest answers are refuted.

    python scripts/bench_proof.py impostors --model SmolLM2-135M-Instruct.Q4_1.gguf --answers 50 --threads 1
    python scripts/bench_proof.py drift     --model SmolLM2-135M-Instruct.Q4_1.gguf
    python scripts/bench_proof.py honest    --model SmolLM2-135M-Instruct.Q4_1.gguf --answers 1000 --keep honest.jsonl
    python scripts/bench_proof.py cost      --model SmolLM2-135M-Instruct.Q4_1.gguf

impostors  write answers as a miner would and claim the given file; all are replayed with that file. Requantized copies of one
           file are the hardest case there is: the same model. `--other FILE` adds another model, its texts spelled in the
           claimed file's tokens. A copy of the claimed file's own type is left out: it is the same file, nearly.
drift      the claimed file under other slots, batches, threads, flash attention, KV types: what a threshold must absorb.
           `--written FILE` replays, in place of these, what `write --keep FILE` wrote elsewhere: on a GPU (`--gpu-layers`), on
           another machine, with another build of llama.cpp (LLAMA_CPP_LIB_PATH).
honest     in rounds of 16 to one request, as validators ask; judged by the limits of a calibration made from answers that are
           not among them. `--keep` adds each margin to a file, so that a run that was cut goes on. `--characters N` judges
           English texts of N characters, up to a third more, in place of blueprints, by the limits that blueprints gave: cheaper
           where many are wanted, and what the limits do to answers that are shorter than any blueprint.
cost       seconds of replay over seconds of generation, one slot, the answers of one round.

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
from collections.abc import Iterator, Sequence
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
from storyfi_lite.engine.rule import ChoiceRule, tokens_of
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.grammar.prose import Prose
from storyfi_lite.grammar.script import Script, one_turn
from storyfi_lite.models.gguf import read_local
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.rounds.questions import made_up
from storyfi_lite.validator.proof import PROVEN_Z, REFUTED_Z, Calibration, calibrate, judge, rate_bound

# llama_ftype of llama.h
IMPOSTORS = {"Q8_0": 7, "Q4_K_M": 15, "Q3_K_M": 12, "Q2_K": 10}
LENGTHS = (50, 100, 200, 300, 500)
ROUND = 16
CALIBRATION_ANSWERS = 30  # their seeds are negative: none of them is judged
# For a base model that carries no chat template: the texts one after the other.
PLAIN = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=list(BENCHES))
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--other", type=Path, help="impostors: another model")
    options.add_argument("--answers", type=int, default=50)
    options.add_argument("--max-tokens", type=int, default=900)
    options.add_argument("--threads", type=int, default=0)
    options.add_argument("--slots", type=int, default=8)
    options.add_argument("--characters", type=int, help="honest: one English text of so many, up to a third more")
    options.add_argument("--keep", type=Path, help="honest: margins so far, write: answers; one line of JSON an answer")
    options.add_argument("--gpu-layers", type=int, default=0, help="write: layers on the GPU")
    options.add_argument("--written", type=Path, nargs="+", default=[], help="drift: answers that `write` kept")
    given = options.parse_args()
    if given.what == "write" and not given.keep:
        options.error("write needs --keep FILE")
    BENCHES[given.what](Bench(given))


class Bench:
    """One file, loaded for replays, and how answers are made."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.settings = EngineSettings(n_ctx=2048, n_slots=given.slots, n_threads=given.threads)
        alone = replace(self.settings, n_slots=1)
        self.model = load(given.model, alone)
        self.replayer = Replayer(Context(self.model, alone))

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

    def replay(self, seed: int, tokens: Sequence[int], max_tokens: int) -> Replay:
        script = self.script(seed)
        conversation = self.model.chat_template.conversation(self.model.vocabulary, script)
        rule = ChoiceRule(self.model.vocabulary, conversation, script, SamplingParams(seed % 2**64), max_tokens)
        return self.replayer.replay(rule, conversation, list(tokens))

    def replays(self, path: Path, settings: EngineSettings, seeds: list[int]) -> list[Replay]:
        written = self.write(path, settings, seeds)
        return [self.replay(seed, generation.tokens, generation.max_tokens) for seed, generation in written]

    def request(self, seed: int) -> StoryRequest:
        """One for each seed; in rounds where many honest answers are wanted."""
        if self.given.what != "honest" or seed < 0:
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

    def calibration(self) -> Calibration:
        seeds = [-1 - number for number in range(CALIBRATION_ANSWERS)]
        return calibrate("bench", self.replays(self.given.model, self.settings, seeds), "bench")


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
    seeds = list(range(bench.given.answers))
    own = read_local(bench.given.model).metadata.get("general.file_type")
    note("the claimed file")
    calibration = bench.calibration()
    rows = {"the claimed file": bench.replays(bench.given.model, bench.settings, seeds)}
    with tempfile.TemporaryDirectory() as scratch:
        for name in (name for name, number in IMPOSTORS.items() if number != own):
            note(name)
            path = requantized(bench.given.model, name, Path(scratch))
            rows[name] = bench.replays(path, bench.settings, seeds)
            path.unlink()
    if bench.given.other:
        note(bench.given.other.stem)
        rows[bench.given.other.stem] = respelled(bench, seeds)
    report(rows, calibration)


def respelled(bench: Bench, seeds: list[int]) -> list[Replay]:
    found = []
    for seed, generation in bench.write(bench.given.other, bench.settings, seeds):
        tokens = tokens_of(bench.script(seed), bench.model.vocabulary, json.loads(generation.text))
        found.append(bench.replay(seed, tokens, generation.max_tokens))
    return found


def auc(honest: list[float], cheat: list[float]) -> float:
    """The chance that a cheat's figure is above an honest one's."""
    return float(np.mean([(c > h) + 0.5 * (c == h) for c in cheat for h in honest])) if honest and cheat else math.nan


def windows(replays: list[Replay], length: int) -> list[float]:
    """Mean margins over every stretch of so many free positions."""
    return [
        float(np.mean(one.margins[start : start + length]))
        for one in replays
        for start in range(0, len(one.margins) - length + 1, length)
    ]


def report(rows: dict[str, list[Replay]], calibration: Calibration) -> None:
    honest = rows["the claimed file"]
    aucs = [f"AUC {length}" for length in LENGTHS]
    table = Table("what ran", "match rate", "mean margin", *aucs, "proven", "refuted", "open")
    facts: dict[str, object] = {"answers": len(honest), "positions": sum(len(one.margins) for one in honest)}
    for name, replays in rows.items():
        whole = [one for one in replays if not one.refuted]
        rates, means = [one.match_rate for one in whole], [one.mean_margin for one in whole]
        by_length = [auc(windows(honest, length), windows(whole, length)) for length in LENGTHS]
        statuses = [judge(one, calibration).status for one in replays]
        counts = [statuses.count(status) for status in ("proven", "refuted", "inconclusive")]
        facts[name] = {
            "match_rate": span(rates, 3), "mean_margin": span(means, 4),
            "auc": dict(zip(map(str, LENGTHS), [None if math.isnan(one) else round(one, 4) for one in by_length], strict=True)),
            "cannot_be_written": len(replays) - len(whole),
            "verdicts": dict(zip(("proven", "refuted", "inconclusive"), counts, strict=True)),
        }  # fmt: skip
        shown = ["" if name == "the claimed file" or math.isnan(one) else f"{one:.4f}" for one in by_length]
        table.add_row(name, shown_span(rates, 3), shown_span(means, 4), *shown, *map(str, counts))
    show(table, facts)


def span(values: list[float], digits: int) -> list[float]:
    return [round(min(values), digits), round(max(values), digits)] if values else []


def shown_span(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f}–{max(values):.{digits}f}" if values else "none replays"


def show(table: Table, facts: dict[str, object]) -> None:
    Console(width=None if Console().is_terminal else 140).print(table)
    print(json.dumps(facts))


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
    table = Table("written with", "match rate", "mean margin", "largest of an answer", "positions")
    facts: dict[str, object] = {}
    elsewhere = ((path.stem, replays_of(bench, path)) for path in bench.given.written)
    here = ((name, bench.replays(bench.given.model, settings, seeds)) for name, settings in rows.items())
    for name, replays in elsewhere if bench.given.written else here:
        margins = [margin for one in replays for margin in one.margins]
        matches = margins.count(0.0) / len(margins)
        largest = max(one.mean_margin for one in replays)
        facts[name] = {
            "match_rate": round(matches, 4), "mean_margin": round(float(np.mean(margins)), 5),
            "largest": round(largest, 5), "positions": len(margins), "refuted": sum(bool(one.refuted) for one in replays),
        }  # fmt: skip
        table.add_row(name, f"{matches:.4f}", f"{np.mean(margins):.4f}", f"{largest:.4f}", f"{len(margins):,}")
    show(table, facts)


def write(bench: Bench) -> None:
    """One line an answer: its seed, tokens and budget."""
    settings = replace(bench.settings, n_gpu_layers=bench.given.gpu_layers)
    with bench.given.keep.open("w") as file:
        for seed, generation in bench.write(bench.given.model, settings, list(range(bench.given.answers))):
            file.write(json.dumps([seed, generation.max_tokens, *generation.tokens]) + "\n")
    print(json.dumps({"answers": bench.given.answers, "gpu_layers": bench.given.gpu_layers}))


def replays_of(bench: Bench, path: Path) -> list[Replay]:
    rows = map(json.loads, path.read_text().splitlines())
    return [bench.replay(seed, tokens, max_tokens) for seed, max_tokens, *tokens in rows]


# --- honest ----------------------------------------------------------------------------------------------------------


def honest(bench: Bench) -> None:
    kept = _kept(bench.given.keep)
    seeds = [seed for seed in range(bench.given.answers) if seed not in kept]
    started_s = time.monotonic()
    for done, (seed, generation) in enumerate(bench.write(bench.given.model, bench.settings, seeds), 1):
        one = bench.replay(seed, generation.tokens, generation.max_tokens)
        kept[seed] = (one.mean_margin, len(one.margins), one.refuted)
        if bench.given.keep:
            with bench.given.keep.open("a") as file:
                file.write(json.dumps([seed, *kept[seed]]) + "\n")
        if done % 50 == 0:
            print(f"{len(kept)} answers, {(time.monotonic() - started_s) / done:.1f} s each", flush=True)
    _report_honest(kept, bench.calibration())


def _kept(path: Path | None) -> dict[int, tuple[float, int, str | None]]:
    if path is None or not path.exists():
        return {}
    rows = map(json.loads, path.read_text().splitlines())
    return {seed: (mean, positions, refuted) for seed, mean, positions, refuted in rows}


def _report_honest(kept: dict[int, tuple[float, int, str | None]], calibration: Calibration) -> None:
    spread = [
        math.inf
        if refuted
        else (mean - calibration.mean) / math.sqrt(calibration.between_sd**2 + calibration.within_sd**2 / positions)
        for mean, positions, refuted in kept.values()
    ]
    proven, wrong = sum(z <= PROVEN_Z for z in spread), sum(z > REFUTED_Z for z in spread)
    counts = {"proven": proven, "inconclusive": len(spread) - proven - wrong, "refuted": wrong}
    bound = rate_bound(wrong, len(spread))
    table = Table("honest answers", "proven", "open", "refuted", "largest z", "refuted at most, 95 %")
    table.add_row(
        str(len(spread)), *map(str, counts.values()), f"{max(spread):.2f} (limit {REFUTED_Z})", f"{bound:.3%}"
    )
    facts = {"answers": len(spread), **counts, "largest_z": round(max(spread), 3), "upper_bound_95": round(bound, 6),
             "z_quantiles": {str(q): round(float(np.quantile(spread, q)), 2) for q in (0.5, 0.9, 0.99, 0.999)}}  # fmt: skip
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
            started_s = time.monotonic()
            sampling = SamplingParams(seed % 2**64)
            job = EngineJob(script, sampling, started_s + 3600, max_tokens=bench.given.max_tokens)
            generation = engine.submit(job).result()
            middle_s = time.monotonic()
            ours = generation.conversation
            rule = ChoiceRule(bench.model.vocabulary, ours, script, sampling, generation.max_tokens)
            bench.replayer.replay(rule, ours, list(generation.tokens))
            if seed >= 0:  # the first of all pays for the prompt, on both sides
                written_s += middle_s - started_s
                replayed_s += time.monotonic() - middle_s
                tokens += len(generation.tokens)
    table = Table("answers", "tokens", "generation, s", "replay, s", "ratio")
    ratio = replayed_s / written_s
    table.add_row(str(bench.given.answers), f"{tokens:,}", f"{written_s:.1f}", f"{replayed_s:.1f}", f"{ratio:.2f}")
    show(table, {"answers": bench.given.answers, "tokens": tokens, "replay_over_generation": round(ratio, 3)})


BENCHES = {"impostors": impostors, "drift": drift, "write": write, "honest": honest, "cost": cost}

if __name__ == "__main__":
    main()
