"""Describes what validators ask and when: the network's figures (traffic.yaml), a file like it, or a miner's own log.

Knows no model and no machine: how long an answer takes is not in it.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, get_args

import yaml

from storyfi_lite.errors import BadInput
from storyfi_lite.protocol.limits import CHAPTER_COUNT
from storyfi_lite.protocol.messages import TaskName
from storyfi_lite.tasks.base import Language

NETWORK = Path(__file__).with_name("traffic.yaml")
TOGETHER_S = 3.0  # requests for the same that are no further apart came together
MAX_TOGETHER = 64
SAMPLE_REQUESTS = 545  # of the network's traffic five hours, 300 groups
MAX_LOG_BYTES = 16 << 20
_MIXES: dict[str, tuple[Any, ...]] = {
    "tasks": get_args(TaskName),
    "languages": get_args(Language),
    "chapters": tuple(range(1, CHAPTER_COUNT + 1)),
    "together": tuple(range(1, MAX_TOGETHER + 1)),
}


@dataclass(frozen=True)
class Kind:
    """Says what is asked for: answers of one kind are about equally long."""

    task: TaskName
    language: Language
    chapters: int = 1


@dataclass(frozen=True)
class Arrival:
    at_s: float  # since the beginning
    kind: Kind


@dataclass(frozen=True)
class Traffic:
    """Holds shares that add up to 1, and `gap_s`, the mean seconds from one group of requests to the next. `log`: the requests of
    a log in their order, where there is one."""

    tasks: Mapping[TaskName, float]
    languages: Mapping[Language, float]
    chapters: Mapping[int, float]
    together: Mapping[int, float]
    gap_s: float
    log: tuple[Arrival, ...] = ()

    @cached_property
    def kinds(self) -> Mapping[Kind, float]:
        """Return each kind that is asked for, with its share."""
        found: dict[Kind, float] = {}
        for task, task_share in self.tasks.items():
            for language, language_share in self.languages.items():
                counts = self.chapters if task == "chapters" else {1: 1.0}
                for chapters, chapters_share in counts.items():
                    share = task_share * language_share * chapters_share
                    if share:
                        found[Kind(task, language, chapters)] = share
        return found

    def arrivals(self, seconds: float, seed: int) -> list[Arrival]:
        """Return the log's requests of the first `seconds`; without a log, as many made up, the same for the same seed."""
        if self.log:
            return [arrival for arrival in self.log if arrival.at_s < seconds]
        return list(chain(*takewhile(lambda group: group[0].at_s < seconds, self._made_up(seed))))

    @cached_property
    def sample(self) -> tuple[Arrival, ...]:
        """Return SAMPLE_REQUESTS requests, made up by the shares: what layouts are compared by."""
        return tuple(islice(chain.from_iterable(self._made_up(0)), SAMPLE_REQUESTS))

    def _made_up(self, seed: int) -> Iterator[list[Arrival]]:
        dice, at_s = random.Random(seed), 0.0
        kinds, counts = list(self.kinds), list(self.together)
        while True:
            at_s += dice.expovariate(1 / self.gap_s)
            kind = dice.choices(kinds, list(self.kinds.values()))[0]
            yield [Arrival(at_s, kind)] * dice.choices(counts, list(self.together.values()))[0]


def read(path: Path) -> Traffic:
    """Read a file like traffic.yaml, or a miner's log. Raises BadInput with what is wrong."""
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            raise BadInput(f"{path} is longer than {MAX_LOG_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    lines = text.splitlines()
    if lines and lines[0].startswith("{") and '"at"' in lines[0]:
        found = sorted(_entries(lines, path), key=lambda entry: entry[0])
        return from_log([Arrival(at - found[0][0], kind) for at, kind in found], path)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is no traffic: {' '.join(str(error).split())}") from None
    wanted = {*_MIXES, "gap_s"}
    if not isinstance(data, dict) or set(data) != wanted:
        raise BadInput(f"{path} is no traffic: it must have {', '.join(sorted(wanted))}, as {NETWORK.name} has")
    mixes: dict[str, Any] = {name: _shares(data[name], name, known, path) for name, known in _MIXES.items()}
    return Traffic(**mixes, gap_s=_number(data["gap_s"], "gap_s", path))


def from_log(arrivals: list[Arrival], path: Path) -> Traffic:
    """Count the shares of a log. Raises BadInput for one with fewer than two groups of requests."""
    groups: list[list[Arrival]] = []
    for arrival in arrivals:
        last = groups[-1][0] if groups else None
        if last and arrival.at_s - last.at_s <= TOGETHER_S and arrival.kind == last.kind:
            groups[-1].append(arrival)
        else:
            groups.append([arrival])
    if len(groups) < 2:
        raise BadInput(f"{path} holds {len(groups)} groups of requests; two are the least to count with")
    one_each = [group[0].kind for group in groups]
    chapters = [kind.chapters for kind in one_each if kind.task == "chapters"] or [1]
    return Traffic(
        tasks=_counted([kind.task for kind in one_each]),
        languages=_counted([kind.language for kind in one_each]),
        chapters=_counted(chapters),
        together=_counted([min(len(group), MAX_TOGETHER) for group in groups]),
        gap_s=max(0.1, (groups[-1][0].at_s - groups[0][0].at_s) / (len(groups) - 1)),
        log=tuple(arrivals),
    )


def _counted(values: list[Any]) -> dict[Any, float]:
    return {value: count / len(values) for value, count in Counter(values).items()}


def _entries(lines: list[str], path: Path) -> Iterator[tuple[float, Kind]]:
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            kind = Kind(entry["task"], entry["language"], entry.get("chapters", 1))
            at = _number(entry["at"], "at", path)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BadInput(f"{path}:{number} is no line of a miner's log") from None
        known = kind.task in _MIXES["tasks"] and kind.language in _MIXES["languages"]
        if not known or kind.chapters not in _MIXES["chapters"]:
            raise BadInput(f"{path}:{number} names a task or language that nobody knows")
        yield at, kind


def _shares(data: Any, name: str, known: tuple[Any, ...], path: Path) -> dict[Any, float]:
    if not isinstance(data, dict) or not data or not set(data) <= set(known):
        raise BadInput(f"{path}: {name} must give shares for some of {', '.join(map(str, known[:12]))}")
    shares = {key: _number(value, name, path, least=0.0) for key, value in data.items()}
    total = sum(shares.values())
    if not math.isclose(total, 1.0, abs_tol=0.01):
        raise BadInput(f"{path}: the shares of {name} add up to {total:g}, not to 1")
    return {key: value / total for key, value in shares.items()}


def _number(value: Any, name: str, path: Path, least: float = 1e-3) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e12:
        raise BadInput(f"{path}: {name} must be a number of {least:g} or more, not {value!r}")
    return float(value)
