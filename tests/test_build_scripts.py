"""The scripts that build llama.cpp: what is asked for is what is got. pip and the driver are stand-ins; nothing is compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
# pip as far as the script uses it: "downloads" an empty source, "builds" a wheel that holds the arguments it was built with
PIP = """#!/usr/bin/env bash
set -e
case "$3" in
  download) while [ "$1" != -d ]; do shift; done; cd "$2"; name=llama_cpp_python-0.3.36
    mkdir -p $name/vendor/llama.cpp/ggml/src; touch $name/CMakeLists.txt
    for cpu in x64 zen4 sapphirerapids; do echo "ggml_add_cpu_backend_variant($cpu AMX)"; done >$name/vendor/llama.cpp/ggml/src/CMakeLists.txt
    tar czf $name.tar.gz $name; rm -r $name ;;
  wheel) case "$*" in *--no-cache-dir*) ;; *) exit 9 ;; esac
    while [ "$1" != -w ]; do shift; done
    { echo "$CMAKE_ARGS"; cat "$3/vendor/llama.cpp/ggml/src/CMakeLists.txt"; } >"$2/llama_cpp_python-0.3.36-py3-none-any.whl" ;;
  *) exec PYTHON "$@" ;;
esac
"""
DRIVER = """
#include <string.h>
int cuInit(int f) { return 0; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDriverGetVersion(int *v) { *v = CUDA; return 0; }
int cuDeviceGetName(char *to, int n, int d) { strncpy(to, "NVIDIA L4", n); return 0; }
int cuDeviceGetAttribute(int *v, int what, int d) { *v = what == 75 ? 8 : d ? 6 : 9; return 0; }
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Without an nvcc, whatever this machine has."""
    stand_in = tmp_path / "python"
    stand_in.write_text(PIP.replace("PYTHON", sys.executable))
    stand_in.chmod(0o755)
    given = {"PYTHON": str(stand_in), "STORYFI_LITE_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    return given | {name: os.environ[name] for name in ("HOME", "CC") if name in os.environ}


def built(environment: dict[str, str], **more: str) -> str:
    """What the wheel says of itself."""
    command = ["bash", str(SCRIPTS / "build_llama_wheel")]
    done = subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).read_text()


def test_every_build_gets_what_cmake_args_asks_for(environment: dict[str, str]) -> None:
    plain, vulkan = built(environment), built(environment, CMAKE_ARGS="-DGGML_VULKAN=on")
    assert "VULKAN" not in plain and "-DGGML_VULKAN=on" in vulkan
    assert built(environment) == plain and built(environment, CMAKE_ARGS="-DGGML_VULKAN=on") == vulkan


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="kernels as modules: x86-64 Linux"
)
def test_a_wheel_has_kernels_for_many_cpus_and_no_amx(environment: dict[str, str]) -> None:
    wheel = built(environment)
    assert "-DGGML_CPU_ALL_VARIANTS=on" in wheel and "-DGGML_NATIVE=off" in wheel
    assert "(x64" in wheel and "sapphirerapids" not in wheel


@pytest.mark.parametrize(
    ("cuda", "arguments", "said"),
    [
        ("13000", "-DGGML_CUDA=on '-DCMAKE_CUDA_ARCHITECTURES=86-real;89-real'", "with CUDA 13.0 from PyPI"),
        ("12040", "", "its driver runs CUDA 12.4"),
    ],
)
def test_an_nvidia_gpu_is_built_for(
    cuda: str, arguments: str, said: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "cuda-13.0/nvidia/cu13").mkdir(parents=True)
    (tmp_path / "cuda-13.0/nvidia/cu13/whole").touch()  # fetched before
    compile_driver = ["cc", f"-DCUDA={cuda}", "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(compile_driver, input=DRIVER, text=True, check=True, timeout=60)
    command = [sys.executable, str(SCRIPTS / "choose_build.py"), str(tmp_path)]
    done = subprocess.run(
        command, env=environment | {"LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith(arguments) and ("CUDA=on" in done.stdout) == bool(arguments)
    assert done.stderr.startswith("found NVIDIA L4") and said in done.stderr and done.stderr.count("\n") == 1
