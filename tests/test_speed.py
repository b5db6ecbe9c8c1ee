"""Predicted speed follows what a token reads, type by type; the calibration is kept, and nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.machine import kernels
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.gguf import architecture, read_local
from storyfi_lite.placement import calibrate, speed, weights
from storyfi_lite.placement.calibrate import CpuSpeed
from tests.tiny_gguf import tiny_gguf

GIB = 2**30
CPU = Hardware((), 64 * GIB, 64 * GIB, 8, 10**12)
EVEN = dict.fromkeys(calibrate.TYPES, 10.0)
HALF = dict.fromkeys(calibrate.TYPES, 0.5)


def predicted(path: Path, measured: CpuSpeed, monkeypatch: pytest.MonkeyPatch, **settings: object) -> float:
    monkeypatch.setattr(calibrate, "cpu_speed", lambda n_threads: measured)
    header = read_local(path)
    arch = architecture(header, path.name)
    loads = weights.from_header(header, arch.block_count)
    return speed.predict(arch, loads, EngineSettings(**settings), CPU).tokens_per_s  # type: ignore[arg-type]


def test_the_mix_of_types_is_the_header_s(small_model_path: Path) -> None:
    header = read_local(small_model_path)
    mix = dict(weights.from_header(header, 30).mix)
    assert sum(mix.values()) == pytest.approx(1) and set(mix) == {"Q4_1", "Q8_0", "F32"}
    assert mix["Q4_1"] == pytest.approx(66.4 / 96.6, abs=0.01)


def test_each_type_counts_at_its_own_speed_and_attention_on_top(
    small_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"f16": 0.0, "q8_0": 0.0}
    monkeypatch.setattr(speed, "CPU_LAYER_S", 0.0)
    even = predicted(small_model_path, CpuSpeed(EVEN, free, 0.0, HALF), monkeypatch)
    rows = 30 * (9 * 64 + 2 * 3 * 64 + 576 + 2 * 1536 + 576) + 49152
    assert 1 / predicted(small_model_path, CpuSpeed(EVEN, free, 7.0, HALF), monkeypatch) - 1 / even == pytest.approx(
        7e-9 * rows
    )
    assert even == pytest.approx(10e9 / 96.58e6, rel=0.01)
    slow_q4_1 = predicted(small_model_path, CpuSpeed({**EVEN, "Q4_1": 5.0}, free, 0.0, HALF), monkeypatch)
    assert 1 / slow_q4_1 - 1 / even == pytest.approx(66.4e6 / 10e9, rel=0.01)
    attending = CpuSpeed(EVEN, {"f16": 1.0, "q8_0": 2.0}, 0.0, HALF)
    each_s = 30 * speed.MEAN_CELLS * 9 * 64 * 1e-9
    assert 1 / predicted(small_model_path, attending, monkeypatch) - 1 / even == pytest.approx(each_s)
    quantized = predicted(small_model_path, attending, monkeypatch, kv_type="q4_0")
    assert 1 / quantized - 1 / even == pytest.approx(2 * each_s)


def test_no_model_is_so_small_that_it_takes_no_time(tmp_path: Path) -> None:
    header = read_local(tiny_gguf(tmp_path / "tiny.gguf"))
    loads = weights.from_header(header, 2)
    pace = speed.predict(architecture(header, "tiny.gguf"), loads, EngineSettings(), CPU).pace
    assert pace.step_s > 0 and pace.prompt_token_s > 0


def test_a_calibration_is_kept_for_each_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs: list[int] = []

    def measure(n_threads: int) -> CpuSpeed:
        runs.append(n_threads)
        return CpuSpeed({**EVEN, "Q4_K": float(n_threads)}, {"f16": 0.2, "q8_0": 0.4}, 0.0, HALF)

    monkeypatch.setattr(calibrate, "measure_cpu", measure)
    monkeypatch.setattr(calibrate, "cpu_seconds_of_others", lambda: 0.0)
    path = tmp_path / "storyfi-lite" / "speed.json"
    for _ in range(2):
        for threads in (1, 3):
            calibrate.cpu_speed.cache_clear()  # another process
            assert calibrate.cpu_speed(threads).gb_s["Q4_K"] == threads
    assert runs == [1, 3] and len(json.loads(path.read_text())) == 2
    path.write_text("{damaged")
    calibrate.cpu_speed.cache_clear()
    assert calibrate.cpu_speed(3).gb_s["Q4_K"] == 3 and runs == [1, 3, 3]
    calibrate.cpu_speed.cache_clear()


def test_a_calibration_taken_on_a_busy_machine_says_so_and_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    slower = {kind: speed / 2 for kind, speed in EVEN.items()}
    more = dict.fromkeys(calibrate.TYPES, 0.9)
    seen = iter(
        [CpuSpeed(slower, {"f16": 0.2, "q8_0": 0.9}, 2.0, more), CpuSpeed(EVEN, {"f16": 0.3, "q8_0": 0.4}, 1.0, HALF)]
        * 2
    )
    monkeypatch.setattr(calibrate, "measure_cpu", lambda n_threads: next(seen))
    used = iter(10_000.0 * number for number in range(99))
    monkeypatch.setattr(calibrate, "cpu_seconds_of_others", lambda: next(used))
    calibrate.cpu_speed.cache_clear()
    assert calibrate.cpu_speed(1) == CpuSpeed(EVEN, {"f16": 0.2, "q8_0": 0.4}, 1.0, HALF)  # the best of what was seen
    assert "while other programs had its cores" in caplog.text
    calibrate.cpu_speed.cache_clear()
    assert not (tmp_path / "storyfi-lite").exists()


def test_a_real_calibration_has_a_figure_for_every_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SECONDS_A_KERNEL", 0.0)
    monkeypatch.setattr(kernels, "ROWS", 256)
    measured = calibrate.measure_cpu(1)
    assert set(measured.gb_s) == set(calibrate.TYPES) and all(rate > 0 for rate in measured.gb_s.values())
    assert all(ns > 0 for ns in measured.attention_ns.values())
    assert all(0 <= share <= 1 for share in measured.more_share.values())


def test_several_answers_share_a_step_s_reading(small_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"f16": 0.0, "q8_0": 0.0}
    monkeypatch.setattr(speed, "CPU_LAYER_S", 0.0)
    monkeypatch.setattr(calibrate, "cpu_speed", lambda n_threads: CpuSpeed(EVEN, free, 0.0, HALF))
    header = read_local(small_model_path)
    arch = architecture(header, "small")
    pace = speed.predict(arch, weights.from_header(header, arch.block_count), EngineSettings(n_slots=4), CPU).pace
    assert pace.step_of(4) == pytest.approx(2.5 * pace.step_s, rel=0.01)
    assert pace.prompt_token_s == pytest.approx(pace.step_s / 2, rel=0.01)
    free_more = dict.fromkeys(calibrate.TYPES, 0.0)  # eight at once as fast as one: reading is all that counts
    monkeypatch.setattr(calibrate, "cpu_speed", lambda n_threads: CpuSpeed(EVEN, free, 0.0, free_more))
    pace = speed.predict(arch, weights.from_header(header, arch.block_count), EngineSettings(n_slots=4), CPU).pace
    assert pace.step_of(4) == pytest.approx(pace.step_s, rel=0.01) and 0 < pace.prompt_token_s < pace.step_s / 10
