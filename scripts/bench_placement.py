#!/usr/bin/env python3
"""Predicted memory and speed beside what llama.cpp reports and what the process and the GPU really take.

    scripts/bench_placement.py formula FILE.gguf ... [--fake-gpus N]   planning's formula beside llama.cpp's dry run, layout by layout
    scripts/bench_placement.py load FILE.gguf ...        the dry run beside what llama.cpp, the process and the GPU take in the end
    scripts/bench_placement.py speed FILE.gguf [N]       predicted and measured tokens a second, with N threads
    scripts/bench_placement.py tasks FILE.gguf [N]       seconds of each task with 1, 2 and 4 at once: promised after the load, and taken;
        [--stories N]                               promised by a miner that has written N stories with this file before
    scripts/bench_placement.py occupy FILE.gguf          on a GPU: leave 1, 2, 3 ... GB free, place, load; no out-of-memory allowed
    scripts/bench_placement.py reward [--before OLD.json]   what the choice for known cards earns in the simulator against every layout;
                                                        OLD.json: another choice, {card: {model, quant, settings}}

Synthetic files for many architectures: scripts/make_gguf.py. Fake GPUs (fake_gpu.c, needs cc) are enough for a dry run.
Each real load runs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

from storyfi_lite import tasks
from storyfi_lite.engine.settings import Demand, EngineSettings
from storyfi_lite.errors import DoesNotFit
from storyfi_lite.loaders.base import Job
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.machine.hardware import Hardware, probe
from storyfi_lite.models.gguf import architecture, read_local
from storyfi_lite.models.listing import finer_than
from storyfi_lite.models.registry import SHIPPED, ModelSpec, load_registry
from storyfi_lite.options import MIN_QUANT, ModelOptions
from storyfi_lite.placement import memory, speed, traffic, weights
from storyfi_lite.placement.catalog import Catalog
from storyfi_lite.placement.fit import Fitter
from storyfi_lite.placement.plan import Placement, place, place_file
from storyfi_lite.placement.simulate import simulate
from storyfi_lite.protocol.messages import StoryRequest

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.bench_stories import INPUTS, template_for
from scripts.check_docs import CARDS, described

GIB, MIB = 2**30, 2**20
REPACKED = "CPU_REPACK"  # copies of tensors that are in the mapped file too; the file's pages are given back
ROUNDS = 5
ANSWERS = 2  # of each task at least, in `tasks`
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


def task_seconds(path: Path, n_threads: int, stories: int) -> None:
    """A row for each task and number of slots, for English requests with the stages of a story that the model wrote before, so many at
    once, of the whole grammar. Promised is what the queue says with the pace of the warm-up, for answers that differ in length as
    answers do; taken is the mean of ANSWERS. One JSON line. First of all so many other stories are written, whose lengths are learnt
    as `mine` learns them; what earlier runs have learnt is forgotten. In seconds of this process's processor time, which are those of a clock
    where nothing else runs: with one thread other programs do not count."""
    from storyfi_lite.engine import engine
    from storyfi_lite.loaders import local
    from storyfi_lite.loaders.forecast import EXAMPLES

    for module in (engine, local):
        setattr(module, "time", SimpleNamespace(monotonic=time.process_time, perf_counter=time.process_time))  # noqa: B010
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    model = LocalModel(path, path.stem.lower(), "unknown", "unlisted", 1.0, template_for(path))
    text = EXAMPLES["English"]
    _learn(LocalModelLoader(model, EngineSettings(n_threads=n_threads)), stories)
    story: dict[str, Any] = {"chapter_ids": [1]}
    rows = []
    print("| at once | task | promised s | taken s | error | the last promised s | taken s | error |\n|" + "---|" * 8)
    for n_slots in (1, 2, 4):
        loader = LocalModelLoader(model, EngineSettings(n_slots=n_slots, n_threads=n_threads))
        loader.warm_up()
        for task in tasks.TASKS:
            # each group asks for something else, so that no slot holds the prompt already
            asked = [_request(task, story, f"Story {number}: {text}") for number in range(max(1, ANSWERS // n_slots))]
            found = [_group(loader, request, n_slots) for request in asked]
            promised, taken = [one.promised_s for one in found], [one.taken_s for one in found]
            each = [statistics.mean(chain(*side)) for side in (promised, taken)]
            last = [statistics.mean(map(max, side)) for side in (promised, taken)]
            cells = [f"{before:.1f} | {after:.1f} | {before / after - 1:+.0%}" for before, after in (each, last)]
            print(f"| {n_slots} | {task} | {' | '.join(cells)} |", flush=True)
            rows.append({"at_once": n_slots, "task": task, "each_s": each, "last_s": last,
                         "tokens_expected": found[0].tokens_expected, "tokens": [one.tokens for one in found]})  # fmt: skip
            story.setdefault(task, json.loads(found[0].text))
        loader.close()
    print(json.dumps(rows))


def _learn(loader: LocalModelLoader, stories: int) -> None:
    loader.warm_up()
    loader.promises.clock = time.process_time  # that of the deadlines here
    for number in range(stories):
        text, story = INPUTS["en"][number], dict[str, Any](chapter_ids=[1])
        for task in tasks.TASKS:
            answer = loader.submit(Job(_request(task, story, text), number, time.process_time() + 3600)).result()
            story[task] = json.loads(answer.text)
    if stories and loader.promises.pace:
        print(f"learnt from {stories} stories: {json.dumps(loader.promises.pace.shares)}\n")
    loader.close()


def _request(task: str, story: dict[str, Any], user_input: str) -> StoryRequest:
    """Ask for the next stage of this story; the blueprint, which is the first that a prompt names, is called like the input."""
    stages = {name: story[name] for name in tasks.get(task).needs}
    if "blueprint" in stages:
        stages["blueprint"] = {**stages["blueprint"], "title": user_input}
    return StoryRequest.model_validate({"task_type": task, "user_input": user_input, **stages})


@dataclass(frozen=True)
class Group:
    """Answers to the same request, all at once; the text of one of them."""

    promised_s: list[float]
    taken_s: list[float]
    tokens_expected: int
    tokens: list[int]
    text: str


def _group(loader: LocalModelLoader, request: StoryRequest, count: int) -> Group:
    from storyfi_lite.placement import queue

    pace, work = loader.promises.pace, loader._work(request)
    assert pace and work
    # the mean of each of so many normal draws, by Blom's approximation, neither the short nor the long ones first
    draws = [NormalDist().inv_cdf((rank - 0.375) / (count + 0.25)) for rank in range(1, count + 1)]
    jobs = [queue.Job(0.0, work, 0, 1.0 + work.spread * draw) for draw in draws[1::2] + draws[::2]]
    queue.run(jobs, pace.queue, count, float("inf"), float("inf"))
    loader.promises.pace = None  # nothing is shortened, nothing learnt
    futures = [loader.submit(Job(request, seed, time.process_time() + 3600)) for seed in range(count)]
    answers = [future.result() for future in futures]
    loader.promises.pace = pace
    return Group(
        [job.seconds or 0.0 for job in jobs],
        [answer.generation_time_s for answer in answers],
        work.whole,
        [answer.completion_tokens for answer in answers],
        answers[0].text,
    )


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


# --- what a choice earns --------------------------------------------------------------------------------------------

OTHER_CARDS = {"24 ": ("RX 7900 XTX",), "16 ": ("Arc A770",), "32": ("RTX 5090",)}  # in no table of ours
HOURS, SEEDS, SCALES = 12, (11, 12), (0.8, 1.0, 1.25)


def played(one: Placement) -> float:
    """The mean reward of the simulator's hours, with three speeds around the predicted one."""
    layout, asked = one.settings, traffic.read(traffic.NETWORK)
    rewards = [
        simulate(asked.arrivals(HOURS * 3600, seed), one.speed.pace.times(scale), layout.n_slots, layout.n_ctx,
                 one.spec.multiplier, one.a_char, seed).earnings.reward
        for seed in SEEDS for scale in SCALES
    ]  # fmt: skip
    return statistics.mean(rewards)


