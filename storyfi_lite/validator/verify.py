"""Verification: is this response, as bytes, a valid answer? Trusts no field that it can derive. Pure; no llama.cpp.

Whether the claimed model wrote it is another question: see the proof.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from storyfi_lite import tasks
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.check import Check, Report, parse_json
from storyfi_lite.wire.messages import StoryRequest, StoryResponse

MAX_RESPONSE_BYTES = 4_000_000  # text and data of 1 MB each, tokens, header
MAX_TOKENS = 65_536


@dataclass(frozen=True)
class Verification:
    """`canonical`: these are bytes that the grammar writes, so a proof is possible. `data`: the parsed answer."""

    valid: bool
    canonical: bool
    task: str | None
    checks: tuple[Check, ...]
    data: dict[str, Any] | None = None


def verify_text(raw: bytes, task: str | None = None) -> Verification:
    """A story's JSON or a whole response's; the task is told from its fields where it is not given."""
    if len(raw) > MAX_RESPONSE_BYTES:
        return _refused(f"more than {MAX_RESPONSE_BYTES:,} bytes", task)
    try:
        data = parse_json(raw.strip(b" \t\r\n"))
    except BadInput as error:
        return _refused(str(error), task)
    if not isinstance(data, dict):
        return _refused("not a JSON object", task)
    if "output_data" in data:
        return _verify_envelope(data, task)
    task = task or task_of(data)
    if task is None:
        return _refused("the fields are those of no task; name it with --task", task)
    report = _constraint_for(task, data).check(raw.strip(b" \t\r\n"))
    return _verification(task, report, ())


def verify(request: StoryRequest, response: StoryResponse) -> Verification:
    """A typed response against the request that it answers."""
    constraint = tasks.get(request.task_type).constraint(request)
    if response.output_text is None:
        return _verification(request.task_type, constraint.check_data(response.output_data), ())
    return _verification(request.task_type, constraint.check(response.output_text), _fields(response))


def task_of(data: dict[str, Any]) -> str | None:
    """Which task's answer this looks like, by the fields that only that task has."""
    if "setting" in data or "core_conflict" in data:
        return "blueprint"
    if "arcs" in data or "hooks" in data:
        return "story_arc"
    if "characters" in data:
        return "characters"
    return "chapters" if "chapters" in data else None


def _verify_envelope(data: dict[str, Any], task: str | None) -> Verification:
    from pydantic import ValidationError

    try:
        response = StoryResponse.model_validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        return _refused(f"the response's {'.'.join(map(str, first['loc']))}: {first['msg']}", task)
    task = task or task_of(response.output_data)
    if task is None:
        return _refused("the answer's fields are those of no task; name it with --task", task)
    constraint = _constraint_for(task, response.output_data)
    if response.output_text is None:
        return _verification(task, constraint.check_data(response.output_data), ())
    return _verification(task, constraint.check(response.output_text), _fields(response))


def _fields(response: StoryResponse) -> tuple[Check, ...]:
    """What the envelope's fields say of each other."""
    checks = []
    assert response.output_text is not None
    try:
        same = parse_json(response.output_text.encode(errors="replace")) == response.output_data
    except BadInput:
        same = False
    checks.append(
        Check(
            "data",
            same,
            "output_text and output_data are the same" if same else "output_text and output_data differ",
        )
    )
    if response.tokens is not None:
        ok = 0 < len(response.tokens) <= MAX_TOKENS and min(response.tokens) >= 0
        checks.append(Check("tokens", ok, f"{len(response.tokens):,} token ids" if ok else "token ids out of range"))
    return tuple(checks)


def _constraint_for(task: str, data: dict[str, Any]) -> Any:
    """The task's grammar; chapters are checked for the ids that the answer itself names."""
    ids = None
    if task == "chapters":
        chapters = data.get("chapters")
        named = [c.get("id") for c in chapters if isinstance(c, dict)] if isinstance(chapters, list) else []
        valid = [id for id in dict.fromkeys(named) if isinstance(id, int) and 1 <= id <= 12]
        ids = valid or [1]
    stages: dict[str, Any] = {"blueprint": {}, "characters": {}, "story_arc": {}, "chapter_ids": ids or [1]}
    request = StoryRequest.model_validate({"task_type": task, "user_input": "-", **stages})
    return tasks.get(task).constraint(request)


def _verification(task: str, report: Report, more: tuple[Check, ...]) -> Verification:
    valid = report.valid and all(check.ok for check in more)
    return Verification(valid, valid and report.canonical, task, report.checks + more, report.data)


def _refused(detail: str, task: str | None) -> Verification:
    return Verification(False, False, task, (Check("json", False, detail),))
