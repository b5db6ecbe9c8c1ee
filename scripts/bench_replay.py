"""How long a round of replays takes where the file is larger than the memory: a made-up model under a control group's limit.

    python scripts/bench_replay.py --writer SmolLM2-135M-Instruct.Q4_1.gguf --scratch /tmp/bench --gb 3 --memory-gb 1
    python scripts/bench_replay.py … --disk-mb-s 100       # the same, on a disk that is no faster than this

Linux, as root: the limits are control groups (version 1 or 2), and the page cache is dropped before each row. The file is a made-up
mixture of experts (make_gguf.py) with the writer's vocabulary, all of its weights needed by every round and few of them by a
token, so that reading weighs as much as it does with a large model on a faster machine. `--dense`: without experts. The answers are
the writer's, to one request, where many are asked for the same eight again and again; the made-up model did not write them, and needs as long for them as if it had.

Each row is a process of its own that opens the file as `prove` does (opening/), so the layout is the one that a machine with so
little memory gets. Printed: a table, then one JSON line. `read`: bytes that the process had read from the disk, over the file's
size; loading and replaying apart. `of the disk's`: seconds of replaying over those that a plain read of the file takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts import make_gguf
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.loaders.base import Job
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.machine.limits import GROUPS
from storyfi_lite.miner.service import to_response
from storyfi_lite.models.digest import file_sha256
from storyfi_lite.models.gguf import read_local
from storyfi_lite.opening.local import LocalOpener, Notices
from storyfi_lite.options import ModelOptions
from storyfi_lite.protocol.messages import StoryRequest, parse_response

REQUEST = StoryRequest(task_type="blueprint", user_input="a lighthouse keeper who hears the sea speak")
DENSE = make_gguf.Shape("llama", 0, 2048, 8192, 32, 4, 64, 0)
MIXTURE = make_gguf.Shape("llama", 0, 1024, 512, 16, 4, 64, 0, experts=64, experts_used=1)
WRITTEN = 8  # answers; where more are replayed, they are these again and again
GROUP = "storyfi-lite-bench"
BLOCK_BYTES = 8 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writer", type=Path, required=True, help="a small model that writes the answers")
    parser.add_argument("--scratch", type=Path, required=True, help="where the made-up file and the answers are kept")
    parser.add_argument("--gb", type=float, default=3.0, help="the made-up file's size")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--memory-gb", type=float, default=1.0)
    parser.add_argument("--disk-mb-s", type=float, help="slow the disk down to this")
    parser.add_argument("--answers", default="1,8,64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    counts = [int(count) for count in given.answers.split(",")]
    path = made_up(given)
    answers = given.scratch / "answers.jsonl"
    if given.child is not None:
        print(json.dumps(replay(path, answers, given.child, given.threads)))
        return
    write_answers(given.writer, answers, min(WRITTEN, max(counts)))
    file_sha256(path)  # kept: a validator's file is hashed when it comes
    rows = []
    with groups(path, given.memory_gb, given.disk_mb_s) as join:
        disk_s = in_group(join, [sys.executable, "-c", _READ, str(path)], path)["read_s"]
        for count in counts:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", str(count)]
            rows.append(in_group(join, command, path))
            print(json.dumps(rows[-1]), file=sys.stderr)
    report(given, path.stat().st_size, disk_s, rows)


def made_up(given: argparse.Namespace) -> Path:
    kind = "dense" if given.dense else "mixture"
    path = Path(given.scratch) / f"{kind}-{given.gb:g}gb.gguf"
    if not path.exists():
        words = read_local(given.writer).array_lengths["tokenizer.ggml.tokens"]
        shape = make_gguf.replace(DENSE if given.dense else MIXTURE, layers=1, vocabulary=words)
        sizes = {n: make_gguf.np.prod([float(d) for d in dims]) for n, dims in make_gguf.tensors(shape).items()}
        layer = sum(size for name, size in sizes.items() if name.startswith("blk."))
        layers = round((given.gb * 1e9 * 32 / 34 - sum(sizes.values())) / layer) + 1
        make_gguf.write(path, make_gguf.replace(shape, layers=layers), False, "Q8_0", given.writer)
    return path


def write_answers(writer: Path, target: Path, count: int) -> None:
    if target.exists() and len(target.read_text().splitlines()) >= count:
        return
    loader = LocalModelLoader(LocalModel(writer, "writer", "any", "bench", 1.0), EngineSettings(n_ctx=2048, n_slots=8))
    try:
        until_s = time.monotonic() + 36_000
        waiting = [loader.submit(Job(REQUEST, seed, until_s)) for seed in range(count)]
        target.write_text("".join(to_response(one.result()).model_dump_json() + "\n" for one in waiting))
    finally:
        loader.close()


def replay(path: Path, answers: Path, count: int, threads: int) -> dict[str, Any]:
    """What one row's process measures of itself."""
    lines = list(islice(cycle(answers.read_text().splitlines()), count))
    responses = [parse_response(line.encode()) for line in lines]
    started_s, read = time.perf_counter(), bytes_read()
    prover = LocalOpener(Notices(lambda *_: None, lambda note: print(note, file=sys.stderr))).prover(
        ModelOptions(path=path, n_threads=threads)
    )
    loaded_s, read_loading = time.perf_counter(), bytes_read()
    most = MostOwnBytes()
    found = [one for _, one in prover.replay_all([(REQUEST, response) for response in responses])]
    done_s, read_replaying = time.perf_counter(), bytes_read()
    assert len(found) == count and not any(one.refuted for one in found), found
    settings = prover._settings
    return {
        "answers": count, "load_s": round(loaded_s - started_s, 2), "replay_s": round(done_s - loaded_s, 2),
        "load_read_bytes": read_loading - read, "replay_read_bytes": read_replaying - read_loading,
        "mapped": settings.mapped, "batches": f"{settings.n_contexts} x {settings.n_batch}",
        "positions": sum(len(one.leads) for one in found), "own_bytes": most.stop(),
    }  # fmt: skip