def every_layout(machine: Hardware) -> Iterator[Placement]:
    """Every file that is fine enough, every number of slots, f16 and q8_0, two contexts: as much of each as fits on the GPU."""
    for spec in load_registry(SHIPPED).local:
        for file in (file for file in spec.files if finer_than(MIN_QUANT, file)):
            with contextlib.suppress(DoesNotFit):
                any_one = place_file(spec, file, machine, ModelOptions(), None)
                fitter = Fitter(any_one.arch, any_one.loads, machine, at_once=8)
                for n_ctx in {4096, any_one.settings.n_ctx, min(6144, any_one.arch.context_length)}:
                    for settings in fitter.layouts(EngineSettings(n_ctx=n_ctx)):
                        yield any_one.at(settings, machine)


def rewards(before: dict[str, Any]) -> None:
    """A row a card: the choice, its reward, the best layout's, their ratio; with `before` what another choice earns."""
    print(
        "| card | chosen | earns | best of all layouts | earns | ratio | before | earned | now more |\n|" + "---|" * 9
    )
    rows = []
    registry = load_registry(SHIPPED)
    for size, names in {**CARDS, **OTHER_CARDS}.items():
        machine, card = described(size.strip(), names), f"{size.strip()} GB {names[0]}"
        chosen = place(registry, machine, ModelOptions(), Catalog())
        ours = played(chosen)
        # the simulator takes its time only for what could win
        likely = [one for one in every_layout(machine) if one.earnings.reward > 0.9 * chosen.earnings.reward]
        best, most = max(((one, played(one)) for one in likely), key=lambda pair: pair[1])
        row: dict[str, Any] = {"card": card, "chosen": _named(chosen), "reward": round(ours, 4), "best": _named(best),
                               "best_reward": round(most, 4), "ratio": round(min(1.0, ours / most), 4), "layouts": len(likely)}  # fmt: skip
        cells = [card, _named(chosen), f"{ours:.3f}", _named(best), f"{most:.3f}", f"{row['ratio']:.3f}"]
        if old := before.get(card):
            spec = registry.find(old["model"])
            assert isinstance(spec, ModelSpec)
            settings = EngineSettings(**{**old["settings"], "tensor_split": tuple(old["settings"]["tensor_split"])})
            then = place_file(spec, spec.file(old["quant"]), machine, ModelOptions(), None).at(settings, machine)
            row |= {"before": _named(then), "before_reward": round(played(then), 4)}
            cells += [_named(then), f"{row['before_reward']:.3f}", f"{ours / row['before_reward'] - 1:+.0%}"]
        rows.append(row)
        print(f"| {' | '.join(cells)} |", flush=True)
    print(json.dumps(rows))


def _named(one: Placement) -> str:
    layout = one.settings
    return f"{one.spec.key} {one.file.quant}, {one.n_on_gpu} of {one.n_layers} layers, {layout.n_slots} at once, {layout.kv_type}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["formula", "load", "speed", "tasks", "occupy", "reward", "one"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--fake-gpus", type=int, default=0, metavar="N")
    parser.add_argument("--before", type=Path, metavar="OLD.json")
    parser.add_argument("--stories", type=int, default=0, metavar="N")
    options = parser.parse_args()
    if options.what == "reward":
        rewards(json.loads(options.before.read_text()) if options.before else {})
        return
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
    elif options.what in ("speed", "tasks"):
        n_threads = next((int(name) for name in options.rest if name.isdecimal()), 0)
        if options.what == "speed":
            measure_speed(paths[0], n_threads)
        else:
            task_seconds(paths[0], n_threads, options.stories)
    else:
        occupy(paths[0])


if __name__ == "__main__":
    main()
