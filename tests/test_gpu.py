"""What only a GPU can show: layers computed there, all or some, give answers that a replay on the CPU proves.

Any GPU that llama.cpp, as it is built here, sees will do. One in software too, Mesa's lavapipe, with GGML_VK_VISIBLE_DEVICES=0; that
takes minutes (docs/machines.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from storyfi_lite.engine import reference
from storyfi_lite.engine.dry_run import measure
from storyfi_lite.engine.engine import Engine, EngineJob, Generation
from storyfi_lite.engine.model import Context, Model
from storyfi_lite.engine.replay import Replay, Replayer
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.errors import DoesNotFit
from storyfi_lite.grammar.prose import Prose
from storyfi_lite.grammar.script import one_turn
from storyfi_lite.machine import devices, selftest
from storyfi_lite.machine.hardware import probe
from storyfi_lite.opening.local import LocalOpener, Notices
from storyfi_lite.options import ModelOptions
from storyfi_lite.validator.verdict import DECIDED_NATS, judge, noise_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not devices.gpus(), reason="llama.cpp sees no GPU here")]

SCRIPT = one_turn("A lighthouse keeper.", {"setting": Prose(150, 200)}, "You write stories.")
CPU = EngineSettings(n_ctx=1024)
ALL, HALF = 99, 15  # of SmolLM2's 31 layers
SEEDS = range(4)


def test_it_computes_right() -> None:
    assert selftest.fault("gpu") == ""
    machine = probe()
    assert machine.usable_gpus and all(gpu.total_bytes for gpu in machine.gpus)


@pytest.fixture(scope="module")
def cpu(small_model_path: Path) -> Iterator[Model]:
    model = Model(small_model_path, CPU)
    yield model
    model.close()


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(EngineSettings(n_ctx=1024, n_gpu_layers=ALL), id="all layers"),
        pytest.param(EngineSettings(n_ctx=1024, n_gpu_layers=HALF, n_slots=2), id="half of them, two slots"),
        pytest.param(EngineSettings(n_ctx=1024, n_gpu_layers=ALL, n_slots=4, kv_type="q8_0"), id="four slots, q8_0"),
    ],
)
def test_answers_written_on_it_are_proven_on_the_cpu(layout: EngineSettings, cpu: Model) -> None:
    with Engine(cpu.path, layout) as engine:
        until_s = time.monotonic() + 1800
        jobs = [engine.submit(EngineJob(SCRIPT, SamplingParams(seed), until_s)) for seed in SEEDS]
        answers = [future.result() for future in jobs]
    plain = replays(cpu, CPU, answers)
    noise = noise_of(zip(plain, replays(cpu, replace(CPU, flash_attn=False), answers), strict=True))
    claimed = replays(cpu, replace(CPU, kv_type=layout.kv_type), answers)
    verdicts = [judge(one, noise) for one in claimed]
    assert all(one.status != "refuted" for one in verdicts), verdicts
    assert sum(one.evidence for one in verdicts) > DECIDED_NATS, verdicts


def replays(model: Model, settings: EngineSettings, answers: list[Generation]) -> list[Replay]:
    with closing(Context(model, settings)) as context:
        replayer = Replayer(context)
        rules = [
            ChoiceRule(model.vocabulary, one.conversation, SCRIPT, SamplingParams(seed), one.max_tokens)
            for seed, one in zip(SEEDS, answers, strict=True)
        ]
        return [
            replayer.replay(rule, one.conversation, list(one.tokens)) for rule, one in zip(rules, answers, strict=True)
        ]


def test_more_keys_than_it_takes_in_one_piece_are_refused(tmp_path: Path) -> None:
    """Where llama.cpp would end the process, also when it only adds up what a layout takes."""
    n_cells = 1 << 20
    reference.make_model(tmp_path / "model.gguf", "F16")
    if devices.gpus()[0].can_compute(1, reference.KV_HEADS * reference.HEAD_SIZE, n_cells):
        pytest.skip("this GPU has no such limit, or a higher one")
    with pytest.raises(DoesNotFit, match="one layer's keys of 1048576 tokens are more than"):
        measure(tmp_path / "model.gguf", EngineSettings(n_ctx=n_cells, n_gpu_layers=ALL))


def test_a_layout_that_does_not_fit_there_gives_way_to_a_smaller_one(small_model_path: Path) -> None:
    """By llama.cpp's own figures for the first GPU, of which 1 GiB is said to be free."""
    machine = probe()
    gpus = tuple(replace(gpu, free_bytes=1 << 30) for gpu in machine.gpus)
    first = tuple(float(not gpu.index) for gpu in gpus)
    notes: list[str] = []
    opener = LocalOpener(Notices(lambda *_: None, notes.append), hardware=replace(machine, gpus=gpus))
    options = ModelOptions(path=small_model_path)
    placed = opener.find(options)
    too_large = EngineSettings(n_ctx=2048, n_slots=8, n_gpu_layers=ALL, tensor_split=first)
    placed = replace(placed, placement=placed.placement.at(too_large, opener.hardware))
    placed, engine = opener.load(placed, options, lambda one: Engine(one.path, one.placement.settings))
    engine.close()
    assert placed.placement.settings == replace(too_large, n_slots=1)
    assert len(notes) == 1 and notes[0].endswith("trying again with one request at a time")
