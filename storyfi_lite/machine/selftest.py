"""Tests in a child process whether llama.cpp, as it is built here, computes right on this machine.

A build may crash or compute nonsense (another compiler, another CPU, another driver), and a crash takes the whole program
along. So before a process loads its first model, a child loads small made-up ones (engine/reference.py), one for each part: a type
of weights, in plain matrices or in a mixture's experts. Of a CPU all parts must be sound. Of a GPU only what a file needs is asked,
so that a driver's bug in one part bars it from the files that have it and from no others.

What was found is noted in the cache folder for this build, CPU and driver. A CPU's failure is not, so a mended build is tested anew,
nor is a test that found no memory; what failed on a GPU is asked again by `storyfi-lite doctor`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from typing import Literal

from storyfi_lite import files
from storyfi_lite.errors import ConfigError, DoesNotFit
from storyfi_lite.machine.build import fingerprint, rebuild_command

Where = Literal["cpu", "gpu"]

TYPES = ("F16", "Q4_K", "Q6_K", "Q5_K", "Q8_0", "IQ4_XS", "Q3_K", "Q2_K", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS",
         "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "BF16")  # fmt: skip
EXPERTS = "experts in "
PARTS = (*TYPES, *(EXPERTS + kind for kind in TYPES))
ALWAYS: dict[Where, tuple[str, ...]] = {"cpu": PARTS, "gpu": PARTS[:1]}  # asked whatever the file
TESTED: dict[tuple[Where, str], str] = {}  # in this process: what is wrong with a part, "" if nothing is
CACHE = "selftest-parts.json"
# Of logits, against numpy: 0.05 is usual; one wrong row of sixteen in one matrix makes 0.09 or more.
MAX_ERROR = 0.1
TIMEOUT_S = 180  # a part: a tenth of a second is usual; a machine may be busy, a GPU may compile its kernels first
MEND: dict[Where, str] = {
    "cpu": rebuild_command("-DGGML_CPU_ALL_VARIANTS=off"),  # for any CPU with AVX2: without AMX and AVX-512
    "gpu": rebuild_command("-DGGML_CUDA=off"),
}


def require(where: Where, parts: Collection[str] = ()) -> None:
    """Run the self-test if this build has not passed it on this machine, with these parts too. Raises ConfigError with the command
    that mends it."""
    if found := fault(where):
        raise ConfigError(found)
    for part, why in wrong(where, parts).items():
        raise ConfigError(f"{in_words(part, why)}; run such a file on the CPU, or update the driver and ask again:\n"
                          "  storyfi-lite doctor")  # fmt: skip


def fault(where: Where) -> str:
    """Return what keeps all models from a device and, on the next line, the command that mends it; "" if nothing does."""
    try:
        found = wrong(where, ALWAYS[where])
    except ConfigError as no_place:
        return f"llama.cpp could not be tested: {no_place}"
    for part, why in found.items():
        what = f"llama.cpp {why} in its self-test on this machine's {where.upper()} ({part}); build it another way:"
        return f"{what}\n  {MEND[where]}"
    return ""


def in_words(part: str, why: str) -> str:
    return f"llama.cpp {why} on this machine's GPU with {part}"


def untested(where: Where, parts: Collection[str]) -> list[str]:
    """Return those of the parts that this build was not yet asked on this machine."""
    known = noted(where).keys() | {part for device, part in TESTED if device == where}
    return [part for part in PARTS if part in parts and part not in known]


def wrong(where: Where, parts: Collection[str]) -> dict[str, str]:
    """Test what is untested. Returns what is wrong with each of the parts that is not sound, in a few words. Raises ConfigError if there
    is no place for the test's file."""
    if missing := untested(where, parts):
        found = dict(_ask(where, missing))
        TESTED.update({(where, part): found.get(part) or "" for part in missing})
        lasting = {part: why for part, why in found.items() if why is not None and (where == "gpu" or not why)}
        if lasting:
            files.keep(CACHE, f"{where} {fingerprint()}", {**noted(where), **lasting})
    known = noted(where) | {part: why for (device, part), why in TESTED.items() if device == where}
    return {part: known[part] for part in PARTS if part in parts and known.get(part)}


def noted(where: Where) -> dict[str, str]:
    """Return what earlier processes found of this build on this machine: of each part what is wrong, "" if nothing is."""
    found: dict[str, str] = files.read_cache(CACHE).get(f"{where} {fingerprint()}", {})
    return found


def ask_again() -> None:
    """Test anew what failed on a GPU."""
    before = noted("gpu")
    if failed := [part for part, why in before.items() if why]:
        files.keep(CACHE, f"gpu {fingerprint()}", {part: "" for part in before if part not in failed})
        if not fault("gpu"):
            wrong("gpu", failed)


def _ask(where: Where, parts: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield of each part what went wrong, in a few words; "" if nothing did; None if a GPU had no memory left for a test. After a crash
    another child goes on with the next part of a GPU; of a CPU the first failure tells enough."""
    while parts:
        errors, why = _ask_child(where, parts)
        for part, error in zip(parts, errors, strict=False):
            yield part, "" if error <= MAX_ERROR else f"computed wrong (numbers {error:.0%} off)"
        if len(errors) == len(parts):
            return
        yield parts[len(errors)], why
        if why is None or where == "cpu":
            return
        parts = parts[len(errors) + 1 :]


def _ask_child(where: Where, parts: list[str]) -> tuple[list[float], str | None]:
    """Return the errors of the first parts, in order, and what went wrong with the next one if these are not all. Raises ConfigError if
    there is no place for the test's file."""
    command = [sys.executable, "-m", "storyfi_lite.engine.reference", where, *parts]
    timeout_s = TIMEOUT_S * (1 if where == "cpu" else len(parts))
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # its threads and llama.cpp's would wait for each other
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, env=environment
        )
    except subprocess.TimeoutExpired as late:
        told = late.stdout or b""
        return _errors(told.decode() if isinstance(told, bytes) else told), f"gave no answer in {timeout_s} s"
    errors = _errors(child.stdout)
    if child.returncode == DoesNotFit.exit_code or "out of memory" in child.stderr:
        return errors, None
    said = child.stderr.strip().splitlines()
    if child.returncode < 0:
        why = said[:1]  # what ggml says before the functions that it was in
        return errors, f"crashed ({': '.join([signal.Signals(-child.returncode).name, *why])})"
    reason = (said or ["no reason given"])[-1]
    if child.returncode == os.EX_IOERR:
        raise ConfigError(reason)
    return errors, f"failed ({reason})"


def _errors(told: str) -> list[float]:
    return [float(line) for line in told.splitlines()]


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
