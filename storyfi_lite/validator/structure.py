"""Scores the structure of an answer, 40 points by task, and finds each task's prose. Pure.

An answer may break the schema in any way: what is not of the right kind counts as missing. Lengths are those of the visible text.
The bounds are the task's own (tasks/), so that generating, checking and scoring cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from storyfi_lite.grammar.schema import dump
from storyfi_lite.protocol.limits import CHAPTER_COUNT
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.tasks import blueprint
from storyfi_lite.tasks.chapters import CHOICE_COUNT, CONTENT
from storyfi_lite.tasks.characters import IDS
from storyfi_lite.tasks.story_arc import ACTS
from storyfi_lite.validator.text import fold, strings, visible

MIN_RELATIONSHIPS = 2
_CHARACTER_FIELDS = ("name", "archetype", "background", "motivation", "skills", "personality_traits")
_BLUEPRINT: dict[str, Any] = dict(blueprint.SCHEMA.fields)


@dataclass(frozen=True)
class Part:
    """Holds one part of a score: `points` of at most `of`, and what was seen."""

    name: str
    points: float
    of: float
    saw: str


def prose(task: str, data: dict[str, Any], limit_chars: int) -> list[str]:
    """Return the answer's longer texts, which have sentences to look at."""
    if task == "blueprint":
        found = [data.get("setting"), data.get("core_conflict")]
    elif task == "characters":
        found = [one.get(key) for one in _objects(data, "characters") for key in ("background", "motivation")]
    elif task == "story_arc":
        found = [data.get("description"), *(one.get("description") for one in _objects(data, "chapters"))]
    else:
        found = [one.get("content") for one in _objects(data, "chapters")]
    return list(strings([text for text in found if isinstance(text, str)], limit_chars))


def _blueprint(request: StoryRequest, data: dict[str, Any]) -> tuple[Part, ...]:
    there = [name for name in _BLUEPRINT if _filled(data.get(name))]
    setting, conflict = _length(data.get("setting")), _length(data.get("core_conflict"))
    themes = {fold(theme).strip() for theme in _list(data.get("themes")) if isinstance(theme, str)} - {""}
    fits = [_band(size, *_BLUEPRINT[name].accept) for name, size in (("setting", setting), ("core_conflict", conflict))]
    return (
        Part("fields", 20 * len(there) / len(_BLUEPRINT), 20, f"{len(there)} of {len(_BLUEPRINT)}"),
        Part("lengths", 5 * sum(fits), 10, f"setting {setting:,}, core_conflict {conflict:,} visible characters"),
        Part("themes", 10 * _band(len(themes), *_BLUEPRINT["themes"].accept), 10, f"{len(themes)} different themes"),
    )


def _characters(request: StoryRequest, data: dict[str, Any]) -> tuple[Part, ...]:
    by_id = {one["id"]: one for one in reversed(_objects(data, "characters")) if one.get("id") in IDS}
    extra = max(0, len(_list(data.get("characters"))) - len(IDS))
    complete = sum(_filled(one.get(field)) for one in by_id.values() for field in _CHARACTER_FIELDS)
    ties = {id: one["relationships"] for id, one in by_id.items() if isinstance(one.get("relationships"), dict)}
    others = [sum(_filled(tie.get(other)) for other in IDS if other != id) for id, tie in ties.items()]
    tied = sum(count >= MIN_RELATIONSHIPS for count in others)
    fields = len(IDS) * len(_CHARACTER_FIELDS)
    return (
        Part("five", 20 * _share(len(by_id) - extra, len(IDS)), 20, f"{len(by_id)} of the five, {extra} too many"),
        Part("complete", 10 * _share(complete, fields), 10, f"{complete} of {fields} fields"),
        Part("relationships", 10 * _share(tied, len(IDS)), 10, f"{tied} characters tied to two others"),
    )


