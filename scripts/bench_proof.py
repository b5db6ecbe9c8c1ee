"""How well the proof tells a file from its impostors: the claimed file, and the same file requantized.

    python scripts/bench_proof.py --model SmolLM2-135M-Instruct.Q4_1.gguf --answers 12 --threads 1

Each impostor writes answers as a miner would and claims the given file; all are replayed with that file. Requantized
copies of one file are the hardest case there is: the same model. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
import time
from pathlib import Path

import llama_cpp
import numpy as np
from rich.console import Console
from rich.table import Table

from storyfi_lite import tasks
from storyfi_lite.cli.calibrate import STORIES
from storyfi_lite.engine.engine import Engine, EngineJob, Generation
from storyfi_lite.engine.model import Context, Model
from storyfi_lite.engine.replay import Replay, replay
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.validator.proof import Calibration, calibrate, judge
from storyfi_lite.wire.messages import StoryRequest

# llama_ftype of llama.h
IMPOSTORS = {"Q8_0": 7, "Q4_K_M": 15, "Q3_K_M": 12, "Q2_K": 10}
LENGTHS = (50, 100, 200)
MAX_TOKENS = 700


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--answers", type=int, default=12)
    options.add_argument("--threads", type=int, default=0)
    given = options.parse_args()
    settings = EngineSettings(n_ctx=2048, n_threads=given.threads)
    rows: dict[str, list[Replay]] = {}
    seconds = {"generation": 0.0, "replay": 0.0}
    model = Model(given.model, settings)
    context = Context(model, settings)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("claimed file", *IMPOSTORS):
            path = given.model if name not in IMPOSTORS else requantized(given.model, name, Path(scratch))
            rows[name] = []
            for number, generation in enumerate(generations(path, settings, given.answers, seconds)):
                started_s = time.monotonic()
                rows[name].append(replayed(model, context, number, generation))
                seconds["replay"] += time.monotonic() - started_s
    report(rows, seconds, given.answers)


def requantized(source: Path, name: str, scratch: Path) -> Path:
    target = scratch / f"{name}.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = IMPOSTORS[name], True
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert code == 0, f"llama.cpp could not requantize to {name}"
    return target


def request_of(number: int) -> StoryRequest:
    return StoryRequest(task_type="blueprint", user_input=STORIES[number % len(STORIES)])


def generations(path: Path, settings: EngineSettings, answers: int, seconds: dict[str, float]) -> list[Generation]:
    task = tasks.get("blueprint")
    made = []
    with Engine(path, settings) as engine:
        for number in range(answers):
            request, started_s = request_of(number), time.monotonic()
            job = EngineJob(
                task.messages(request),
                task.constraint(request),
                SamplingParams(number),
                started_s + 3600,
                max_tokens=MAX_TOKENS,
            )
            made.append(engine.submit(job).result())
            seconds["generation"] += time.monotonic() - started_s
    return made


def replayed(model: Model, context: Context, number: int, generation: Generation) -> Replay:
    constraint = tasks.get("blueprint").constraint(request_of(number))
    rule = ChoiceRule(model.vocabulary, constraint, SamplingParams(number), generation.max_tokens)
    return replay(context, rule, list(generation.prompt), list(generation.tokens))


def auc(honest: list[float], cheat: list[float]) -> float:
    """The chance that a cheat's figure is above an honest one's."""
    return float(np.mean([(c > h) + 0.5 * (c == h) for c in cheat for h in honest]))


def windows(replays: list[Replay], length: int) -> list[float]:
    """Mean margins over every stretch of so many free positions."""
    return [
        float(np.mean(one.margins[start : start + length]))
        for one in replays
        for start in range(0, len(one.margins) - length + 1, length)
    ]


def report(rows: dict[str, list[Replay]], seconds: dict[str, float], answers: int) -> None:
    honest = rows["claimed file"]
    calibration: Calibration = calibrate("bench", honest, "bench")
    ratio = seconds["replay"] / seconds["generation"]
    table = Table("what ran", "match rate", "mean margin", *(f"AUC {n}" for n in LENGTHS), "proven", "refuted", "open")
    facts: dict[str, object] = {"answers": answers, "replay_over_generation": round(ratio, 3)}
    for name, replays in rows.items():
        means = [one.mean_margin for one in replays]
        aucs = [auc(windows(honest, length), windows(replays, length)) for length in LENGTHS]
        verdicts = [judge(one, calibration).status for one in replays]
        counts = [verdicts.count(status) for status in ("proven", "refuted", "inconclusive")]
        facts[name] = {
            "match_rate": [round(min(one.match_rate for one in replays), 3), round(max(one.match_rate for one in replays), 3)],
            "mean_margin": [round(min(means), 4), round(max(means), 4)],
            "auc": dict(zip(map(str, LENGTHS), [round(one, 4) for one in aucs], strict=True)),
            "verdicts": dict(zip(("proven", "refuted", "inconclusive"), counts, strict=True)),
        }  # fmt: skip
        rates = [one.match_rate for one in replays]
        shown = ["" if name == "claimed file" else f"{one:.3f}" for one in aucs]
        table.add_row(
            name,
            f"{min(rates):.3f}–{max(rates):.3f}",
            f"{min(means):.4f}–{max(means):.4f}",
            *shown,
            *map(str, counts),
        )
    console = Console()
    console.print(table)
    console.print(f"replay over generation: {ratio:.2f} of the time")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
