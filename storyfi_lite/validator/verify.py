"""Checks whether a response is a valid answer to a request, without llama.cpp, in bounded time for any input.

It trusts no field that it can derive: the answer is read from its own bytes, the grammar's hash and the prompt's version are
computed here, `generation_time` is never read (the caller times the call), and nothing is concluded from the claims
`miner_mode`, `model_name` and `gpu_memory_gb`. Whether the claimed model wrote the answer, and whether the tokens spell the
text, needs the model's file: proof.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from storyfi_lite import tasks
from storyfi_lite.engine.settings import SAMPLER, SamplingParams
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar import Constraint
from storyfi_lite.grammar.check import REMARKS, Check, Report, parse_json
from storyfi_lite.protocol.limits import CHAPTER_COUNT
from storyfi_lite.protocol.messages import ProofHeader, StoryRequest, StoryResponse, parse_response
from storyfi_lite.validator.text import strings, visible

MAX_RESPONSE_BYTES = 4_000_000  # text and data of 1 MB each, tokens, header
MAX_TEXT_CHARS, MAX_TEXT_CHARS_A_CHAPTER = 20_000, 5_000  # twice what the longest valid answers that were seen hold
MAX_REPLAY_TOKENS = 8_192  # a chapter, or all of another answer; a validator's time is not the miner's to spend
MAX_HIDDEN_SHARE = 0.05  # Persian writes one joiner in some thirty characters; prose, a blank line in a hundred
_MAX_TOKEN_ID = 2**31 - 1
_SHA256 = re.compile("[0-9a-f]{64}")

# A miner that chose its own could make unlikely tokens likely: only answers with the published ones are proven.
sampling = attrgetter("temperature", "min_p", "dry_multiplier", "dry_base", "dry_allowed_length")
_PUBLISHED = sampling(SamplingParams(seed=0))

# These cost points, not the whole score: the answer can be read, and breaks the task's rules.
RULES = ("schema", "rules", "visible")


@dataclass(frozen=True)
class Verification(Report):
    """Holds the checks of one answer. `data`: the parsed answer, None if it cannot be read. `response`: the typed response; None
    for a bare story and for bytes that cannot be read."""

    task: str | None = None
    response: StoryResponse | None = None

    @property
    def readable(self) -> bool:
        """Return whether the answer is one JSON object that can be scored, valid or not."""
        return self.data is not None and all(check.ok for check in self.checks if check.name not in REMARKS + RULES)

    @property
    def provable(self) -> bool:
        """Return whether the answer can be replayed: it is canonical, with tokens and a header that fits the request."""
        return self.canonical and any(check.name == "proof" and check.ok for check in self.checks)


def verify(request: StoryRequest, answer: StoryResponse | bytes, strict: bool = False) -> Verification:
    """Check a response, bytes or typed, against its request; `strict` as in `verify_text`. A bad answer never raises; BadInput
    means that the request itself lacks what its task needs."""
    constraint = tasks.get(request.task_type).constraint(request)
    if isinstance(answer, bytes):
        try:
            answer = parse_response(_parse(answer))
        except BadInput as error:
            return _refused(str(error), request.task_type)
    return _verify_response(request, constraint, answer, strict)


def verify_text(raw: bytes, task: str | None = None, strict: bool = False) -> Verification:
    """Check a story's JSON, or a whole response's, without its request. If no task is given, it is told from the fields. With
    `strict`, the bounds are those that this project writes, not the wider ones that a validator accepts."""
    try:
        data = _parse(raw)
        response = parse_response(data) if "output_data" in data else None
    except BadInput as error:
        return _refused(str(error), task)
    story = data if response is None else response.output_data
    task = task or task_of(story)
    if task is None:
        return _refused("the fields are those of no task; name it with --task", task)
    # a request is made up for it; chapters are checked for the ids that the story itself names
    chapters = story["chapters"] if isinstance(story.get("chapters"), list) else []
    named = [chapter.get("id") for chapter in chapters if isinstance(chapter, dict)]
    ids = list(dict.fromkeys(id for id in named if type(id) is int and 1 <= id <= CHAPTER_COUNT))
    stages: dict[str, Any] = {"blueprint": {}, "characters": {}, "story_arc": {}, "chapter_ids": ids or [1]}
    request = StoryRequest.model_validate({"task_type": task, "user_input": "-", **stages})
    constraint = tasks.get(task).constraint(request)
    if response is not None:
        return _verify_response(request, constraint, response, strict)
    report = constraint.check(raw.strip(b" \t\r\n"), strict)
    return Verification((*report.checks, _size(request, story), _visible(story)), report.data, task)


def task_of(data: dict[str, Any]) -> str | None:
    """Tell which task this answers by the fields that only that task has; None if by none."""
    if "setting" in data or "core_conflict" in data:
        return "blueprint"
    if "arcs" in data or "hooks" in data:
        return "story_arc"
    if "characters" in data:
        return "characters"
    return "chapters" if "chapters" in data else None


def _parse(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object of a bounded size, strictly. Raises BadInput."""
    if len(raw) > MAX_RESPONSE_BYTES:
        raise BadInput(f"more than {MAX_RESPONSE_BYTES:,} bytes")
    data = parse_json(raw.strip(b" \t\r\n"))
    if not isinstance(data, dict):
        raise BadInput("not a JSON object")
    return data


