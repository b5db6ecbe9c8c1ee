"""The self-test of llama.cpp's build: a real child, real kernels; a build that is bad is this one with a function replaced."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storyfi_lite import files
from storyfi_lite.engine import reference
from storyfi_lite.errors import ConfigError
from storyfi_lite.machine import build, devices, selftest
from storyfi_lite.machine.gpus import Gpu
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.opening.local import LocalOpener, Notices
from storyfi_lite.options import ModelOptions

BAD = {
    "crash": "int ggml_backend_sched_graph_compute_async() { __builtin_trap(); }",
    "abort": "#include <stdio.h>\n#include <stdlib.h>\n"
    'int ggml_backend_sched_graph_compute_async() { fputs("ggml.c:1: no kernel\\n#0 main\\n", stderr); abort(); }',
    "wrong": "#include <string.h>\n"
    "void ggml_backend_tensor_get_async(void *b, void *t, void *to, size_t at, size_t size) { memset(to, 1, size); }",
    "refused": "void *gguf_init_from_file() { return 0; }",
    "experts": "void *ggml_mul_mat_id() { __builtin_trap(); }",
}


@pytest.fixture(autouse=True)
def untested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = dict(selftest.TESTED)
    selftest.TESTED.clear()
    yield
    selftest.TESTED.clear()
    selftest.TESTED.update(before)


def preload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    library = tmp_path / f"{how}.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=BAD[how], text=True, check=True, timeout=60)
    monkeypatch.setenv("LD_PRELOAD", str(library))


def test_this_build_is_sound_and_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert selftest.fault("cpu") == ""
    assert files.read_cache(selftest.CACHE) == {f"cpu {build.fingerprint()}": dict.fromkeys(selftest.PARTS, "")}
    selftest.TESTED.clear()  # another process
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    assert selftest.fault("cpu") == ""


def test_another_build_driver_or_choice_of_gpus_is_asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "VULKAN_DRIVERS", (tmp_path,))
    known = {build.fingerprint()}
    for change in (
        lambda: monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0"),
        lambda: monkeypatch.setenv("GGML_VK_DISABLE_F16", "1"),
        lambda: monkeypatch.setenv("VK_ICD_FILENAMES", "/opt/other/lvp_icd.json"),
        lambda: (tmp_path / "lvp_icd.json").write_text("{}"),
        lambda: monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path)),
    ):
        change()
        assert build.fingerprint() not in known
        known.add(build.fingerprint())


@pytest.mark.slow
@pytest.mark.parametrize("kernels", sorted(devices.LIBRARIES.glob("libggml-cpu-*.so")), ids=lambda path: path.stem)
def test_kernels_for_every_cpu_compute_right(kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each module with the others taken away."""
    if not ctypes.CDLL(str(kernels)).ggml_backend_score():
        pytest.skip("this CPU cannot run them")
    for library in devices.LIBRARIES.glob("lib*.so*"):
        if library == kernels or "-cpu-" not in library.name:
            shutil.copy(library, tmp_path)
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    assert selftest.fault("cpu") == ""
    load = "from storyfi_lite.machine import devices; devices.ggml(); print(open('/proc/self/maps').read())"
    mapped = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True, timeout=60).stdout
    assert str(tmp_path / kernels.name) in mapped and str(devices.LIBRARIES) not in mapped


def test_a_gpu_that_had_no_memory_for_the_test_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    full = subprocess.CompletedProcess([], -signal.SIGABRT, "", "CUDA error: out of memory")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: full)
    assert selftest.fault("gpu") == "" and not files.read_cache(selftest.CACHE)


def test_a_full_disk_is_not_blamed_on_the_build() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        found = selftest.fault("cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found.startswith("llama.cpp could not be tested: cannot write") and "TMPDIR=DIRECTORY" in found
    assert "CMAKE_ARGS" not in found and not files.read_cache(selftest.CACHE)


def test_a_gpu_that_fails_in_one_part_is_refused_for_that_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A "GPU" without one: llama.cpp takes the CPU, and the test is the same."""
    preload(tmp_path, monkeypatch, "experts")
    asked = ["Q4_1", "experts in Q4_1", "Q8_0"]
    assert selftest.wrong("gpu", asked) == {"experts in Q4_1": "crashed (SIGILL)"}
    assert selftest.fault("gpu") == ""
    assert selftest.noted("gpu") == {"F16": "", "Q4_1": "", "Q8_0": "", "experts in Q4_1": "crashed (SIGILL)"}
    selftest.require("gpu", ["Q4_1", "Q8_0", "F32"])
    with pytest.raises(ConfigError, match=r"crashed \(SIGILL\) .* with experts in Q4_1(.|\n)*storyfi-lite doctor"):
        selftest.require("gpu", asked)
    monkeypatch.delenv("LD_PRELOAD")  # another driver, which the fingerprint does not show
    selftest.TESTED.clear()
    assert selftest.wrong("gpu", asked), "asked again"
    selftest.TESTED.clear()
    selftest.ask_again()
    assert selftest.wrong("gpu", asked) == {}


def test_a_file_that_the_gpu_cannot_compute_goes_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preload(tmp_path, monkeypatch, "experts")
    gpu = Gpu("a card", 8 << 30, 8 << 30, 100.0, index=0)
    hardware = Hardware((gpu,), 16 << 30, 16 << 30, 2, 100 << 30, cpu_bandwidth_gb_s=20.0)
    notes: list[str] = []
    opener = LocalOpener(Notices(lambda *_: None, notes.append), hardware=hardware)
    layers = {}
    for part in ("Q4_1", "experts in Q4_1"):
        path = tmp_path / f"{part}.gguf"
        reference.make_model(path, part)
        layers[part] = opener.find(ModelOptions(path=path, n_ctx=512)).placement.settings.n_gpu_layers
    assert layers == {"Q4_1": 2, "experts in Q4_1": 0}
    assert notes[0] == "testing llama.cpp on the GPU, once: Q4_1"
    assert notes[-1].startswith("llama.cpp crashed (SIGILL) on this machine's GPU with experts in Q4_1")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("crash", "crashed (SIGILL)"),
        ("abort", "crashed (SIGABRT: ggml.c:1: no kernel) in its self-test"),
        ("wrong", "computed wrong (numbers 100% off)"),
        ("refused", "failed (llama_model_load: error loading model: "),
    ],
)
def test_a_bad_build_is_named_with_what_mends_it(
    how: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preload(tmp_path, monkeypatch, how)
    what, mend = selftest.fault("cpu").splitlines()
    assert said in what and "CPU" in what
    assert mend.strip().startswith('CMAKE_ARGS="-DGGML_CPU_ALL_VARIANTS=off" ')
    assert not files.read_cache(selftest.CACHE), "a failure must be asked again"


def test_a_command_refuses_a_build_that_would_crash_under_it(
    small_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preload(tmp_path, monkeypatch, "crash")
    command = [sys.executable, "-m", "storyfi_lite", "generate", "--model.path", str(small_model_path), "a lighthouse"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.count("error:") == 1 and "crashed (SIGILL) in its self-test" in done.stderr
    assert "Traceback" not in done.stderr
