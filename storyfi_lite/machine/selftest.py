"""Tests in a child process whether llama.cpp, as it is built here, computes right on this machine.

A build may crash or compute nonsense (another compiler, another CPU, another driver), and a crash takes the whole program
along. So before a process loads its first model, a child loads a small made-up one (engine/reference.py). A success is noted
in the cache folder for this build, CPU and driver; a failure is not, so a mended build is tested anew; nor is a test that found
no memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Literal

from storyfi_lite import files
from storyfi_lite.errors import ConfigError, DoesNotFit
from storyfi_lite.machine.build import fingerprint, rebuild_command

Where = Literal["cpu", "gpu"]

SOUND: set[str] = set()  # what has passed in this process
# Of logits, against numpy: 0.03 is usual; one wrong row of sixteen in one matrix makes 0.09 or more.
MAX_ERROR = 0.1
TIMEOUT_S = 300  # one or two seconds are usual; a machine may be busy, a GPU may compile its kernels first
MEND: dict[Where, str] = {
    "cpu": rebuild_command("-DGGML_CPU_ALL_VARIANTS=off"),  # for any CPU with AVX2: without AMX and AVX-512
    "gpu": rebuild_command("-DGGML_CUDA=off"),
}


def require(where: Where) -> None:
    """Run the self-test if this build has not passed it on this machine. Raises ConfigError with the command that mends it."""
    if found := fault(where):
        raise ConfigError(found)


def fault(where: Where) -> str:
    """Return what is wrong and, on the next line, the command that mends it; "" if nothing is wrong."""
    if where in SOUND:
        return ""
    build = f"{where} {fingerprint()}"
    if build not in files.read_cache("selftest.json"):
        try:
            wrong = _ask_child(where)
        except ConfigError as no_place:
            return f"llama.cpp could not be tested: {no_place}"
        if wrong:
            what = f"llama.cpp {wrong} in its self-test on this machine's {where.upper()}; build it another way:"
            return f"{what}\n  {MEND[where]}"
        if wrong is not None:
            files.keep("selftest.json", build, "passed")
    SOUND.add(where)
    return ""


def _ask_child(where: Where) -> str | None:
    """Return what went wrong, in a few words; "" if nothing did; None if a GPU had no memory left for a test. Raises
    ConfigError if there is no place for the test's file."""
    command = [sys.executable, "-m", "storyfi_lite.engine.reference", where]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"gave no answer in {TIMEOUT_S} s"
    if child.returncode == DoesNotFit.exit_code or "out of memory" in child.stderr:
        return None
    said = child.stderr.strip().splitlines()
    if child.returncode < 0:
        why = said[:1]  # what ggml says before the functions that it was in
        return f"crashed ({': '.join([signal.Signals(-child.returncode).name, *why])})"
    if child.returncode:
        reason = (said or ["no reason given"])[-1]
        if child.returncode == os.EX_IOERR:
            raise ConfigError(reason)
        return f"failed ({reason})"
    error = float(child.stdout)
    return "" if error <= MAX_ERROR else f"computed wrong (numbers {error:.0%} off)"


def main() -> None:
    """Test a new build: `python -m storyfi_lite.machine.selftest`. Prints what mends it, with exit code 78, if it is not sound."""
    try:
        require("cpu")
        from storyfi_lite.machine import devices

        if devices.gpus():
            require("gpu")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