def _verify_response(
    request: StoryRequest, constraint: Constraint, response: StoryResponse, strict: bool = False
) -> Verification:
    """Check `output_text` if there is one, else the canonical spelling of `output_data`."""
    text, data = response.output_text, response.output_data
    report = constraint.check_data(data, strict) if text is None else constraint.check(text, strict)
    checks = [*report.checks]
    if text is not None and report.data is not None:
        same = is_same(report.data, data)
        checks.append(Check("data", same, f"output_text and output_data {'are the same' if same else 'differ'}"))
    if report.data is not None:
        checks += [_size(request, report.data), _visible(report.data)]
    if response.tokens is not None:
        checks.append(_tokens(response.tokens, text))
    if response.proof is not None:
        checks.append(_proof(request, response, response.proof))
    return Verification(tuple(checks), report.data, request.task_type, response)


def is_same(said: dict[str, Any], given: dict[str, Any]) -> bool:
    """Compare two objects as JSON texts, because to Python true equals 1."""
    try:
        return json.dumps(said, sort_keys=True) == json.dumps(given, sort_keys=True)
    except (ValueError, TypeError, RecursionError):  # of a typed response, which nobody parsed
        return False


def _size(request: StoryRequest, data: dict[str, Any]) -> Check:
    """Bound the text: a miner could hide a copy in endless text, and fill the validator's database."""
    size = sum(map(len, strings(data, MAX_RESPONSE_BYTES)))
    most = max(MAX_TEXT_CHARS, MAX_TEXT_CHARS_A_CHAPTER * len(request.chapter_ids or ()))
    over = "" if size <= most else f"; at most {most:,} are read"
    return Check("size", not over, f"{size:,} characters of text{over}")


def _visible(data: dict[str, Any]) -> Check:
    """Bound the share of invisible characters: they would be a cheap way to reach the asked lengths."""
    text = "\0".join(strings(data, MAX_RESPONSE_BYTES))
    share = 1 - len(visible(text)) / len(text) if text else 0.0
    return Check("visible", share <= MAX_HIDDEN_SHARE, f"{share:.0%} of the text is invisible or repeated white space")


def _tokens(tokens: list[int], text: str | None) -> Check:
    """Check the token ids' number and range: each spells at least one byte. Only the proof can check that they spell the text."""
    if text is None:
        return Check("tokens", False, "token ids without the text that they spell")
    most = len(text.encode(errors="replace"))
    ok = 0 < len(tokens) <= most and min(tokens) >= 0 and max(tokens) <= _MAX_TOKEN_ID
    wrong = "" if ok else f" out of range, or more than {most:,} bytes need"
    return Check("tokens", ok, f"{len(tokens):,} token ids{wrong}")


def _proof(request: StoryRequest, response: StoryResponse, header: ProofHeader) -> Check:
    """Check the header's shape, and each of its fields that follows from the request and the answer."""
    task = tasks.get(request.task_type)
    count = len(response.tokens or ())
    most = MAX_REPLAY_TOKENS * max(1, len(request.chapter_ids or ()))
    wrong = {
        "there are no tokens": not count,
        "a hash is not 64 hex digits": not all(map(_SHA256.fullmatch, (header.model_sha256, header.prompt_sha256))),
        "the grammar is not this task's": task.constraint_named(request, header.grammar_sha256) is None,
        "the prompt's version is not this task's": header.prompt_version != task.script(request).version,
        "the sampler is not the published one": header.sampler != SAMPLER,
        "the sampling parameters are not the published ones": sampling(header) != _PUBLISHED,
        "the seed is not the request's": request.seed is not None and header.seed != request.seed,
        "the budget is over the request's": request.max_tokens is not None and header.max_tokens > request.max_tokens,
        "there are more tokens than the budget": count > header.max_tokens,
        f"there are more than {most:,} tokens": count > most,
    }
    found = [problem for problem, is_wrong in wrong.items() if is_wrong]
    return Check("proof", not found, "; ".join(found) or "the header fits the request; the replay decides")


def _refused(detail: str, task: str | None) -> Verification:
    return Verification((Check("json", False, detail),), task=task)
