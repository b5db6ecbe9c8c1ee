#!/usr/bin/env python3
"""Predicted memory and speed beside what llama.cpp reports and what the process and the GPU really take.

    scripts/bench_placement.py buffers FILE.gguf ...    every context, KV type, batch, slot and layer case of each file
    scripts/bench_placement.py speed FILE.gguf [N]      predicted and measured tokens a second, with N threads
    scripts/bench_placement.py occupy FILE.gguf         on a GPU: leave 1, 2, 3 ... GB free, place, load; no out-of-memory allowed
    scripts/bench_placement.py table                    the card sizes of docs/placement.md, as Markdown (predictions)

Synthetic files for every architecture: scripts/make_gguf.py. Each case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import DoesNotFit
from storyfi_lite.machine.hardware import Gpu, Hardware, bandwidth_of, probe
from storyfi_lite.models.gguf import architecture, read_local
from storyfi_lite.models.registry import load_registry
from storyfi_lite.options import ModelOptions
from storyfi_lite.placement import memory, speed, weights
from storyfi_lite.placement.catalog import EmptyCatalog
from storyfi_lite.placement.fit import Fitter
from storyfi_lite.placement.plan import place

GIB, MIB = 2**30, 2**20
REPACKED = "CPU_REPACK"  # copies of tensors that are in the mapped file too; the file's pages are given back
ROUNDS = 5
_BUFFER = re.compile(r"(\S+) +(model|KV|compute|output) buffer size = +([\d.]+) MiB")
CASES = [
    EngineSettings(),
    EngineSettings(n_ctx=8192),
    EngineSettings(n_ctx=1000, n_slots=4),
    EngineSettings(n_slots=4),
    EngineSettings(kv_type="q8_0"),
    EngineSettings(n_ctx=8192, kv_type="q4_0"),
    EngineSettings(n_batch=128),
    EngineSettings(n_batch=2048, n_ubatch=1024),
    EngineSettings(flash_attn=False),
]


def load(path: Path, settings: EngineSettings) -> dict[str, Any]:
    """In this process: llama.cpp's buffers by device kind, resident memory and GPU memory."""
    import psutil

    from storyfi_lite.engine.model import Context, Model

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("storyfi_lite.llama")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    rss, before = psutil.Process().memory_info().rss, [gpu.free_bytes for gpu in probe().gpus]
    model = Model(path, settings)
    context = Context(model, settings)
    found: dict[str, float] = {}
    for line in lines:
        match = _BUFFER.search(line)
        if match and match[1] != REPACKED:
            host = match[1].startswith("CPU") or match[1].endswith("_Host")
            key = "host" if host else match[1]
            found[key] = found.get(key, 0.0) + float(match[3]) * MIB
    after = [gpu.free_bytes for gpu in probe().gpus]
    taken = [a - b for a, b in zip(before, after, strict=True)]
    result = {"buffers": found, "rss_bytes": psutil.Process().memory_info().rss - rss, "gpu_bytes": taken}
    context.close()
    model.close()
    return result


