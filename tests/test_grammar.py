"""One schema, many spellings: they accept and refuse the same bytes, and the check says why in words."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyfi_lite import tasks
from storyfi_lite.grammar import Constraint
from storyfi_lite.grammar.export import to_gbnf, to_json_schema, to_lark
from storyfi_lite.grammar.schema import Array, Const, Object, Text, as_written, dump
from tests.stories import example, request_for

TASKS = list(tasks.TASKS)
SMALL = Object((("a", Text(2, 4)), ("b", Array(Text(1, 2, newlines=True), 1, 3)), ("c", Const((1, 2)))))


def constraint_of(task: str) -> Constraint:
    return tasks.get(task).constraint(request_for(task))


# --- accept and refuse ---------------------------------------------------------------------------------------------

ACCEPTED = [
    '{"a":"xy","b":["z"],"c":[1,2]}',
    '{"a":"中文字符","b":["z","z","z"],"c":[1,2]}',
    '{"a":"é\\"","b":["\\\\"],"c":[1,2]}',
    '{"a":"👩‍🚀","b":["z\\n"],"c":[1,2]}',
    '{"a":"x  y","b":["ي"],"c":[1,2]}',
]
REFUSED = {
    "too short": '{"a":"x","b":["z"],"c":[1,2]}',
    "too long": '{"a":"xxxxx","b":["z"],"c":[1,2]}',
    "first character a space": '{"a":" x","b":["z"],"c":[1,2]}',
    "no item": '{"a":"xy","b":[],"c":[1,2]}',
    "one item too many": '{"a":"xy","b":["z","z","z","z"],"c":[1,2]}',
    "white space": '{"a": "xy","b":["z"],"c":[1,2]}',
    "key order": '{"b":["z"],"a":"xy","c":[1,2]}',
    "another constant": '{"a":"xy","b":["z"],"c":[1,3]}',
    "an escape that UTF-8 can say": '{"a":"x\\u0079","b":["z"],"c":[1,2]}',
    "a line feed where none may stand": '{"a":"x\\n","b":["z"],"c":[1,2]}',
    "a line feed first": '{"a":"xy","b":["\\n"],"c":[1,2]}',
    "a raw control character": '{"a":"x\x01","b":["z"],"c":[1,2]}',
    "a bidirectional override": '{"a":"x\u202e","b":["z"],"c":[1,2]}',
    "a C1 control": '{"a":"x\u0085","b":["z"],"c":[1,2]}',
    "a byte-order mark": '{"a":"x\ufeff","b":["z"],"c":[1,2]}',
    "text after the end": '{"a":"xy","b":["z"],"c":[1,2]} ',
}


@cache
def stock_llama_cpp(path: Path) -> Any:
    import llama_cpp

    from storyfi_lite.machine import devices

    devices.ggml()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    return model, llama_cpp.llama_model_get_vocab(model)


@cache
def vocabulary(path: Path) -> Any:
    from storyfi_lite.engine.vocabulary import Vocabulary

    return Vocabulary(stock_llama_cpp(path)[1])


@cache
def tokenizer(path: Path) -> Any:
    import warnings

    from llguidance.llamacpp import lltokenizer_from_vocab

    with warnings.catch_warnings():  # it calls a function that llama-cpp-python calls deprecated, once for each token
        warnings.simplefilter("ignore", DeprecationWarning)
        return lltokenizer_from_vocab(stock_llama_cpp(path)[1])


def matcher_of(path: Path, constraint: Constraint) -> Any:
    """llguidance, as who uses the exported Lark has it."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer(path), constraint.lark, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def gbnf_accepts(path: Path, gbnf: str, text: str) -> bool:
    import llama_cpp

    end = llama_cpp.llama_vocab_eos(stock_llama_cpp(path)[1])
    return gbnf_accepts_tokens(path, gbnf, [*vocabulary(path).tokenize(text, special=False), end])


def gbnf_accepts_tokens(path: Path, gbnf: str, tokens: list[int]) -> bool:
    """Stock llama.cpp: token by token, each must keep a finite logit."""
    import llama_cpp

    _, vocab = stock_llama_cpp(path)
    grammar = llama_cpp.llama_sampler_init_grammar(vocab, gbnf.encode(), b"root")
    assert grammar, "llama.cpp refused the grammar"
    try:
        for token in tokens:
            row = llama_cpp.llama_token_data(token, 1.0, 0.0)
            rows = llama_cpp.llama_token_data_array(
                data=(llama_cpp.llama_token_data * 1)(row), size=1, selected=-1, sorted=False
            )
            llama_cpp.llama_sampler_apply(grammar, rows)
            if rows.data[0].logit < -1e30:
                return False
            llama_cpp.llama_sampler_accept(grammar, token)
        return True
    finally:
        llama_cpp.llama_sampler_free(grammar)