def _story_arc(request: StoryRequest, data: dict[str, Any]) -> tuple[Part, ...]:
    chapters = _objects(data, "chapters")
    good = sum(
        one.get("id") == at and _filled(one.get("title")) and _filled(one.get("description"))
        for at, one in enumerate(chapters[:CHAPTER_COUNT], 1)
    )
    extra = max(0, len(_list(data.get("chapters"))) - CHAPTER_COUNT)
    progress = [one["storyProgress"] for one in chapters if type(one.get("storyProgress")) in (int, float)]
    steps = sum(after > before for before, after in pairwise(progress))
    ends = (0.05 <= progress[0] <= 0.10) + (0.95 <= progress[-1] <= 1.0) if progress else 0
    arcs = data.get("arcs")
    acts = [arcs.get(name) for name in ACTS] if isinstance(arcs, dict) else []
    named = [_list(act.get("chapters")) for act in acts if isinstance(act, dict)]
    whole = sum(len(ids) == 3 and all(type(id) is int and 1 <= id <= CHAPTER_COUNT for id in ids) for ids in named)
    wanted = CHAPTER_COUNT - 1 + 2
    return (
        Part("twelve", 20 * _share(good - extra, CHAPTER_COUNT), 20, f"{good} of twelve chapters, {extra} too many"),
        Part("progress", 10 * _share(steps + ends, wanted), 10, f"{steps} of 11 steps rise, {ends} of 2 ends fit"),
        Part("acts", 10 * _share(whole, len(ACTS)), 10, f"{whole} of four acts with three chapters"),
    )


def _chapters(request: StoryRequest, data: dict[str, Any]) -> tuple[Part, ...]:
    ids = request.chapter_ids or []
    by_id = {one["id"]: one for one in reversed(_objects(data, "chapters")) if type(one.get("id")) is int}
    by_id = {id: by_id[id] for id in ids if id in by_id}
    lengths = [_length(one.get("content")) for one in by_id.values()]
    choices = [_objects(one, "choices") for one in by_id.values()]
    worded = [[one for one in some if _filled(one.get("text"))] for some in choices]
    apart = [
        len({fold(dump(one["consequences"])) for one in some if _filled(one.get("consequences"))}) for some in choices
    ]
    fit = sum(_band(size, CONTENT.min_chars, CONTENT.max_chars) for size in lengths)
    offered = sum(_band(len(some), *CHOICE_COUNT) for some in worded)
    different = sum(_share(count, max(CHOICE_COUNT[0], len(some))) for count, some in zip(apart, choices, strict=True))
    return (
        Part(
            "length", 20 * _share(fit, len(ids)), 20, f"{len(lengths)} of {len(ids)} chapters, visible: {lengths[:12]}"
        ),
        Part("choices", 10 * _share(offered, len(ids)), 10, f"choices: {[len(some) for some in worded][:12]}"),
        Part("consequences", 10 * _share(different, len(ids)), 10, f"different consequences: {apart[:12]}"),
    )


# by task, what scores its three parts, 40 points together
STRUCTURE: dict[str, Callable[[StoryRequest, dict[str, Any]], tuple[Part, ...]]] = {
    "blueprint": _blueprint,
    "characters": _characters,
    "story_arc": _story_arc,
    "chapters": _chapters,
}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [one for one in _list(data.get(key)) if isinstance(one, dict)]


def _filled(value: Any) -> bool:
    """Return whether the value holds visible text, itself or in a list or object."""
    return any(visible(text).strip() for text in strings(value, 100_000))


def _length(value: Any) -> int:
    return len(visible(value)) if isinstance(value, str) else 0


def _band(size: int, low: int, high: int) -> float:
    """Return 1 from `low` to `high`, less in proportion below, and above less until it is 0 at twice `high`."""
    return size / low if size < low else max(0.0, min(1.0, 2 - size / high))


def _share(part: float, whole: int) -> float:
    return max(0.0, min(1.0, part / whole)) if whole else 0.0