def bytes_read() -> int:
    """From the disk, by all threads of this process."""
    rows = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(rows["read_bytes"])


class MostOwnBytes(Thread):
    """Looks how much memory this process takes, the file's pages left out, and keeps the most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._found, self._over = 0, Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.02):
            rows = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            self._found = max(self._found, int(rows["RssAnon"].split()[0]) << 10)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self._found


# --- control groups ---------------------------------------------------------------------------------------------------

_READ = f"""
import json, sys, time
started = time.perf_counter()
with open(sys.argv[1], "rb", buffering=0) as file:
    while file.read({BLOCK_BYTES}):
        pass
print(json.dumps({{"read_s": time.perf_counter() - started}}))
"""


@contextmanager
def groups(path: Path, memory_gb: float, disk_mb_s: float | None) -> Iterator[list[Path]]:
    """Makes the groups; yields the directories that a process joins. Raises OSError without root."""
    device = os.stat(path).st_dev
    rate = disk_mb_s and f"{os.major(device)}:{os.minor(device)} {'rbps=' * version_2()}{int(disk_mb_s * 1e6)}"
    limit = str(int(memory_gb * 2**30))
    if version_2():
        wanted = {GROUPS / GROUP: {"memory.max": limit, **({"io.max": rate} if rate else {})}}
    else:
        wanted = {GROUPS / "memory" / GROUP: {"memory.limit_in_bytes": limit}}
        if rate:
            wanted[GROUPS / "blkio" / GROUP] = {"blkio.throttle.read_bps_device": rate}
    try:
        for directory, files in wanted.items():
            directory.mkdir(exist_ok=True)
            for name, text in files.items():
                (directory / name).write_text(text)
        yield list(wanted)
    finally:
        for directory in wanted:
            if directory.exists():
                directory.rmdir()


def version_2() -> bool:
    return (GROUPS / "cgroup.controllers").exists()


def in_group(directories: list[Path], command: list[str], path: Path) -> dict[str, Any]:
    """What the command prints as JSON, and the most memory that the group had, page cache and all."""
    drop_cache(path)
    peak = directories[0] / ("memory.peak" if version_2() else "memory.max_usage_in_bytes")
    peak.write_text("0")
    join = "".join(f"echo $$ > {directory}/cgroup.procs && " for directory in directories)
    done = subprocess.run(
        ["sh", "-c", f'{join}exec "$@"', "sh", *command], stdout=subprocess.PIPE, check=True, text=True
    )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**facts, "peak_bytes": int(peak.read_text())}


def drop_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- report -----------------------------------------------------------------------------------------------------------


def report(given: argparse.Namespace, size: int, disk_s: float, rows: list[dict[str, Any]]) -> None:
    names = (
        "answers",
        "load, s",
        "load read",
        "replay, s",
        "replay read",
        "of the disk's",
        "group's peak, MiB",
        "own, MiB",
        "batches in step, tokens",
    )
    title = f"{size / 1e9:.2f} GB, {given.memory_gb:g} GiB of memory, plain read {disk_s:.1f} s ({size / disk_s / 1e6:.0f} MB/s)"
    table = Table(*names, title=title)
    for row in rows:
        row["over_disk"] = round(row["replay_s"] / disk_s, 2)
        table.add_row(
            str(row["answers"]), f"{row['load_s']:.1f}", f"{row['load_read_bytes'] / size:.2f}",
            f"{row['replay_s']:.1f}", f"{row['replay_read_bytes'] / size:.2f}", f"{row['over_disk']:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f}", f"{row['own_bytes'] / 2**20:.0f}",
            f"{row['batches']}{'' if row['mapped'] else ', in RAM'}",
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 140).print(table)
    print(json.dumps({"file_bytes": size, "memory_gb": given.memory_gb, "disk_s": round(disk_s, 2), "rows": rows}))


if __name__ == "__main__":
    main()