def llguidance_accepts(path: Path, constraint: Constraint, text: str) -> bool:
    words = vocabulary(path)
    matcher = matcher_of(path, constraint)
    tokens = words.tokenize(text, special=False)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("text", ACCEPTED)
def test_every_spelling_accepts(text: str, small_model_path: Path) -> None:
    constraint = Constraint(SMALL)
    report = constraint.check(text)
    assert report.canonical and report.valid, report.checks
    assert llguidance_accepts(small_model_path, constraint, text)
    assert gbnf_accepts(small_model_path, constraint.gbnf, text)
    jsonschema.validate(json.loads(text), constraint.json_schema)
    for end in range(len(text)):  # a beginning is no answer yet
        assert not constraint.check(text[:end]).canonical


@pytest.mark.parametrize("why", REFUSED)
def test_every_spelling_refuses(why: str, small_model_path: Path) -> None:
    constraint, text = Constraint(SMALL), REFUSED[why]
    assert not constraint.check(text).canonical
    assert not llguidance_accepts(small_model_path, constraint, text)
    assert not gbnf_accepts(small_model_path, constraint.gbnf, text)


@pytest.mark.parametrize(
    ("spelled", "allowed"), [(b"\xed\x9f\xbf", True), (b"\xed\xa0\xbd", False), (b"\xed\xbf\xbf", False)]
)
def test_stock_llama_cpp_writes_no_half_of_a_surrogate_pair(
    spelled: bytes, allowed: bool, small_model_path: Path
) -> None:
    """U+D7FF is the last character before the surrogates, which are no characters: their bytes are not UTF-8."""
    words = vocabulary(small_model_path)
    by_byte = {words.bytes_of(token): token for token in range(words.size) if len(words.bytes_of(token)) == 1}
    start = words.tokenize('{"a":"xy', special=False)
    text = [by_byte[bytes([byte])] for byte in spelled]
    assert gbnf_accepts_tokens(small_model_path, Constraint(SMALL).gbnf, [*start, *text]) is allowed


@pytest.mark.parametrize("longest", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_the_shortest_and_the_longest_answer_of_each_task(task: str, longest: bool, small_model_path: Path) -> None:
    constraint = constraint_of(task)
    data = example(constraint.schema, longest=longest)
    text = dump(data)
    report = constraint.check(text)
    assert report.canonical, report.checks
    jsonschema.Draft202012Validator.check_schema(constraint.json_schema)
    jsonschema.validate(data, constraint.json_schema)
    assert llguidance_accepts(small_model_path, constraint, text)
    assert gbnf_accepts(small_model_path, constraint.gbnf, text)


def test_one_character_beyond_either_bound_is_refused_by_the_gbnf_of_long_texts(
    small_model_path: Path,
) -> None:
    """llama.cpp silently unbounds large repetitions; ours are built from blocks."""
    constraint = Constraint(Object((("content", Text(1000, 3000)),)))
    for length, fits in ((999, False), (1000, True), (1099, True), (1100, True), (3000, True), (3001, False)):
        text = dump({"content": "x" * length})
        assert gbnf_accepts(small_model_path, constraint.gbnf, text) is fits, length


# --- random answers ------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["small", *TASKS[:2]]))
def test_a_random_walk_under_llguidances_mask_spells_a_canonical_answer(
    small_model_path: Path, rng: random.Random, which: str
) -> None:
    words = vocabulary(small_model_path)
    constraint = Constraint(SMALL) if which == "small" else constraint_of(which)
    matcher, spelled = matcher_of(small_model_path, constraint), b""
    while not matcher.is_accepting():
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[: words.size])
        token = int(allowed[rng.randrange(len(allowed))])
        assert matcher.consume_token(token)
        spelled += words.bytes_of(token)
    report = constraint.check(spelled)
    assert report.canonical, report.checks


def test_no_answer_is_longer_than_the_bound() -> None:
    for task in TASKS:
        constraint = constraint_of(task)
        assert len(dump(example(constraint.schema, longest=True)).encode()) <= constraint.max_tokens_bound


# --- the check -----------------------------------------------------------------------------------------------------


def blueprint(**changes: Any) -> str:
    return dump({**example(constraint_of("blueprint").schema), **changes})


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "a key twice": (blueprint()[:-1] + ',"title":"again"}', "twice"),
    "NaN": (blueprint(tone=1).replace('"tone":1', '"tone":NaN'), "NaN"),
    "Infinity": (blueprint(tone=1).replace('"tone":1', '"tone":-Infinity'), "Infinity"),
    "a float beyond range": (blueprint(tone=1).replace('"tone":1', '"tone":1e999'), "range"),
    "a number of 5,000 digits": (blueprint(tone=1).replace('"tone":1', '"tone":' + "9" * 5000), "digits"),
    "a lone surrogate": (blueprint(tone="x").replace('"tone":"x"', '"tone":"\\ud800x"'), "surrogate"),
    "text after the end": (blueprint() + "!", "not JSON"),
    "text before the start": ("Here it is: " + blueprint(), "not JSON"),
    "10,000 levels": ("[" * 10_000 + "]" * 10_000, "nested"),
    "100,000 open levels": ('{"a":' * 100_000, "nested"),
    "too large": ('"' + "x" * 100_000_000 + '"', "bytes"),
    "bad UTF-8": (blueprint().encode()[:-5] + b"\xff}", "UTF-8"),
    "nothing": ("", "not JSON"),
    "a list": ("[]", "not an object"),
    "null": ("null", "not an object"),
}


