"""Reads and spells what `generate` and `story` keep: the only place that knows how an answer lies in a file.

A file is one of four things. Each may also stand in a comment at the end of a page or of a Markdown text.
  an answer alone        {"title": …}                         what `generate` prints
  a whole response       {"output_data": …, "request": …}     what `generate --json` prints; a miner's has no `request`
  a story                {"user_input": …, "seed": …, "blueprint": …, …, "chapters": […], "answers": {"blueprint": …, "chapter 1": …}}
  stages, by hand        {"blueprint": …, "characters": …}    what `generate --context` takes
`answers` has of each response what is beside its text: the claim, the tokens, the proof's header.

Nothing is checked here but the shape: whether an answer is valid says validator/verify.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.check import parse_json
from storyfi_lite.grammar.schema import dump
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse, parse_request, parse_response
from storyfi_lite.validator.verify import MAX_RESPONSE_BYTES, task_of

MAX_FILE_BYTES = 4 * MAX_RESPONSE_BYTES  # twelve chapters, and a page around them
STAGES = ("blueprint", "characters", "story_arc")
_COMMENT = b"<!-- storyfi-lite "


@dataclass(frozen=True)
class SavedAnswer:
    """Holds one task's answer. `name`: the task, or "chapter 3". None: the file does not say what was asked, or has the text alone."""

    name: str
    data: dict[str, Any]
    request: StoryRequest | None = None
    response: StoryResponse | None = None


def read_answers(raw: bytes) -> tuple[SavedAnswer, ...]:
    """Read all answers of a file, in the order in which they were written. Raises BadInput."""
    data = _object(raw)
    if is_story(data):
        return _of_story(data)
    if "output_data" not in data:
        return (SavedAnswer(task_of(data) or "answer", data),)
    asked = parse_request(dump(data["request"]).encode()) if "request" in data else None
    response = parse_response(dump(data).encode())
    name = asked.task_type if asked else task_of(response.output_data)
    return (SavedAnswer(name or "answer", response.output_data, asked, response),)


def read_story(raw: bytes) -> tuple[str, int, tuple[SavedAnswer, ...]]:
    """Read the user's input, the seed and the answers of a file that `story` wrote. Raises BadInput."""
    data = _object(raw)
    text, seed = data.get("user_input"), data.get("seed")
    if not is_story(data) or not isinstance(text, str) or type(seed) is not int:
        raise BadInput("not a file that `story` wrote")
    return text, seed, _of_story(data)


def stages_of(answers: Sequence[SavedAnswer]) -> dict[str, Any]:
    """Return the stages that later tasks build on."""
    return {answer.name: answer.data for answer in answers if answer.name in STAGES}


def story_data(user_input: str, seed: int, answers: Sequence[SavedAnswer]) -> dict[str, Any]:
    """Spell a story as one object; `read_story` is its inverse for answers with responses in canonical spelling."""
    chapters = [chapter for answer in answers if answer.name not in STAGES for chapter in answer.data["chapters"]]
    text = {"output_data", "output_text"}
    said = {answer.name: answer.response for answer in answers if answer.response}
    beside = {name: response.model_dump(exclude_none=True, exclude=text) for name, response in said.items()}
    return {
        "user_input": user_input,
        "seed": seed,
        **stages_of(answers),
        **({"chapters": chapters} if chapters else {}),
        "answers": beside,
    }


def response_data(request: StoryRequest, response: StoryResponse) -> dict[str, Any]:
    """Spell a response and what it answers as one object."""
    return {**response.model_dump(exclude_none=True), "request": request.model_dump(exclude_none=True)}


def comment(data: dict[str, Any]) -> str:
    """Spell the comment that carries an object in a page; nothing in it can end it."""
    spelled = dump(data).replace("<", "\\u003c").replace(">", "\\u003e")
    return f"{_COMMENT.decode()}{spelled} -->"


def is_story(data: dict[str, Any]) -> bool:
    return any(isinstance(data.get(stage), dict) for stage in STAGES)


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_FILE_BYTES:
        raise BadInput(f"more than {MAX_FILE_BYTES:,} bytes")
    start = raw.rfind(_COMMENT)
    if start >= 0 and not raw.lstrip().startswith(b"{"):
        raw = raw[start + len(_COMMENT) : raw.find(b" -->", start)]
    data = parse_json(raw.strip(b" \t\r\n"))
    if not isinstance(data, dict):
        raise BadInput("not a JSON object")
    return data


def _of_story(data: dict[str, Any]) -> tuple[SavedAnswer, ...]:
    answers = tuple(_answers(data))
    if len({answer.name for answer in answers}) < len(answers):
        raise BadInput("a chapter stands twice in the story")
    return answers


def _answers(data: dict[str, Any]) -> Iterator[SavedAnswer]:
    beside = data.get("answers", {})
    if not isinstance(beside, dict):
        raise BadInput("the story's `answers` are not an object")
    told: dict[str, Any] = {"user_input": data.get("user_input", "-"), "seed": data.get("seed")}
    for stage in STAGES:
        if stage in data:
            yield _answer(stage, {"task_type": stage, **told}, data[stage], beside)
            told[stage] = data[stage]
    chapters = data.get("chapters", [])
    if not isinstance(chapters, list):
        raise BadInput("the story's `chapters` are not a list")
    for chapter in chapters:
        id = chapter.get("id") if isinstance(chapter, dict) else None
        asked = {"task_type": "chapters", **told, "chapter_ids": [id]}
        yield _answer(f"chapter {id}", asked, {"chapters": [chapter]}, beside)


def _answer(name: str, asked: dict[str, Any], data: Any, beside: dict[str, Any]) -> SavedAnswer:
    if not isinstance(data, dict):
        raise BadInput(f"the story's `{name}` is not an object")
    request = parse_request(dump(asked).encode())
    more = {"output_text": dump(data), **beside[name]} if isinstance(beside.get(name), dict) else {}
    return SavedAnswer(name, data, request, parse_response(dump({**more, "output_data": data}).encode()))
