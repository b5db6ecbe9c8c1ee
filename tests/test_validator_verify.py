"""Verification of whole responses: what an honest miner sends holds, what a cheat sends does not, nothing breaks it."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from storyfi_lite import tasks
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.schema import dump
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator import Context, score, verify
from storyfi_lite.validator.verify import MAX_RESPONSE_BYTES, verify_text
from tests.answers import ASKED, CHINESE, ENGLISH, as_bytes, blueprint_request, envelope, header
from tests.stories import example, request_for

REQUEST = blueprint_request()


@pytest.mark.parametrize(("asked", "data"), ASKED)
def test_an_honest_answer_holds_as_bytes_and_typed(asked: str, data: dict[str, Any]) -> None:
    request = blueprint_request(asked)
    from_bytes = verify(request, as_bytes(data))
    assert from_bytes.valid and from_bytes.canonical and from_bytes.readable, from_bytes.problems
    assert from_bytes.data == data
    assert from_bytes.response is not None
    assert verify(request, from_bytes.response).checks == from_bytes.checks


@pytest.mark.parametrize("task", list(tasks.TASKS))
@pytest.mark.parametrize("longest", [False, True])
def test_every_task_at_both_ends_of_its_bounds(task: str, longest: bool) -> None:
    request = request_for(task)
    data = example(tasks.get(task).schema_of(request), longest=longest)
    seen = verify(request, as_bytes(data))
    assert seen.valid and seen.canonical, seen.problems


def test_a_peer_of_the_old_protocol_sends_no_text_and_can_still_be_valid() -> None:
    seen = verify(REQUEST, as_bytes(ENGLISH, output_text=None))
    assert seen.valid and not seen.provable


def test_a_pasted_text_with_other_white_space_is_valid_but_can_never_be_proven() -> None:
    text = json.dumps(ENGLISH, indent=1)
    seen = verify(REQUEST, as_bytes(ENGLISH, output_text=text, tokens=[1, 2], proof=header(REQUEST)))
    assert seen.valid and not seen.canonical and not seen.provable


@pytest.mark.parametrize(
    "changed",
    [{**ENGLISH, "title": "Another"}, {**ENGLISH, "extra": 1}, {**ENGLISH, "themes": ENGLISH["themes"][:3]}],
)
def test_text_and_data_that_say_two_things_are_no_answer(changed: dict[str, Any]) -> None:
    seen = verify(REQUEST, as_bytes(changed, output_text=dump(ENGLISH)))
    assert not seen.valid and not seen.readable


def test_true_is_not_one_between_text_and_data() -> None:
    request = request_for("chapters")
    data = example(tasks.get("chapters").schema_of(request))
    as_true = json.loads(json.dumps(data))
    as_true["chapters"][0]["id"] = True
    assert as_true == data  # to Python
    assert not verify(request, as_bytes(as_true, output_text=dump(data))).readable


DEEP = "[" * 10_000 + "]" * 10_000


def _with_story(story: str) -> bytes:
    """The envelope with a raw JSON text as output_data."""
    return as_bytes("STORY", output_text=None).replace(b'"STORY"', story.encode())


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("nothing", b""),
        ("not JSON", b"I am a story"),
        ("truncated", as_bytes(ENGLISH)[:-40]),
        ("trailing text", as_bytes(ENGLISH) + b" and more"),
        ("not UTF-8", as_bytes(ENGLISH).replace(b"Marrow", b"Marr\xff")),
        ("a list", b"[" + as_bytes(ENGLISH) + b"]"),
        ("NaN", _with_story('{"title": NaN}')),
        ("Infinity", _with_story('{"title": -Infinity}')),
        ("NaN in a claim", as_bytes(ENGLISH).replace(b"96.0", b"NaN")),
        ("a number without end", _with_story('{"title": ' + "9" * 100_000 + "}")),
        ("an exponent without end", _with_story('{"title": 1e999999}')),
        ("a key twice", _with_story('{"title": "a", "title": "b"}')),
        ("a lone surrogate", _with_story('{"title": "\\ud800"}')),
        ("10,000 levels", DEEP.encode()),
        ("10,000 levels inside", _with_story('{"title": ' + DEEP + "}")),
        ("300 levels inside", _with_story('{"title": ' + "[" * 300 + "]" * 300 + "}")),
        ("data that is no object", _with_story('"a story"')),
        ("no story at all", b"{}"),
        ("a wrong kind", as_bytes(ENGLISH, tokens=["1"])),
        ("4 MB of brackets", b"[" * MAX_RESPONSE_BYTES),
    ],
)
def test_what_is_no_response_is_refused_in_words(name: str, raw: bytes) -> None:
    seen = verify(REQUEST, raw)
    assert not seen.valid and not seen.readable and not seen.canonical, name
    assert len(seen.problems) == 1 and len(seen.problems[0]) < 300


@pytest.mark.parametrize("text", [DEEP, '{"title": NaN}', '{"a":1,"a":2}', "x" * 2_000_000, '{"title":"\ud800"}', "[]"])
def test_a_hostile_text_inside_an_envelope_is_refused(text: str) -> None:
    response = StoryResponse.model_validate_json(as_bytes(ENGLISH)).model_copy(update={"output_text": text})
    assert not verify(REQUEST, response).readable


@pytest.mark.parametrize("hole", [float("nan"), float("inf"), {1, 2}, "\ud800"])
def test_a_typed_response_may_hold_what_json_cannot(hole: Any) -> None:
    """Other transports parse the body themselves."""
    response = StoryResponse.model_construct(**envelope({**ENGLISH, "title": hole}, output_text=None))
    assert not verify(REQUEST, response).readable


def test_a_typed_response_of_endless_depth_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    response = StoryResponse.model_construct(**envelope(ENGLISH))
    response = response.model_copy(update={"output_data": {**ENGLISH, "title": deep}})
    assert not verify(REQUEST, response).readable
    assert not verify(REQUEST, response.model_copy(update={"output_text": None})).readable


def test_50_mb_cost_no_memory() -> None:
    raw = b'{"output_data":"' + b"x" * 50_000_000 + b'"}'
    tracemalloc.start()
    try:
        seen = verify(REQUEST, raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not seen.readable and "4,000,000 bytes" in seen.problems[0]
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("tokens", "ok"),
    [
        ([1, 2, 3], True),
        (list(range(len(dump(CHINESE).encode()))), True),
        (list(range(len(dump(CHINESE).encode()) + 1)), False),  # a token spells a byte at least
        ([], False),
        ([-1], False),
        ([2**31], False),
    ],
)
def test_token_ids_are_bounded_by_the_text(tokens: list[int], ok: bool) -> None:
    seen = verify(blueprint_request(ASKED[1][0]), as_bytes(CHINESE, tokens=tokens))
    assert seen.readable is ok


def test_tokens_without_their_text_are_refused() -> None:
    assert not verify(REQUEST, as_bytes(ENGLISH, output_text=None, tokens=[1])).readable


def test_a_header_that_fits_makes_an_answer_provable() -> None:
    assert verify(REQUEST, as_bytes(ENGLISH, tokens=[1, 2], proof=header(REQUEST))).provable


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"grammar_sha256": "c" * 64}, "grammar"),
        ({"grammar_sha256": "c"}, "grammar"),
        ({"model_sha256": "A" * 64}, "64 hex"),
        ({"prompt_sha256": ""}, "64 hex"),
        ({"prompt_version": "mine/1"}, "prompt's version"),
        ({"temperature": -1.0}, "sampling parameters"),
        ({"temperature": 1.5, "min_p": 0.0}, "sampling parameters"),
        ({"sampler": "top-k/1"}, "sampler"),
        ({"max_tokens": 1}, "more tokens"),
        ({"max_tokens": 901}, "budget is over"),
        ({"seed": 8}, "seed"),
    ],
)
def test_a_header_that_contradicts_the_request_proves_nothing(changes: dict[str, Any], says: str) -> None:
    request = blueprint_request(seed=7, max_tokens=900)
    seen = verify(request, as_bytes(ENGLISH, tokens=[1, 2], proof=header(request, **changes)))
    assert seen.valid and not seen.provable
    assert any(check.name == "proof" and says in check.detail for check in seen.checks)


def test_a_header_without_tokens_proves_nothing() -> None:
    assert not verify(REQUEST, as_bytes(ENGLISH, proof=header(REQUEST))).provable


@pytest.mark.parametrize(
    "filler", ["\u200b", "\u2060", "\u3164", "\u2800", "\ufe0f", "\U000e0041", "\u00ad", " ", "\u3000", "\u00a0"]
)
def test_what_nobody_sees_is_remarked_and_costs_points(filler: str) -> None:
    """It makes no answer invalid: lengths are in characters, and an honest model may write a space too many."""
    padded = {**ENGLISH, "setting": (ENGLISH["setting"][:120] + filler * 400)[:400] + "."}
    seen = verify(REQUEST, as_bytes(padded))
    assert seen.readable and any(check.name == "visible" and not check.ok for check in seen.checks)
    parts = {part.name: part for part in score(seen, Context(REQUEST, 10.0)).parts}
    assert parts["schema"].points < 10 and parts["lengths"].points < 10


MARKS = "a" + "\u0301" * 150_000 + "\u0323" * 150_000  # what sorts marks by pairs needs minutes for it


@pytest.mark.parametrize(
    "data",
    [
        {**ENGLISH, "setting": MARKS},
        {**ENGLISH, "themes": [MARKS]},
        {"padding": "x" * 20_000, **ENGLISH},  # a copy could hide behind it
    ],
)
def test_more_text_than_a_task_needs_is_not_read(data: dict[str, Any]) -> None:
    scored = score(as_bytes(data), Context(REQUEST, 10.0))
    assert scored.total == 0 and "at most 20,000 are read" in str(scored.zeroed)


@pytest.mark.parametrize("id", [[], {}, None, True, 1.0, 10**30])
def test_chapter_ids_of_any_kind_are_read(id: Any) -> None:
    assert not verify_text(json.dumps({"chapters": [{"id": id}, {"id": 2}]}).encode()).valid


def test_a_replay_that_would_take_an_hour_is_not_begun() -> None:
    """Long valid texts, spelled a byte a token."""
    tokens = [1] * 8_193
    data = {**ENGLISH, "tone": "🐙" * 3_000}
    seen = verify(REQUEST, as_bytes(data, tokens=tokens, proof=header(REQUEST, max_tokens=60_000)))
    assert not seen.provable and any("more than 8,192 tokens" in check.detail for check in seen.checks)


def test_a_story_cannot_grow_until_nobody_else_can_answer() -> None:
    """What is valid is handed on to the next stage's request."""
    arc = example(tasks.get("story_arc").schema_of(request_for("story_arc")))
    assert verify(request_for("story_arc"), as_bytes(arc)).valid
    arc["hooks"]["more"] = "x" * 5_000
    seen = verify(request_for("story_arc"), as_bytes(arc))
    assert not seen.valid and "hooks has" in seen.problems[0]


def test_joiners_that_a_script_needs_are_no_padding() -> None:
    persian = "نگهبان فانوس دریایی می\u200cشنود که دریا با او سخن می\u200cگوید و شب\u200cها به یاد می\u200cآورد "
    data = {**ENGLISH, "setting": (persian * 6)[:400].strip()}
    assert verify(REQUEST, as_bytes(data)).valid


def test_claims_change_nothing() -> None:
    honest = verify(REQUEST, as_bytes(ENGLISH))
    boasting = as_bytes(
        ENGLISH, generation_time=-1e9, miner_mode="APIFallbackLoader", model_name="x" * 999, gpu_memory_gb=1e300
    )
    assert verify(REQUEST, boasting).checks == honest.checks


def test_another_request_is_not_answered() -> None:
    request = request_for("chapters", chapter_ids=[1, 2])
    one = example(tasks.get("chapters").schema_of(request_for("chapters", chapter_ids=[1])))
    seen = verify(request, as_bytes(one))
    assert seen.readable and not seen.valid


def test_a_request_that_lacks_a_stage_is_the_validators_own_mistake() -> None:
    with pytest.raises(BadInput, match="needs"):
        verify(StoryRequest(task_type="characters", user_input="x"), as_bytes(ENGLISH))
