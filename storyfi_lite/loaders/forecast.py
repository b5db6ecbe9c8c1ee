"""How long an answer takes here, by task and language: told before validators ask, and used to shorten or refuse in time.

The pace comes from a few words in each language (LocalModelLoader.warm_up) and follows the answers since; lengths come from
the task's schema. An estimate (docs/performance.md has it against what was measured): how long a model likes its sentences,
and what a machine writes for others at the same time, is not in it. Pure; runs no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from storyfi_lite import tasks
from storyfi_lite.grammar.schema import Node, Text, pieces
from storyfi_lite.protocol.limits import DEADLINE_S, FULL_MARKS_S
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.tasks.base import Language

LITERAL_CHARS_A_TOKEN = 2.5  # of JSON's own signs and names, which are read like a prompt
# Of the room between the shortest and the longest texts: what is planned for, and what may be hoped for.
USUAL_SHARE, LEAST_SHARE = 0.6, 0.3
_PACE_MEMORY = 0.7
# Requests like the network's: an input, and stubs for the earlier stages.
_STUBS = {"blueprint": {"title": "-"}, "characters": {"characters": []}, "story_arc": {"chapters": [{"id": 1}]}}
EXAMPLES = {
    "English": "A lighthouse keeper hears the sea speak and is asked to let the lamp go dark.",
    "Chinese": "一个关于灯塔守护人的故事，他在退潮的夜里听见大海说话。",
}


@dataclass(frozen=True)
class Pace:
    """Tokens a second of one answer, reading a prompt and writing, and tokens a character of the model's own words in each
    language of the prompts."""

    prompt_tokens_per_s: float
    tokens_per_s: float
    tokens_a_char: Mapping[Language, float]

    def after(self, tokens: int, seconds: float, language: Language, chars: int) -> Pace:
        """With one more answer of so many tokens and characters."""
        a_char = {**self.tokens_a_char, language: _mean(self.tokens_a_char[language], tokens / chars)}
        return replace(self, tokens_per_s=_mean(self.tokens_per_s, tokens / seconds), tokens_a_char=a_char)


@dataclass(frozen=True)
class Length:
    """Characters of an answer: the shortest texts, the longest, and what stands around them."""

    shortest: int
    longest: int
    literal: int

    @classmethod
    def of(cls, schema: Node) -> Length:
        shortest = longest = literal = 0
        for piece in pieces(schema):
            if isinstance(piece, str):
                literal += len(piece)
            elif isinstance(piece, Text):
                shortest, longest = shortest + piece.min_chars, longest + piece.max_chars
            else:
                item = cls.of(piece.item)
                shortest += piece.min_items * item.shortest
                longest += piece.max_items * item.longest
                literal += piece.min_items * (item.literal + 3)
        return cls(shortest, longest, literal)


def seconds(pace: Pace, prompt_tokens: int, length: Length, share: float, tokens_a_char: float) -> float:
    """For an answer that uses `share` of the room between its shortest and its longest."""
    read = prompt_tokens + length.literal / LITERAL_CHARS_A_TOKEN
    chars = length.shortest + share * (length.longest - length.shortest)
    return read / pace.prompt_tokens_per_s + chars * tokens_a_char / pace.tokens_per_s


def examples() -> Iterator[tuple[str, str, StoryRequest]]:
    """A request of each task in each language that the network asks in, with their names."""
    for name, task in tasks.TASKS.items():
        stages = {stage: _STUBS.get(stage, [1]) for stage in task.needs}
        for language, text in EXAMPLES.items():
            yield name, language, StoryRequest.model_validate({"task_type": name, "user_input": text, **stages})


def _mean(past: float, now: float) -> float:
    return _PACE_MEMORY * past + (1 - _PACE_MEMORY) * now


def in_words(forecasts: dict[str, dict[str, tuple[float, float]]]) -> tuple[list[str], list[str]]:
    """Lines for the operator: how long each task takes, and what of it is late. `forecasts`: task -> language -> seconds of
    a usual answer and of the shortest."""
    lines, late = [], []
    for task, by_language in forecasts.items():
        said = (f"{usual_s:.0f} s in {language}" for language, (usual_s, _) in by_language.items())
        lines.append(f"{task}: about {', '.join(said)}")
        for language, (usual_s, least_s) in by_language.items():
            if least_s > DEADLINE_S:
                late.append(
                    f"{task} in {language} takes {least_s:.0f} s at its shortest and is refused ({DEADLINE_S:.0f} s)"
                )
            elif least_s > FULL_MARKS_S:
                late.append(
                    f"{task} in {language} takes {least_s:.0f} s at its shortest: fewer points from {FULL_MARKS_S:.0f} s"
                )
            elif usual_s > FULL_MARKS_S:
                late.append(f"{task} in {language} is written at its shortest to be in time")
    return lines, late
