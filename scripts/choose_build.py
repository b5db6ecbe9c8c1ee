#!/usr/bin/env python3
"""Says for what llama.cpp is to be built on this machine: prints CMake arguments on stdout, one line why on stderr.

    scripts/choose_build.py FOLDER      for CUDA, where there is an NVIDIA GPU with its driver; else for the CPU

The CUDA compiler is the system's, if it is whole and fits driver and cards; else NVIDIA's packages on PyPI are put into
FOLDER, 1.1 GB, which needs no root. The built library goes on using cuBLAS from there. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CUDA = "13.0"  # the first release whose compiler is on PyPI
PACKAGES = f"cuda-toolkit[nvcc,cudart,cublas,cccl]=={CUDA}.*"
MIN_CAPABILITY = 75  # of that release: Turing and later
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute of cuda.h
_PROBE = "#include <cublas_v2.h>\n__global__ void nothing() {}\n"
# PCI vendors whose cards llama.cpp runs through Vulkan
VENDORS = {"0x1002": "AMD", "0x8086": "Intel"}
VULKAN = 'CMAKE_ARGS="-DGGML_VULKAN=on" scripts/setup'


@dataclass(frozen=True)
class Nvidia:
    """What the driver tells. `cuda`: the newest release that it runs, as 13000 for 13.0; `capabilities` as 89 for 8.9."""

    cuda: int
    names: tuple[str, ...]
    capabilities: tuple[int, ...]


def find_nvidia() -> Nvidia | None:
    """Asks the driver's own library: where it cannot be loaded no CUDA program runs, whatever card is there."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, version = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    driver.cuDriverGetVersion(ctypes.byref(version))
    names, capabilities = [], []
    for number in range(count.value):
        name = ctypes.create_string_buffer(128)
        major, minor = ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGetName(name, len(name), number)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, number)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, number)
        names.append(name.value.decode(errors="replace"))
        capabilities.append(10 * major.value + minor.value)
    return Nvidia(version.value, tuple(names), tuple(sorted(set(capabilities))))


def system_compiler(nvidia: Nvidia) -> str | None:
    """The path of an nvcc that has cuBLAS beside it, and makes programs that this driver runs on these cards."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = said.partition("release ")[2].partition(",")[0]
    if not release or int(release.partition(".")[0]) > nvidia.cuda // 1000:
        return None
    cards = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in nvidia.capabilities]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cu"
        source.write_text(_PROBE)
        command = [nvcc, *cards, "-shared", "-Xcompiler=-fPIC", str(source), "-lcublas", "-o", f"{folder}/probe.so"]
        return nvcc if subprocess.run(command, capture_output=True).returncode == 0 else None


def packaged_compiler(folder: Path) -> Path:
    """NVIDIA's packages, laid out as a toolkit: wheels hold no links, and no stand-in for the driver to link with."""
    root = folder / f"cuda-{CUDA}" / "nvidia" / "cu13"
    whole = root / "whole"
    if not whole.exists():
        print(f"fetching the CUDA {CUDA} compiler and cuBLAS from PyPI into {root} (once)", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        subprocess.run([*pip, "--upgrade", "--target", str(root.parents[1]), PACKAGES], check=True, stdout=sys.stderr)
        for library in (root / "lib").glob("lib*.so.*"):
            link = library.with_name(library.name.partition(".so.")[0] + ".so")
            link.unlink(missing_ok=True)
            link.symlink_to(library.name)
        (root / "lib64").unlink(missing_ok=True)
        (root / "lib64").symlink_to("lib")
        stub = root / "lib" / "stubs" / "libcuda.so"
        stub.parent.mkdir(exist_ok=True)
        # one symbol is enough for the linker to note libcuda.so.1; the driver's own has them all
        link_stub = ["cc", "-shared", "-x", "c", "-", "-Wl,-soname,libcuda.so.1", "-o", str(stub)]
        subprocess.run(link_stub, check=True, input=b"int cuMemCreate(void) { return 0; }\n")
        whole.touch()
    return root


def with_compiler(nvcc: Path) -> str:
    """CMake's arguments for it; the built library looks for cuBLAS beside it."""
    libraries = nvcc.resolve().parents[1] / "lib64"
    path = [f"'-DCMAKE_{kind}_LINKER_FLAGS=-Wl,-rpath,{libraries}'" for kind in ("MODULE", "SHARED")]
    return " ".join([f"'-DCMAKE_CUDA_COMPILER={nvcc}'", *path])


def other_cards() -> list[str]:
    """The makers of other cards that this machine shows."""
    found = {path.read_text().strip() for path in Path("/sys/class/drm").glob("card*/device/vendor")}
    return [name for vendor, name in VENDORS.items() if vendor in found]


def choose(folder: Path) -> tuple[str, str]:
    """CMake's arguments, and in one line what was found and chosen."""
    nvidia = find_nvidia()
    if nvidia is None:
        others = "".join(f"; for its {maker} GPU: {VULKAN}" for maker in other_cards())
        return "", f"no NVIDIA GPU with a driver found: llama.cpp for the CPU{others}"
    cards = " and ".join(dict.fromkeys(nvidia.names))
    architectures = ";".join(f"{each}-real" for each in nvidia.capabilities)
    arguments = f"-DGGML_CUDA=on '-DCMAKE_CUDA_ARCHITECTURES={architectures}'"
    if nvcc := system_compiler(nvidia):
        return f"{arguments} {with_compiler(Path(nvcc))}", f"found {cards}: llama.cpp for it with {nvcc}"
    if nvidia.cuda >= 1000 * int(CUDA.partition(".")[0]) and min(nvidia.capabilities) >= MIN_CAPABILITY:
        root = packaged_compiler(folder)
        paths = f"'-DCUDAToolkit_ROOT={root}' {with_compiler(root / 'bin' / 'nvcc')}"
        return f"{arguments} {paths}", f"found {cards}: llama.cpp for it with CUDA {CUDA} from PyPI"
    driver = f"{nvidia.cuda // 1000}.{nvidia.cuda % 1000 // 10}"
    need = f"a driver for CUDA {CUDA} (580 or newer) and a card of the RTX 20 series or later"
    why = f"its driver runs CUDA {driver}, and PyPI's compiler needs {need}; install your release's CUDA toolkit, then scripts/setup"
    return "", f"found {cards}, but no nvcc that fits: {why}. For now llama.cpp for the CPU"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where NVIDIA's packages go")
    arguments, why = choose(options.parse_args().folder)
    print(why, file=sys.stderr)
    print(arguments)


if __name__ == "__main__":
    main()
