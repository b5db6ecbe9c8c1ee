"""Made-up answers of each task, valid and canonical, for tests to use and to break."""

from __future__ import annotations

from typing import Any

from storyfi_lite.grammar.schema import Array, Const, Node, Object, Open, Text, Tuple
from storyfi_lite.protocol.messages import StoryRequest

LETTERS = "The tide keeps what the town forgets, and gives it back by night. "


def example(node: Node, salt: int = 0, longest: bool = False) -> Any:
    """The shortest answer that the schema allows, or the longest; `salt` makes texts differ."""
    if isinstance(node, Text):
        length = node.max_chars if longest else node.min_chars
        text = (LETTERS[salt % 26 :].lstrip() + LETTERS * (length // len(LETTERS) + 1))[:length]
        return f"{text[:-1]}." if node.sentences else text
    if isinstance(node, Const):
        return list(node.value) if isinstance(node.value, tuple) else node.value
    if isinstance(node, Open):
        return example(node.written, salt, longest)
    if isinstance(node, Array):
        count = node.max_items if longest else node.min_items
        return [example(node.item, salt + index, longest) for index in range(count)]
    if isinstance(node, Tuple):
        return [example(item, salt + index, longest) for index, item in enumerate(node.items)]
    assert isinstance(node, Object)
    return {key: example(item, salt + index, longest) for index, (key, item) in enumerate(node.fields)}


def request_for(task: str, user_input: str = "a lighthouse keeper", **fields: Any) -> StoryRequest:
    """A request that carries what the task needs."""
    stages: dict[str, Any] = {
        "blueprint": {"title": "Tide"},
        "characters": {"characters": []},
        "story_arc": {"title": "Tide"},
    }
    given = {"chapter_ids": [1], **stages} if task == "chapters" else {} if task == "blueprint" else stages
    return StoryRequest(task_type=task, user_input=user_input, **{**given, **fields})  # type: ignore[arg-type]
