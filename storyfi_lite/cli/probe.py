"""`storyfi-lite probe` shows what this machine has, and whether llama.cpp can use it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from storyfi_lite.cli.options import json_option

if TYPE_CHECKING:
    from storyfi_lite.machine.hardware import Hardware


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Show GPUs, memory, cores and disk, and whether llama.cpp is built for them. Changes nothing.

    Exit code 78 if a GPU lies idle because of llama.cpp's build.

    \b
    storyfi-lite probe
    storyfi-lite probe --json | jq '.gpus[0].free_bytes'
    """
    from storyfi_lite.cli.table import say
    from storyfi_lite.errors import ConfigError
    from storyfi_lite.machine.hardware import probe

    machine = probe()
    if as_json:
        click.echo(json.dumps(asdict(machine)))
    else:
        for name, value in _rows(machine):
            say(f"{name:<12} {value}", 13)
    if machine.fault:
        raise ConfigError(machine.fault)


def _rows(machine: Hardware) -> list[tuple[str, str]]:
    from storyfi_lite.machine.gpus import in_words

    rows = []
    for gpu in machine.gpus:
        bandwidth = in_words(gpu.bandwidth_gb_s) if gpu.bandwidth_gb_s else "bandwidth not known"
        memory = f"{gpu.free_bytes / 2**30:.1f} of {gpu.total_bytes / 2**30:.1f} GiB free"
        memory = memory if gpu.total_bytes else "memory not known"
        capability = f", compute {gpu.compute_capability}" if gpu.compute_capability else ""
        rows.append((f"GPU {gpu.index}", f"{gpu.name}{capability}, {memory}, {bandwidth}"))
        rows += [("", f"held by {holder}") for holder in gpu.holders]
    if not machine.gpus:
        rows.append(("GPU", "none that a driver shows"))
    build = {None: "not installed", True: "built for GPUs", False: "built for the CPU only"}[machine.llama_gpu_build]
    rows += [
        ("driver", machine.driver or "none"),
        ("llama.cpp", "; ".join([build, *machine.llama_devices])),
        ("RAM", f"{machine.ram_available_bytes / 2**30:.1f} of {machine.ram_total_bytes / 2**30:.1f} GiB available"),
        ("cores", str(machine.physical_cores)),
        *(("hint", hint) for hint in machine.hints),
        ("disk", f"{machine.disk_free_bytes / 2**30:.1f} GiB free where models live"),
    ]
    return rows
