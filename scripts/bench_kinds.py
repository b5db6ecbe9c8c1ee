"""What another kind of machine does to a proof: answers written with each of llama.cpp's CPU modules, replayed with each.

    python scripts/bench_kinds.py --model SmolLM2-135M-Instruct.Q4_0.gguf --scratch out/ --kinds zen4,zen4-mapped,haswell,x64

A kind is a module of a llama.cpp built with GGML_CPU_ALL_VARIANTS, as scripts/setup builds it: zen4 and skylakex compute with
AVX-512, haswell with AVX2, x64 without either; one that this CPU cannot run fails. `-mapped`: the weights from the file's pages, as a
validator with little memory has them, and not repacked for the module's widest kernels. `--package DIR`: a folder with such a
llama_cpp, where the installed one is of another build.

Each kind writes and replays in a process of its own, with a copy of the package that has this module alone. What is in the scratch
folder already is not made again. Noise (validator/verdict.py) is that between two attention kernels of one kind, and between the
same answers' scores by two kinds; verdicts are by the replaying kind's own, as in `prove`. Printed: tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_cpp
from rich.console import Console
from rich.table import Table

from scripts.bench_proof import Bench, counted, fitted_noise, kept_answers
from storyfi_lite.engine.replay import Replay
from storyfi_lite.validator.verdict import judge, noise_of

NOISE_ANSWERS = 4  # computed in two ways, for a kind's own noise
Kept = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--kinds", default="zen4,zen4-mapped,haswell,x64", help="those that replay")
    parser.add_argument("--writers", help="those that write  [default: the same]")
    parser.add_argument("--answers", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--package", type=Path, default=Path(llama_cpp.__file__).parents[1])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, writers = given.child
        print(json.dumps(replayed(given, kind, writers.split(","))))
        return
    kinds = given.kinds.split(",")
    writers = (given.writers or given.kinds).split(",")
    for kind in writers:
        write(given, kind)
    found = {kind: replays(given, kind, writers) for kind in kinds}
    report(found, writers)


def write(given: argparse.Namespace, kind: str) -> None:
    target = written(given, kind)
    if not target.exists():
        part = target.with_suffix(".part")
        run(given, kind, "bench_proof.py", "write", "--answers", str(given.answers), "--slots", "8",
            *(["--mapped"] if kind.endswith("-mapped") else []), "--keep", str(part))  # fmt: skip
        part.rename(target)


def written(given: argparse.Namespace, kind: str) -> Path:
    return Path(given.scratch) / f"written-{kind}.jsonl"


def replays(given: argparse.Namespace, kind: str, writers: list[str]) -> Kept:
    target = Path(given.scratch) / f"replayed-{kind}.json"
    if not target.exists():
        scratch = ["--scratch", str(given.scratch), "--answers", str(given.answers)]
        line = run(given, kind, "bench_kinds.py", *scratch, "--child", kind, ",".join(writers))
        target.write_text(line)
    return dict(json.loads(target.read_text()))


def run(given: argparse.Namespace, kind: str, script: str, *arguments: str) -> str:
    """The last line that a script prints with this kind's module alone."""
    module = kind.removesuffix("-mapped")
    package = Path(given.scratch) / f"package-{module}"
    if not package.exists():
        shutil.copytree(given.package / "llama_cpp", package / "llama_cpp")
        for path in (package / "llama_cpp" / "lib").glob("libggml-cpu*"):
            if path.name != f"libggml-cpu-{module}.so":
                path.unlink()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    options = ["--model", str(given.model), "--threads", str(given.threads)]
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments, *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def replayed(given: argparse.Namespace, kind: str, writers: list[str]) -> Kept:
    """The leads of all answers, by writer, and this kind's own noise."""
    options = argparse.Namespace(**{**vars(given), "what": "drift", "slots": 1, "characters": None,
                                    "mapped": kind.endswith("-mapped")})  # fmt: skip
    bench = Bench(options)
    answers = {writer: kept_answers(written(given, writer))[: given.answers] for writer in writers}
    leads = {writer: [bench.replay(*rows(one)).leads for one in of_one] for writer, of_one in answers.items()}
    pairs = [bench.two_ways(*rows(one)) for one in answers[writers[0]][:NOISE_ANSWERS]]
    return {"noise": noise_of(pairs), "leads": leads}


def rows(answer: tuple[int, int, list[int]]) -> tuple[int, list[int], int]:
    seed, max_tokens, tokens = answer
    return seed, tokens, max_tokens


def report(found: dict[str, Kept], writers: list[str]) -> None:
    noise = {kind: one["noise"] for kind, one in found.items()}
    table = Table("written with", "replayed with", "answers", "positions", "noise that fits", "least evidence",
                  "proven", "refuted", "open")  # fmt: skip
    facts: list[dict[str, Any]] = []
    for writer, kind in itertools.product(writers, found):
        replays = [Replay(tuple(leads)) for leads in found[kind]["leads"][writer]]
        verdicts = [judge(one, noise[kind]) for one in replays]
        row = {
            "written": writer, "replayed": kind, "answers": len(replays),
            "positions": sum(one.positions for one in verdicts), "noise": round(fitted_noise(replays), 3),
            "least": round(min(one.evidence for one in verdicts), 1),
            **dict(zip(("proven", "refuted", "open"), counted(verdicts), strict=True)),
        }  # fmt: skip
        facts.append(row)
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    apart = Table("noise, nats", *found)
    between = {}
    for one in found:
        cells = []
        for other in found:
            pairs = [
                (Replay(tuple(here)), Replay(tuple(there)))
                for writer in writers
                for here, there in zip(found[one]["leads"][writer], found[other]["leads"][writer], strict=True)
            ]
            between[f"{one} {other}"] = round(noise[one] if one == other else noise_of(pairs), 4)
            cells.append(f"{between[f'{one} {other}']:.4f}")
        apart.add_row(one, *cells)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    console.print(apart)
    print(json.dumps({"rows": facts, "noise": between}))


if __name__ == "__main__":
    main()
