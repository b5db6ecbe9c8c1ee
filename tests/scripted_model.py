"""A model that is a script: speaks OpenAI's API on loopback and answers every task validly, after a set time.

For the whole miner where the model must not be what is measured: `mine` with `flags(url)` believes it calls a
vendor. Words in the story's text make single requests fail.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from storyfi_lite import tasks
from storyfi_lite.grammar.schema import dump
from tests import openai_server
from tests.api_server import Script, Step, serve
from tests.stories import example, request_for

MARK = re.compile(r"story-[0-9a-z-]+")


@dataclass
class ScriptedModel:
    """`asked` counts the calls for each story that its text marks as `story-…`. `faults`: mark -> what the server
    does for that story instead of answering, so many times."""

    script: Script
    think_s: float
    faults: dict[str, tuple[Step, int]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def flags(self) -> list[str]:
        return ["--model.name", "gpt-4-turbo", "--api.base-url", self.script.url]

    def answer(self, body: dict[str, Any]) -> Step:
        for seen in (self.script.requests, self.script.headers, self.script.paths):
            seen.clear()  # an hours-long run asks too often to keep all of it
        found = MARK.search(body["messages"][1]["content"])
        mark = found.group() if found else ""
        self.asked[mark] += 1
        step, times = self.faults.get(mark, (None, 0))
        if step is not None and self.asked[mark] <= times:
            return step
        time.sleep(self.think_s)
        return openai_server.text(story_for(body["response_format"]["json_schema"]["schema"]))


def story_for(schema: Mapping[str, Any]) -> str:
    """A valid answer to the task whose schema, in OpenAI's dialect, this is."""
    properties = schema["properties"]
    task = next(name for name, key in _TELLING.items() if key in properties)
    ids = [1]
    if task == "chapters":
        ids = [int(digits) for digits in re.findall(r"\d+", _chapter_ids(properties))]
    return dump(example(tasks.get(task).schema_of(request_for(task, chapter_ids=ids))))


_TELLING = {"blueprint": "setting", "story_arc": "arcs", "characters": "characters", "chapters": "chapters"}


def _chapter_ids(properties: Mapping[str, Any]) -> str:
    items = properties["chapters"]["items"]
    return str(items["properties"]["id"]["description"])


@contextmanager
def scripted_model(think_s: float = 0.3) -> Iterator[ScriptedModel]:
    steps: list[Any] = [None]
    with serve(steps) as script:
        model = ScriptedModel(script, think_s)
        script.steps[0] = model.answer
        yield model
