#!/usr/bin/env python3
"""Predicted memory and speed beside what llama.cpp reports and what the process and the GPU really take.

    scripts/bench_placement.py formula FILE.gguf ... [--fake-gpus N]   planning's formula beside llama.cpp's dry run, layout by layout
    scripts/bench_placement.py load FILE.gguf ...        the dry run beside what llama.cpp, the process and the GPU take in the end
    scripts/bench_placement.py speed FILE.gguf [N]       predicted and measured tokens a second, with N threads
    scripts/bench_placement.py occupy FILE.gguf          on a GPU: leave 1, 2, 3 ... GB free, place, load; no out-of-memory allowed

Synthetic files for many architectures: scripts/make_gguf.py. Fake GPUs (fake_gpu.c, needs cc) are enough for a dry run.
Each real load runs in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from storyfi_lite.engine.settings import Demand, EngineSettings
from storyfi_lite.machine.hardware import probe
from storyfi_lite.models.gguf import architecture, read_local
from storyfi_lite.placement import memory, speed, weights
from storyfi_lite.placement.fit import Fitter

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


def add_fake_gpus(count: int) -> None:
    """Compiles fake_gpu.c and registers so many of its devices, in this process."""
    from storyfi_lite.machine import devices

    llama = devices.ggml()  # its libraries first: the fake must find the same ones
    packages = Path(sysconfig.get_paths()["purelib"])
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "fake_gpu.so"
        ggml = next((packages / "llama_cpp" / "lib").glob("libggml-base.so.?"))
        source = Path(__file__).with_name("fake_gpu.c")
        command = ["cc", "-shared", "-fPIC", "-I", *map(str, (packages / "include", source, ggml)), "-o", str(library)]
        subprocess.run(command, check=True)
        fake = ctypes.CDLL(str(library))
    fake.fake_gpus.restype, fake.fake_gpus.argtypes = ctypes.c_void_p, [ctypes.c_size_t] * 2
    llama.ggml_backend_register(ctypes.c_void_p(fake.fake_gpus(count, 80 * GIB)))


def _layouts(n_layers: int, experts: int, n_gpus: int) -> Iterator[EngineSettings]:
    """Every case with all, all but one, half, two and one of the layers on the GPUs, and with experts in RAM."""
    for case in CASES:
        if not n_gpus:
            yield case
            continue
        for split in ((),) if n_gpus == 1 else ((3.0, *(1.0,) * (n_gpus - 1)), (1.0,) * n_gpus):
            on_gpus = replace(case, tensor_split=split)
            yield from (replace(on_gpus, n_gpu_layers=n) for n in (n_layers, n_layers - 1, n_layers // 2, 2, 1))
            if experts:
                yield from (
                    replace(on_gpus, n_gpu_layers=n_layers, experts_in_ram=n) for n in (1, n_layers // 2, n_layers - 1)
                )


def formula(paths: list[Path], fake_gpus: int) -> None:
    """A row a file and device: how far the formula is below and above the dry run, over all layouts; one JSON line. Flash
    attention is always on where placement chooses."""
    from storyfi_lite.engine.dry_run import measure
    from storyfi_lite.machine import devices

    logging.disable()
    if fake_gpus:
        add_fake_gpus(fake_gpus)
    n_gpus = len(devices.gpus())
    rows = []
    print("| file | device | layouts | lowest error | MiB | highest error | MiB |\n|" + "---|" * 7)
    for path in paths:
        header = read_local(path)
        arch = architecture(header, path.name)
        loads = weights.from_header(header, arch.block_count)
        found: dict[str, list[tuple[float, float, EngineSettings]]] = {}
        for settings in _layouts(arch.block_count + 1, arch.expert_count, n_gpus):
            if arch.name == "phi3" and settings.n_slots > 1 and settings.kv_type != "f16":
                continue  # llama.cpp aborts
            told = measure(path, settings)
            if told is None:
                raise SystemExit("this llama.cpp does not tell")
            for number, (mine, its) in enumerate(zip(memory.demand(arch, loads, settings, n_gpus), told, strict=True)):
                if its.buffer_bytes:
                    error = mine.buffer_bytes - its.buffer_bytes
                    device = f"GPU {number}" if number < n_gpus else "RAM"
                    device += "" if settings.flash_attn else ", no flash attention"
                    found.setdefault(device, []).append((error / its.buffer_bytes, error / MIB, settings))
        for device, errors in found.items():
            low, high = min(errors, key=lambda row: row[0]), max(errors, key=lambda row: row[0])
            cells = [
                path.stem,
                device,
                len(errors),
                f"{low[0]:+.2%}",
                f"{low[1]:+.1f}",
                f"{high[0]:+.2%}",
                f"{high[1]:+.1f}",
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            rows.append({"file": path.stem, "device": device, "layouts": len(errors), "lowest": low[0], "lowest_mib": low[1],
                         "lowest_at": _changed(low[2]), "highest": high[0], "highest_mib": high[1],
                         "highest_at": _changed(high[2])})  # fmt: skip
    print(json.dumps(rows))


def _changed(settings: EngineSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if value != getattr(EngineSettings(), name)}


def loaded(paths: list[Path]) -> None:
    """For each case, all layers on the GPU if there is one."""
    from storyfi_lite.engine.dry_run import measure

    print("| file | case | dry run MiB | reported MiB | error | RSS MiB | GPU MiB taken |\n|" + "---|" * 7)
    for path in paths:
        for case in CASES:
            settings = replace(case, n_gpu_layers=999 if probe().usable_gpus else 0)
            told = sum((need.buffer_bytes for need in measure(path, settings) or (Demand(),)), 0)
            real = _apart(path, settings)
            got = sum(real["buffers"].values())
            cells = [
                path.stem,
                _changed(case) or "default",
                f"{told / MIB:.2f}",
                f"{got / MIB:.2f}",
                f"{told / got - 1:+.2%}",
            ]
            cells += [f"{real['rss_bytes'] / MIB:.0f}", f"{sum(real['gpu_bytes']) / MIB:.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def measure_speed(path: Path, n_threads: int) -> None:
    """The placement's own settings. In turn: a prediction from a calibration of this moment, and the fastest tenth of 64
    tokens behind the context that the prediction stands for. Other programs slow either: the best of each are compared."""
    from storyfi_lite.placement import calibrate

    machine, header = probe(), read_local(path)
    arch = architecture(header, path.name)
    loads = weights.from_header(header, arch.block_count)
    fit = next(Fitter(arch, loads, machine, at_once=1).layouts(EngineSettings(n_threads=n_threads)), None)
    if fit is None:
        raise SystemExit("it does not fit")
    on_cpu = fit.n_gpu_layers <= arch.block_count
    rounds: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        if on_cpu:
            fresh = calibrate.measure_cpu(n_threads or machine.physical_cores)
            calibrate.cpu_speed = lambda threads, fresh=fresh: fresh  # type: ignore[assignment]
        predicted = speed.predict(arch, loads, fit, machine)
        measured = _tokens_per_s(path, fit)
        rounds.append((predicted.tokens_per_s, measured))
        print(f"predicted {predicted.tokens_per_s:.1f}, measured {measured:.1f} tokens/s", flush=True)
    best, fastest = (max(column) for column in zip(*rounds, strict=True))
    print(f"{path.name}, {fit.n_gpu_layers} layers on the GPU: {best:.1f} / {fastest:.1f}: {best / fastest - 1:+.0%}")
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
    from storyfi_lite.machine import devices

    ggml = devices.ggml()
    ggml.ggml_backend_buft_alloc_buffer.restype = ctypes.c_void_p
    ggml.ggml_backend_buft_alloc_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    ggml.ggml_backend_buffer_free.argtypes = [ctypes.c_void_p]
    present = devices.gpus()
    if not present:
        raise SystemExit("llama.cpp sees no GPU here")
    kind = present[0].buffer_type()
    header = read_local(path)
    arch = architecture(header, path.name)
    loads = weights.from_header(header, arch.block_count)
    for left in range(1, probe().gpus[0].free_bytes // GIB):
        ballast = ggml.ggml_backend_buft_alloc_buffer(kind, probe().gpus[0].free_bytes - left * GIB)
        fit = next(Fitter(arch, loads, probe(), at_once=1).layouts(EngineSettings()), None)
        if fit is None:
            print(f"{left} GB free: does not fit")
        else:
            real = _apart(path, fit)
            print(
                f"{left} GB free: {fit.n_gpu_layers} layers, {real['gpu_bytes'][0] / (left * GIB):.1%} used",
                flush=True,
            )
        ggml.ggml_backend_buffer_free(ballast)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["formula", "load", "speed", "occupy", "one"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--fake-gpus", type=int, default=0, metavar="N")
    options = parser.parse_args()
    paths = [Path(name) for name in options.rest if not name.isdecimal()]
    if not paths:
        parser.error(f"{options.what} needs a file")
    if options.what == "one":
        settings = json.loads(options.rest[1])
        settings["tensor_split"] = tuple(settings["tensor_split"])
        print(json.dumps(load(paths[0], EngineSettings(**settings))))
    elif options.what == "formula":
        formula(paths, options.fake_gpus)
    elif options.what == "load":
        loaded(paths)
    elif options.what == "speed":
        measure_speed(paths[0], next((int(name) for name in options.rest if name.isdecimal()), 0))
    else:
        occupy(paths[0])


if __name__ == "__main__":
    main()
