"""Reads how much of the machine's memory and cores this process may use: a container's limits, systemd's, `taskset`.

Only Linux tells; elsewhere all of it counts. Source of the file names: cgroups(7), both versions of control groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def memory_bytes() -> tuple[int, int]:
    """Return total and available memory. The file cache of a group counts as available: it is given back before anything fails."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for group in _groups("memory"):
        names = ("memory.max", "memory.high", "memory.limit_in_bytes")
        limit = min((int(text) for name in names if (text := _read(group / name)).isdecimal()), default=total)
        if limit < memory.total:
            used = int(_read(group / "memory.current") or _read(group / "memory.usage_in_bytes") or 0)
            rows = dict(line.split(" ") for line in _read(group / "memory.stat").splitlines() if line.count(" ") == 1)
            cache = sum(int(rows.get(name, 0)) for name in ("active_file", "inactive_file"))
            total, available = min(total, limit), min(available, max(0, limit - used + cache))
    return total, available


def cores() -> int:
    """Return how many physical cores this process may use, at least 1: those that it may run on, or its quota of time if less."""
    count = float(psutil.cpu_count(logical=False) or 1)
    if hasattr(os, "sched_getaffinity"):
        siblings = [_read(Path(_TOPOLOGY.format(cpu))) or str(cpu) for cpu in os.sched_getaffinity(0)]
        count = min(len(set(siblings)), psutil.cpu_count(logical=False) or len(siblings))
    for group in _groups("cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        quota, period = quota or _read(group / "cpu.cfs_quota_us"), period or _read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # "max" and -1: none
            count = min(count, int(quota) / int(period))
    return max(1, int(count))


def _groups(controller: str) -> Iterator[Path]:
    """Yield the directories of this process's group and of those above it. Inside a container the names are often the host's, and
    only the topmost directory is there: it is the container's own."""
    for line in _read(OWN_GROUPS).splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controllers if controllers else GROUPS
        group = root / name.lstrip("/")
        yield from (place for place in (group, *group.parents) if place.is_relative_to(root) and place.is_dir())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