def _apart(path: Path, settings: EngineSettings) -> dict[str, Any]:
    command = [sys.executable, __file__, "one", str(path), json.dumps(asdict(settings))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise SystemExit(f"{settings}: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def buffers(paths: list[Path]) -> None:
    gpus = probe().usable_gpus
    print(
        "| file | case | layers on GPU | predicted MiB | reported MiB | error | RSS MiB | GPU MiB taken |\n|"
        + "---|" * 8
    )
    worst = [0.0, 0.0]
    for path in paths:
        header = read_local(path)
        arch = architecture(header, path.name)
        loads = weights.from_header(header, arch.block_count)
        everything = arch.block_count + 1
        for layers in (everything, everything - 1, everything // 2, 2, 1) if gpus else (0,):
            for case in CASES:
                settings = replace(case, n_gpu_layers=layers)
                needs = memory.demand(arch, loads, settings, len(gpus))
                real = _apart(path, settings)
                want, got = sum(need.buffer_bytes for need in needs), sum(real["buffers"].values())
                error = want / got - 1
                worst = [min(worst[0], error), max(worst[1], error)]
                changed = {k: v for k, v in asdict(case).items() if v != getattr(EngineSettings(), k)}
                cells = [
                    path.stem,
                    changed or "default",
                    layers,
                    f"{want / MIB:.2f}",
                    f"{got / MIB:.2f}",
                    f"{error:+.2%}",
                ]
                taken = sum(real["gpu_bytes"]) / MIB
                print(f"| {' | '.join(map(str, cells))} | {real['rss_bytes'] / MIB:.0f} | {taken:.0f} |", flush=True)
    print(f"\nlowest {worst[0]:+.2%}, highest {worst[1]:+.2%}")


def measure_speed(path: Path, n_threads: int) -> None:
    """The placement's own settings. In turn: a prediction from a calibration of this moment, and the fastest tenth of 64
    tokens behind the context that the prediction stands for. Other programs slow either: the best of each are compared."""
    from storyfi_lite.placement import calibrate

    machine, header = probe(), read_local(path)
    arch = architecture(header, path.name)
    loads = weights.from_header(header, arch.block_count)
    fit = Fitter(arch, loads, machine).best(EngineSettings(n_threads=n_threads))
    if fit is None:
        raise SystemExit("it does not fit")
    on_cpu = fit.settings.n_gpu_layers <= arch.block_count
    rounds: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        if on_cpu:
            fresh = calibrate.measure_cpu(n_threads or machine.physical_cores)
            calibrate.cpu_speed = lambda threads, fresh=fresh: fresh  # type: ignore[assignment]
        predicted = speed.predict(arch, loads, fit.settings, machine)
        measured = _tokens_per_s(path, fit.settings)
        rounds.append((predicted.tokens_per_s, measured))
        print(f"predicted {predicted.tokens_per_s:.1f}, measured {measured:.1f} tokens/s", flush=True)
    best, fastest = (max(column) for column in zip(*rounds, strict=True))
    print(
        f"{path.name}, {fit.settings.n_gpu_layers} layers on the GPU: {best:.1f} / {fastest:.1f}: {best / fastest - 1:+.0%}"
    )
    print(f"from {predicted.basis}")


def _tokens_per_s(path: Path, settings: EngineSettings) -> float:
    from storyfi_lite.engine.model import Context, Feed, Model

    model = Model(path, settings)
    context = Context(model, settings)
    for start in range(0, speed.MEAN_CELLS, settings.n_batch):
        context.decode([Feed(0, start, [5] * min(settings.n_batch, speed.MEAN_CELLS - start), [])])
    times = []
    for step in range(64):
        start_s = time.perf_counter()
        context.decode([Feed(0, speed.MEAN_CELLS + step, [5], [0])])
        times.append(time.perf_counter() - start_s)
    context.close()
    model.close()
    return 1 / sorted(times)[len(times) // 10]


def occupy(path: Path) -> None:
    """Takes the first GPU's memory but for 1, 2, 3 ... GB; each time the file is placed and loaded."""
    from llama_cpp import _ggml

    ggml = _ggml.libggml
    for name in ("ggml_backend_dev_by_type", "ggml_backend_dev_buffer_type", "ggml_backend_buft_alloc_buffer"):
        getattr(ggml, name).restype = ctypes.c_void_p
    ggml.ggml_backend_dev_buffer_type.argtypes = ggml.ggml_backend_buffer_free.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_buft_alloc_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    device = ggml.ggml_backend_dev_by_type(1)
    if not device:
        raise SystemExit("llama.cpp sees no GPU here")
    kind = ggml.ggml_backend_dev_buffer_type(device)
    header = read_local(path)
    arch = architecture(header, path.name)
    loads = weights.from_header(header, arch.block_count)
    for left in range(1, probe().gpus[0].free_bytes // GIB):
        ballast = ggml.ggml_backend_buft_alloc_buffer(kind, probe().gpus[0].free_bytes - left * GIB)
        fit = Fitter(arch, loads, probe()).best(EngineSettings())
        if fit is None:
            print(f"{left} GB free: does not fit")
        else:
            real = _apart(path, fit.settings)
            print(
                f"{left} GB free: {fit.settings.n_gpu_layers} layers, {real['gpu_bytes'][0] / (left * GIB):.1%} used",
                flush=True,
            )
        ggml.ggml_backend_buffer_free(ballast)


# a card of each size; the seed's thresholds are the original subnet's
CARDS = {"6": ("RTX 2060",), "8": ("RTX 4060",), "12": ("RTX 3060",), "16": ("RTX 4080",), "24": ("RTX 3090",), "48": ("L40S",),
         "80": ("H100",), "2 x 24": ("RTX 3090", "RTX 3090")}  # fmt: skip
SEED = ((70, "llama-3-70b"), (45, "mixtral-8x7b"), (16, "llama-3-8b"), (8, "phi-3-medium"), (0, "API"))


def table() -> None:
    """All of a card's memory but 300 MiB free, 64 GB of RAM read at 40 GB/s."""
    print(
        "| GPU memory, GB | card | model | file | where | predicted s a blueprint | multiplier | the seed's choice |\n|"
        + "---|" * 8
    )
    registry = load_registry()
    for size, names in CARDS.items():
        gb = int(size.split()[-1])
        free = gb * GIB - 300 * MIB
        gpus = tuple(Gpu(name, gb * GIB, free, bandwidth_of(name), index=i) for i, name in enumerate(names))
        machine = Hardware(gpus, 64 * GIB, 62 * GIB, 8, 10**12, cpu_bandwidth_gb_s=40.0)
        seed = next(model for least, model in SEED if gb * len(names) >= least)
        try:
            best = place(registry, machine, ModelOptions(), EmptyCatalog())
        except DoesNotFit:
            print(f"| {size} | {names[0]} | none is fast enough | | | | | {seed} |")
            continue
        bonus = " x 1.1" if gb >= 80 else ""
        cells = [size, names[0], best.spec.key, best.file.quant, f"{best.where}, {best.settings.kv_type} KV"]
        cells += [f"{best.speed.blueprint_s:.0f}", f"{best.spec.multiplier:g}{bonus}", seed]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["buffers", "speed", "occupy", "table", "one"])
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    paths = [Path(name) for name in options.rest if not name.isdecimal()]
    if not paths and options.what != "table":
        parser.error(f"{options.what} needs a file")
    if options.what == "one":
        settings = json.loads(options.rest[1])
        settings["tensor_split"] = tuple(settings["tensor_split"])
        print(json.dumps(load(paths[0], EngineSettings(**settings))))
    elif options.what == "table":
        table()
    elif options.what == "buffers":
        buffers(paths)
    elif options.what == "speed":
        measure_speed(paths[0], next((int(name) for name in options.rest if name.isdecimal()), 0))
    else:
        occupy(paths[0])


if __name__ == "__main__":
    main()
