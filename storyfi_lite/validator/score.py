"""Scores one answer, 0 to 100: technical 30, structure 40, content 30 (docs/scoring.md). Pure, deterministic.

The content part's measures are lexical. They turn away what is off topic, broken, looping or copied. They rank nothing: no
published lexical measure agrees with readers on which of two outlines is better.

An answer has 0 in all if it cannot be read as one JSON object with one meaning, or is a near-copy (copies.py). Stricter than
the network: an answer whose schema part is 0 gets no points for speed, or `{}` would earn a fifth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from storyfi_lite.protocol.limits import FULL_MARKS_S, NO_MARKS_S
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator.copies import COMPARED_CHARS, PASSAGE_SHARE, UNCOMPARED, Likeness
from storyfi_lite.validator.readable import Reading
from storyfi_lite.validator.structure import STRUCTURE, Part, prose
from storyfi_lite.validator.text import (
    PASSAGE_SYMBOLS,
    SEPARATOR,
    falling,
    fold,
    passages,
    same_language_share,
    sentence_lengths,
    strings,
    terms,
)
from storyfi_lite.validator.verify import RULES, Verification, verify

# Relevance: full marks for naming this share of a source's terms, or this many; an honest answer names more.
_TERM_SHARE = 0.4
_TERM_COUNT = 8
# What stands in the request word for word is an echo: up to the first share no harm, at the second no relevance.
_ECHO_FREE, _ECHO_ALL = 0.2, 0.6
# Prose repeats hardly any passage, and a hundred words in a row hold some sixty different ones.
_REPEAT_FREE, _REPEAT_ALL = 0.1, 0.4
_VARIETY_NONE, _VARIETY_FULL = 0.2, 0.4
_LANGUAGE_NONE, _LANGUAGE_FULL = 0.4, 0.8
_SHARED_FREE = 0.1  # passages that stand in another answer: stock phrases


@dataclass(frozen=True)
class Context:
    """Holds what the validator knows of the call. `elapsed_s`: from sending the request to the answer's last byte, by the
    validator's clock; the answer's own `generation_time` is never used."""

    request: StoryRequest
    elapsed_s: float


@dataclass(frozen=True)
class Score:
    """Holds a score. `total`: 0 to 100 with two decimals; `zeroed`: why it is 0, if it is, while `parts` still show what was
    seen."""

    total: float
    parts: tuple[Part, ...]
    zeroed: str | None = None

    def __str__(self) -> str:
        lines = [f"{part.points:5.1f} of {part.of:>2g}  {part.name:<14} {part.saw}" for part in self.parts]
        return "\n".join([f"{self.total:.1f} of 100{f': {self.zeroed}' if self.zeroed else ''}", *lines])


def score(response: StoryResponse | bytes | Verification, context: Context, history: Likeness = UNCOMPARED) -> Score:
    """Score one answer. `history` is what copies.CopyIndex found of it.

    >>> from storyfi_lite.protocol.messages import StoryRequest
    >>> request = StoryRequest(task_type="blueprint", user_input="a lighthouse keeper who hears the sea speak")
    >>> print(score(b'{"output_data": NaN}', Context(request, elapsed_s=12.0)))
    0.0 of 100: not an answer: NaN is not JSON
    """
    seen = response if isinstance(response, Verification) else verify(context.request, response)
    if not seen.readable or seen.data is None:
        return Score(0.0, (), f"not an answer: {'; '.join(seen.problems[:3])}")
    structure = STRUCTURE[context.request.task_type](context.request, seen.data)
    technical = _technical(seen, context.elapsed_s, sum(part.points / part.of for part in structure) / len(structure))
    parts = (*technical, *structure, *_content(context.request, seen.data, history))
    if history.copy_of is not None:
        return Score(0.0, parts, f"a near-copy: {history.saw}")
    return Score(round(sum(part.points for part in parts), 2), parts)


def time_points(elapsed_s: float) -> float:
    """Return the points for time, 0 to 10: all up to FULL_MARKS_S, none from NO_MARKS_S on, a line between."""
    return 10 * falling(elapsed_s, FULL_MARKS_S, NO_MARKS_S)


# --- technical ---------------------------------------------------------------------------------------------------


def _technical(seen: Verification, elapsed_s: float, structure: float) -> tuple[Part, ...]:
    """Score reading, schema and time. The schema part loses a point for each problem, and is never better than `structure`, 0 to
    1: what is missing altogether is one problem only."""
    problems = [check.detail for check in seen.checks if not check.ok and check.name in RULES]
    schema = max(0.0, min(10.0 - len(problems), 10 * structure)) if problems else 10.0
    time = time_points(elapsed_s) if schema else 0.0
    return (
        Part("json", 10, 10, "one JSON object"),
        Part("schema", schema, 10, "; ".join(problems[:3]) or "every field is as asked for"),
        Part("time", time, 10, f"{elapsed_s:.1f} s by the validator's clock{'' if schema else ', for no answer'}"),
    )


# --- content -----------------------------------------------------------------------------------------------------


def _content(request: StoryRequest, data: dict[str, Any], history: Likeness) -> tuple[Part, ...]:
    """Score relevance, fluency and originality. Each counts as far as the text is prose, so noise earns nothing by naming the
    topic or by being unlike others."""
    folded = fold(SEPARATOR.join(strings(data, COMPARED_CHARS)))
    own = falling(history.shared, _SHARED_FREE, PASSAGE_SHARE)
    original = own if folded.strip(SEPARATOR + " ") and history.copy_of is None else 0.0
    reading = Reading(prose(request.task_type, data, COMPARED_CHARS))
    kept, faults = reading.worth(request.user_input)
    parts = (
        _relevance(request, folded),
        *_fluency(request, reading),
        Part("originality", 5 * original, 5, history.saw),
    )
    saw = f"; as prose worth {kept:.0%}: {faults}" if faults else ""
    return tuple(replace(part, points=kept * part.points, saw=part.saw + saw) for part in parts)


def _relevance(request: StoryRequest, folded: str) -> Part:
    """Score how far the answer names what the request is about without repeating it: the mean over the user's input and each
    earlier stage."""
    sources = {"user_input": _source(request.user_input)}
    for stage in ("blueprint", "characters", "story_arc"):
        if getattr(request, stage):
            sources[stage] = _source(SEPARATOR.join(strings(getattr(request, stage), COMPARED_CHARS)))
    own, marks, saw = terms(folded), [], []
    for name, source in sources.items():
        asked = source.terms
        named = len(asked & own)
        marks.append(min(1.0, named / min(_TERM_COUNT, _TERM_SHARE * len(asked))) if asked else 1.0)
        saw.append(f"{named} of {len(asked)} terms of {name}")
    hashes = passages(folded)
    given = np.concatenate([source.passages for source in sources.values()])
    echo = float(np.isin(hashes, given).mean()) if len(hashes) else 0.0
    points = 15 * sum(marks) / len(marks) * falling(echo, _ECHO_FREE, _ECHO_ALL)
    return Part("relevance", points if own else 0.0, 15, f"{', '.join(saw)}; {echo:.0%} stands in the request")


@dataclass(frozen=True, eq=False)
class _Source:
    """Holds one text of a request. `passages`: of the text said over and over, so that a short prompt repeated is an echo."""

    terms: frozenset[str]
    passages: npt.NDArray[np.uint64]


@lru_cache(maxsize=16)  # a round's answers share their request
def _source(text: str) -> _Source:
    folded = fold(text)
    return _Source(terms(folded), passages(" ".join([folded] * (2 + PASSAGE_SYMBOLS // max(1, len(text))))))


def _fluency(request: StoryRequest, reading: Reading) -> tuple[Part, ...]:
    """Score sentences of a sane length 3, no loops 4, the request's language 3; an answer without prose gets nothing."""
    if not reading.hashes.size:
        return (Part("fluency", 0.0, 10, "no prose"),)
    lengths = [pair for text in reading.texts for pair in sentence_lengths(text)]
    sane = sum(length for length, most in lengths if length <= most) / max(1, sum(length for length, _ in lengths))
    repeated, varied = reading.repeated, reading.varied
    loops = min(falling(repeated, _REPEAT_FREE, _REPEAT_ALL), falling(varied, _VARIETY_FULL, _VARIETY_NONE))
    share, language = same_language_share(request.user_input, "\n".join(reading.texts))
    spoken = falling(share, _LANGUAGE_FULL, _LANGUAGE_NONE)
    return (
        Part("sentences", 3 * sane, 3, f"{sane:.0%} of the prose in sentences of a readable length"),
        Part("repetition", 4 * loops, 4, f"{repeated:.0%} said before; {varied:.0%} different words in a hundred"),
        Part("language", 3 * spoken, 3, f"{share:.0%} of the letters in the request's script ({language})"),
    )
