"""Miners that cheat, to see that the validator notices. For loopback and the dev chain only.

    python scripts/cheats.py impostor mine --network dev --model.path SmolLM2-135M-Instruct.Q4_1.gguf
    python scripts/cheats.py inflated mine --network dev --axon.port 8092 …

The real miner in all but its loader, which lies:

    impostor   runs a coarser requantization (Q2_K) of the file that it claims
    inflated   runs the file, claims llama-3-70b on an 80 GB card
    own-seed   writes under a seed of its own choice, claims the challenge's
    edited     improves the text by hand after it was written
    stale      gives its first answer to every later request
    unproven   leaves out tokens and header
    junk       an empty object, at once
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import bench_proof

from storyfi_lite.cli import main as storyfi_lite
from storyfi_lite.digest import file_sha256
from storyfi_lite.loaders.base import Answer, Job, Loader, LoaderHealth
from storyfi_lite.miner import compose

Lie = Callable[[Job, Answer], Answer]


class Cheat:
    """A Loader whose answers pass through `lie`; `bend` changes the job before it is written."""

    def __init__(self, loader: Loader, lie: Lie, bend: Callable[[Job], Job] = lambda job: job) -> None:
        self._loader, self._lie, self._bend = loader, lie, bend
        self.claim = loader.claim

    def submit(self, job: Job) -> Future[Answer]:
        outer: Future[Answer] = Future()

        def finished(inner: Future[Answer]) -> None:
            try:
                outer.set_result(self._lie(job, inner.result()))
            except BaseException as error:
                outer.set_exception(error)

        self._loader.submit(self._bend(job)).add_done_callback(finished)
        outer.set_running_or_notify_cancel()
        return outer

    def health(self) -> LoaderHealth:
        return self._loader.health()

    def close(self) -> None:
        self._loader.close()


def inflated(job: Job, answer: Answer) -> Answer:
    info = answer.claim.model_info.model_copy(update={"name": "llama-3-70b"})
    claim = replace(answer.claim, model_name="llama-3-70b", model_info=info, gpu_memory_gb=80.0)
    return replace(answer, claim=claim)


def own_seed(job: Job, answer: Answer) -> Answer:
    assert answer.proof is not None
    return replace(answer, proof=answer.proof.model_copy(update={"seed": job.seed}))


def edited(job: Job, answer: Answer) -> Answer:
    return replace(answer, text=answer.text.replace(" the ", " thy ", 1).replace("，", "；", 1))


def unproven(job: Job, answer: Answer) -> Answer:
    return replace(answer, tokens=None, proof=None)


def junk(job: Job, answer: Answer) -> Answer:
    return replace(answer, text="{}", tokens=None, proof=None)


def stale() -> Lie:
    kept: dict[str, Answer] = {}
    return lambda job, answer: kept.setdefault(job.request.task_type, answer)


def wrapped(kind: str, loader: Loader) -> Loader:
    if kind == "own-seed":
        return Cheat(loader, own_seed, lambda job: replace(job, seed=1))
    lies: dict[str, Lie] = {
        "inflated": inflated, "edited": edited, "stale": stale(), "unproven": unproven, "junk": junk,
    }  # fmt: skip
    return Cheat(loader, lies[kind])


def impostor(options: compose.MineOptions, scratch: Path) -> tuple[Loader, Mapping[str, str]]:
    """Loads a requantized copy, and names the file that it was made from."""
    claimed = options.model_path
    if claimed is None:
        sys.exit("impostor needs the file that it claims: --model.path FILE")
    honest, _ = HONEST(options)
    claim, sha256 = honest.claim, file_sha256(claimed)
    honest.close()
    coarse = bench_proof.requantized(claimed, "Q2_K", scratch)
    loader, facts = HONEST(replace(options, model_path=coarse))

    def lie(job: Job, answer: Answer) -> Answer:
        assert answer.proof is not None
        header = answer.proof.model_copy(update={"model_sha256": sha256, "quantization": claim.model_info.version})
        return replace(answer, claim=claim, proof=header)

    return Cheat(loader, lie), facts


HONEST = compose.open_loader


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    kind = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as scratch:

        def open_cheat(options: compose.MineOptions) -> tuple[Loader, Mapping[str, str]]:
            if kind == "impostor":
                return impostor(options, Path(scratch))
            loader, facts = HONEST(options)
            return wrapped(kind, loader), facts

        compose.open_loader = open_cheat
        storyfi_lite()


if __name__ == "__main__":
    main()
