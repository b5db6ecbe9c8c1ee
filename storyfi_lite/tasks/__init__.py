"""Defines the four tasks, one module each: the schema of an answer and the prompt that asks for it. `get(name)` finds one.

How an answer is scored is not here: validator/ knows the fields of each task too.
"""

from __future__ import annotations

from storyfi_lite.errors import BadInput
from storyfi_lite.tasks.base import Messages, Task
from storyfi_lite.tasks.blueprint import BLUEPRINT
from storyfi_lite.tasks.chapters import CHAPTERS
from storyfi_lite.tasks.characters import CHARACTERS
from storyfi_lite.tasks.story_arc import STORY_ARC

__all__ = ["TASKS", "Messages", "Task", "get"]

TASKS: dict[str, Task] = {task.name: task for task in (BLUEPRINT, CHARACTERS, STORY_ARC, CHAPTERS)}


def get(name: str) -> Task:
    """Return the task of this name. Raises BadInput with the known names."""
    if name not in TASKS:
        raise BadInput(f"no task is named {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]