@pytest.mark.parametrize("why", HOSTILE)
def test_hostile_text_gets_a_clear_refusal(why: str) -> None:
    text, says = HOSTILE[why]
    report = constraint_of("blueprint").check(text)
    assert not report.valid and not report.canonical
    assert any(says in problem for problem in report.problems), report.problems


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"setting": "short"}, "setting has 5 characters, not 300 to 5,000"),
        ({"setting": "x" * 5001}, "setting has 5,001 characters"),
        ({"setting": " " * 300}, "setting is blank"),
        ({"tone": ""}, "tone has 0 characters"),
        ({"themes": ["one", "two"]}, "themes has 2 items, not 3 to 20"),
        ({"themes": "one, two, three"}, "themes is a string, not a list"),
        ({"themes": ["one", "two", 3]}, "themes[2] is a number, not a string"),
        ({"title": None}, "title is null"),
        ({"extra": 1}, "extra is not a field"),
        ({"tone": "calm\u202ehtlaw"}, "bidirectional"),
    ],
)
def test_each_broken_rule_is_named_with_its_place(changes: dict[str, Any], says: str) -> None:
    report = constraint_of("blueprint").check(blueprint(**changes))
    assert not report.valid
    assert any(says in problem for problem in report.problems), report.problems


def test_strict_asks_for_what_the_grammar_writes_but_not_for_its_spelling() -> None:
    constraint = constraint_of("blueprint")
    written = json.loads(blueprint())
    assert constraint.check(json.dumps(written, indent=1), strict=True).valid
    wide = {"setting": "x" * 521, "core_conflict": "x" * 321, "themes": [*"abcdef"], "title": "x" * 61}
    for field, value in wide.items():
        report = constraint.check_data({**written, field: value}, strict=True)
        assert report.problems and all(field in problem for problem in report.problems)
        assert constraint.check_data({**written, field: value}).valid
    for task in TASKS:
        assert constraint_of(task).check_data(example(constraint_of(task).schema, longest=True), strict=True).valid


def test_what_is_accepted_does_not_change_what_is_written() -> None:
    for task in TASKS:
        schema, strict = constraint_of(task).schema, as_written(constraint_of(task).schema)
        assert (to_lark(schema), to_gbnf(schema), to_json_schema(schema)) == (
            to_lark(strict),
            to_gbnf(strict),
            to_json_schema(strict),
        )


def test_a_missing_field_is_named() -> None:
    text = re.sub(r'"tone":"[^"]*",', "", blueprint())
    assert constraint_of("blueprint").check(text).problems == ("tone is missing",)


def test_other_white_space_and_order_are_valid_but_not_canonical() -> None:
    data = json.loads(blueprint())
    report = constraint_of("blueprint").check(json.dumps(dict(reversed(data.items())), indent=2))
    assert report.valid and not report.canonical


def test_the_check_is_wider_than_the_grammar_only_where_the_protocol_is() -> None:
    arc = example(constraint_of("story_arc").schema)
    for chapter in arc["chapters"]:
        chapter["storyProgress"] = round(0.05 + 0.95 * (chapter["id"] - 1) / 11, 3)
    assert constraint_of("story_arc").check_data(arc).valid
    arc["chapters"][5]["storyProgress"] = 0.9
    assert any("rise" in problem for problem in constraint_of("story_arc").check_data(arc).problems)
    chapters = example(constraint_of("chapters").schema)
    chapters["chapters"][0]["choices"].pop()
    assert constraint_of("chapters").check_data(chapters).valid
    chapters["chapters"][0]["choices"][1]["consequences"] = chapters["chapters"][0]["choices"][0]["consequences"]
    assert any("consequences" in problem for problem in constraint_of("chapters").check_data(chapters).problems)
    five = example(constraint_of("characters").schema)
    five["characters"].reverse()
    assert constraint_of("characters").check_data(five).valid
    five["characters"][0]["id"] = "ally"
    assert any("id is 'ally'" in problem for problem in constraint_of("characters").check_data(five).problems)


def test_equal_schemas_share_their_name_and_different_ones_do_not() -> None:
    assert constraint_of("blueprint").sha256 == Constraint(tasks.blueprint.SCHEMA).sha256
    assert len({constraint_of(task).sha256 for task in TASKS}) == len(TASKS)
