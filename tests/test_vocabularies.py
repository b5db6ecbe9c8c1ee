"""Any vocabulary either writes what a task asks for, in English and Chinese, under a model that knows nothing; or is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from storyfi_lite import tasks
from storyfi_lite.engine.our_words import NATS
from storyfi_lite.engine.prompt import ChatTemplate
from storyfi_lite.engine.repetition import ASKED_MORE, GIVEN_MORE, Word
from storyfi_lite.engine.rule import ChoiceRule
from storyfi_lite.engine.settings import SamplingParams
from storyfi_lite.engine.vocabulary import Vocabulary
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar import Constraint
from storyfi_lite.grammar.prose import Items, Prose, Words, alphabets_of
from storyfi_lite.grammar.script import Script, one_turn
from storyfi_lite.machine import devices
from tests.llama_source import llama_models
from tests.stories import request_for
from tests.tiny_gguf import BYTE, BYTES, CHAT, CONTROL, NORMAL, SPM, UNKNOWN, USER_DEFINED, TinyVocabulary, tiny_gguf

IDEAS = {"en": "A lighthouse keeper finds a letter.", "zh": "一个守灯塔的人在海边找到一封信。"}


@contextmanager
def vocabulary_of(path: Path) -> Iterator[Vocabulary]:
    """The file's vocabulary alone, ready to write. Raises BadInput."""
    devices.ggml()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    assert model, list(devices.complaints)
    try:
        vocabulary = Vocabulary(llama_cpp.llama_model_get_vocab(model))
        vocabulary.warm_up()
        yield vocabulary
    finally:
        llama_cpp.llama_model_free(model)


def written(vocabulary: Vocabulary, script: Script, seed: int) -> str:
    """The answer of a model whose logits are noise; of every second seed's most are bytes and characters beyond ASCII."""
    conversation = ChatTemplate(CHAT, "", "").conversation(vocabulary, script)
    params = SamplingParams(seed, min_p=0.0)
    rule = ChoiceRule(vocabulary, conversation, script, params, script.min_tokens_bound + 200)
    foreign = np.array([bool(piece) and max(piece) >= 0x80 for piece in vocabulary.writes])
    noise = np.random.default_rng(seed)
    rule.force()
    while not rule.done:
        logits = noise.normal(0, 3, vocabulary.size) + (seed % 2) * 6 * foreign
        rule.choose(logits.astype(np.float32))
    return rule.text


def say(rule: ChoiceRule, chars: str) -> None:
    """Let a model write these, which is sure of each."""
    for char in chars:
        logits = np.full(rule._vocabulary.size, -20, dtype=np.float32)
        logits[rule._vocabulary.spelled(char)[0]] = 20
        rule.choose(logits)


def lost_nats(rule: ChoiceRule, char: str) -> float:
    logits = np.zeros(rule._vocabulary.size, dtype=np.float32)
    rule._adjust(logits)
    return -float(logits[rule._vocabulary.spelled(char)[0]])


def byte_level() -> list[str]:
    """The 256 bytes as byte-level BPE spells them: printable ones as they are, the others from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


BPE = TinyVocabulary(
    "gpt2",
    dict.fromkeys(byte_level(), NORMAL) | {"he": NORMAL, "<|endoftext|>": CONTROL, "<|im_end|>": CONTROL},
    {"pre": "gpt-2", "merges": ["h e"], "eos_token_id": 258, "add_bos_token": False},
)
# and which token begins every prompt
WRITE: dict[str, tuple[TinyVocabulary, int | None]] = {
    "SPM": (SPM, 1),
    "SPM without BOS": (TinyVocabulary(SPM.kind, SPM.tokens, {**SPM.more, "add_bos_token": False}), None),
    "SPM that puts no space before a text": (
        TinyVocabulary(SPM.kind, SPM.tokens, {**SPM.more, "add_space_prefix": False}), 1
    ),
    "BPE": (BPE, None),
    "BPE with BOS": (TinyVocabulary("gpt2", BPE.tokens, {**BPE.more, "bos_token_id": 257, "add_bos_token": True}), 257),
    "BPE with several ends": (
        TinyVocabulary("gpt2", BPE.tokens, {**BPE.more, "eot_token_id": 258, "eos_token_id": 257}), None
    ),
    "added tokens": (
        TinyVocabulary("gpt2", {**BPE.tokens, "灯塔": USER_DEFINED, "<think>": USER_DEFINED}, BPE.more), None
    ),
    "Unigram with bytes": (
        TinyVocabulary(
            "t5", {"<pad>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN} | dict.fromkeys(BYTES, BYTE) | {"▁": NORMAL},
            {"eos_token_id": 1, "unknown_token_id": 2},
        ), None,
    ),
}  # fmt: skip
NO_BYTES = dict.fromkeys(["a", "b", "."], NORMAL)
REFUSED = {
    "Unigram": (
        TinyVocabulary("t5", {"<pad>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN} | NO_BYTES, {"eos_token_id": 1}),
        "cannot spell every text",
    ),
    "no end": (TinyVocabulary("llama", {"<unk>": UNKNOWN} | dict.fromkeys(BYTES, BYTE) | NO_BYTES), "no token that ends"),
    "none": (TinyVocabulary("none", NO_BYTES), "has no vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(WRITE))
def test_each_kind_of_vocabulary_writes(tmp_path: Path, kind: str) -> None:
    forms = {"said": Prose(12, 90), "name": Words(2, 20), "traits": Items(Words(3, 12), 2, 4)}
    tiny, bos = WRITE[kind]
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=tiny)) as vocabulary:
        assert vocabulary.bos == bos
        for seed in range(4):
            script = one_turn(list(IDEAS.values())[seed % 2], forms)  # type: ignore[arg-type]
            assert Constraint(script.schema).check(written(vocabulary, script, seed)).canonical


@pytest.mark.parametrize("kind", list(REFUSED))
def test_a_vocabulary_that_cannot_write_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    vocabulary, why = REFUSED[kind]
    path = tiny_gguf(tmp_path / "m.gguf", vocabulary=vocabulary)
    with pytest.raises(BadInput, match=why), vocabulary_of(path):
        pass


@pytest.mark.slow
def test_the_vocabularies_of_real_models() -> None:
    """Of all that llama.cpp is tested with, each writes two whole blueprints or belongs to a model for embeddings."""
    refused = []
    paths = sorted(llama_models().glob("ggml-vocab-*.gguf"))
    assert len(paths) >= 19
    for path in paths:
        try:
            with vocabulary_of(path) as vocabulary:
                for seed, idea in enumerate(IDEAS.values()):
                    request = request_for("blueprint", idea)
                    constraint = Constraint(tasks.get("blueprint").schema_of(request))
                    text = written(vocabulary, tasks.get("blueprint").script(request, constraint), seed)
                    assert constraint.check(text).canonical, path.name
        except BadInput as error:
            assert "cannot spell every text" in str(error)
            refused.append(path.stem.removeprefix("ggml-vocab-"))
    assert refused == ["bert-bge", "nomic-bert-moe"]


def test_a_word_begins_with_its_space_or_where_a_script_has_none(tmp_path: Path) -> None:
    """By piece: after a letter, and after none."""
    pieces = {
        " sea": (Word.SHORT, Word.SHORT),
        " ship": (Word.LONG, Word.LONG),
        "sea": (None, None),
        "Sea": (Word.SHORT, Word.SHORT),
        "灯塔": (Word.LONG, Word.LONG),
        "灯": (None, Word.LONG),
        "塔。": (None, None),
        " 1932": (Word.SHORT, Word.SHORT),
        " 바다": (Word.SHORT, Word.SHORT),
        ".": (Word.SHORT, Word.SHORT),
    }
    more = {piece.replace(" ", "▁"): NORMAL for piece in pieces}
    made = TinyVocabulary(SPM.kind, {**SPM.tokens, **more}, SPM.more)
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=made)) as vocabulary:
        found = {vocabulary.writes[token].decode(errors="replace"): token for token in range(vocabulary.size)}
        words = {
            piece: tuple(vocabulary.word(found[piece], after_letter) for after_letter in (True, False))
            for piece in pieces
        }
        assert words == pieces
        goes_on = {piece for piece in pieces if vocabulary.inside_words[found[piece]]}
        assert goes_on == {"sea", "Sea"}
        in_a_name = {piece for piece in pieces if vocabulary.inside_names[found[piece]]}
        assert in_a_name == {"sea"}


@pytest.mark.parametrize(("names", "lost"), [((), True), (("艾米丽",), False)])
def test_a_name_that_the_request_brings_loses_nothing_however_often_it_comes(
    tmp_path: Path, names: tuple[str, ...], lost: bool
) -> None:
    more = dict.fromkeys(("艾", "米", "丽", "和"), NORMAL)
    made = TinyVocabulary(SPM.kind, {**SPM.tokens, **more}, SPM.more)
    script = replace(one_turn("Say.", {"said": Prose(12, 90)}), names=names)
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=made)) as vocabulary:
        conversation = ChatTemplate(CHAT, "", "").conversation(vocabulary, script)
        rule = ChoiceRule(vocabulary, conversation, script, SamplingParams(1), script.max_tokens_bound)
        say(rule, "艾米丽和艾米")
        assert (lost_nats(rule, "丽") > 0) == lost


def test_latin_words_are_told_from_those_that_the_request_brings(tmp_path: Path) -> None:
    pieces = (" Forgotten", "AI", "I", " A", "Borrow", "row", "灯塔")
    more = {piece.replace(" ", "▁"): NORMAL for piece in pieces}
    made = TinyVocabulary(SPM.kind, {**SPM.tokens, **more}, SPM.more)
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=made)) as vocabulary:
        found = {vocabulary.writes[token].decode(errors="replace") for token in vocabulary.latin_but("AI与人，Brow。")}
        assert set(pieces) & found == {" Forgotten", "Borrow"}


def test_what_begins_a_word_or_a_character_of_a_script_without_spaces(tmp_path: Path) -> None:
    pieces = (" sea", "sea", " SEA", "Sea", " seas", "sea.", "灯", "灯塔", " 灯塔", "塔。", "바다")
    more = {piece.replace(" ", "▁"): NORMAL for piece in pieces}
    made = TinyVocabulary(SPM.kind, {**SPM.tokens, **more}, SPM.more)
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=made)) as vocabulary:

        def begin(unit: str, inside: bool = False) -> set[str]:
            return {vocabulary.writes[token].decode() for token in vocabulary.beginning(unit, inside)}

        assert begin("sea") == {" sea", "sea", " SEA", "Sea"}
        assert begin("sea", inside=True) == {" sea", " SEA"}
        assert begin("灯") == begin("灯", inside=True) == {"灯", "灯塔", " 灯塔"}
        assert begin("塔") == {"塔。"}
        assert begin("바") == {"바다"}
        assert begin("moon") == set()


@pytest.mark.parametrize(
    ("before", "sign", "goes_on"),
    [
        (0, "、", True),
        (0, ".", True),
        (0, "\n", True),
        (2, "、", True),
        (2, ".", False),
        (2, "\n", False),
        (3, "、", False),
    ],
)
def test_a_name_in_a_list_ends_by_whatever_sign_the_model_ends_it(
    tmp_path: Path, before: int, sign: str, goes_on: bool
) -> None:
    """The list has three names or four: it goes on while there are too few, and ends when there may be no more."""
    made = TinyVocabulary(SPM.kind, {**SPM.tokens, "、": NORMAL}, SPM.more)
    script = one_turn("Name some.", {"names": Items(Words(2, 30), 3, 4)})
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=made)) as vocabulary:
        conversation = ChatTemplate(CHAT, "", "").conversation(vocabulary, script)
        rule = ChoiceRule(vocabulary, conversation, script, SamplingParams(1), script.max_tokens_bound)
        rule.force()
        say(rule, "".join(f"x{'abc'[at]}," for at in range(before)) + f"xz{sign}")
        assert rule.done != goes_on
        written = b"".join(vocabulary.writes[token] for token in rule.tokens)
        assert written.endswith(b"xz," if goes_on else b"xz")


def test_what_follows_the_same_label_each_time_may_begin_the_same(tmp_path: Path) -> None:
    script = one_turn("Name two.", {"first": Words(2, 9), "last": Words(2, 9)})
    script = replace(script, pieces=script.pieces * 2)
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=SPM)) as vocabulary:
        conversation = ChatTemplate(CHAT, "", "").conversation(vocabulary, script)
        rule = ChoiceRule(vocabulary, conversation, script, SamplingParams(1), script.max_tokens_bound)
        rule.force()
        say(rule, "xyz\nxyx\n")
        assert rule.piece == 1 and not lost_nats(rule, "x")


@pytest.mark.parametrize(("ours", "more"), [(False, GIVEN_MORE), (True, ASKED_MORE)])
def test_what_asks_and_the_material_may_be_said_again_a_while(tmp_path: Path, ours: bool, more: int) -> None:
    text = "守灯塔的人在海边找到一封信"
    made = TinyVocabulary(SPM.kind, {**SPM.tokens, **dict.fromkeys(text, NORMAL)}, SPM.more)
    script = one_turn(text if ours else "Say.", {"name": Words(2, 90)}, material="" if ours else text)
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=made)) as vocabulary:
        conversation = ChatTemplate(CHAT, "", "").conversation(vocabulary, script)
        rule = ChoiceRule(vocabulary, conversation, script, SamplingParams(1), script.max_tokens_bound)
        rule.force()
        free = SamplingParams(1).dry_allowed_length + more
        say(rule, text[: free - 1])
        assert not lost_nats(rule, text[free - 1])
        say(rule, text[free - 1])
        assert lost_nats(rule, text[free]) > 0


def test_a_word_without_an_end_is_pressed_to_end(tmp_path: Path) -> None:
    """What may not be said again was spelled into ever longer words."""
    script = one_turn("Say.", {"said": Prose(12, 90)})
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=SPM)) as vocabulary:
        conversation = ChatTemplate(CHAT, "", "").conversation(vocabulary, script)
        rule = ChoiceRule(vocabulary, conversation, script, SamplingParams(1), script.max_tokens_bound)
        say(rule, "abcdefghijklmnopqrstuvwxyzabcd")
        assert lost_nats(rule, "z") == 0
        say(rule, "f")
        assert lost_nats(rule, "z") == NATS and lost_nats(rule, ".") <= 0


@pytest.mark.parametrize(
    ("asked", "told", "lost"),
    [("海", "灯塔", NATS), ("海", "Tom守着灯塔", NATS), ("海", "X光照着灯塔", 0), ("the sea", "", 0)],
)
def test_latin_words_that_nobody_asked_for_stay_out_of_chinese(
    tmp_path: Path, asked: str, told: str, lost: float
) -> None:
    """What may not be said again came in English: "一个更黑暗的 Future"."""
    script = one_turn("Say.", {"said": Prose(12, 90)}, material=told)
    script = replace(script, alphabets=alphabets_of(asked, told))
    with vocabulary_of(tiny_gguf(tmp_path / "m.gguf", vocabulary=SPM)) as vocabulary:
        conversation = ChatTemplate(CHAT, "", "").conversation(vocabulary, script)
        rule = ChoiceRule(vocabulary, conversation, script, SamplingParams(1), script.max_tokens_bound)
        assert lost_nats(rule, "X") == lost and not lost_nats(rule, "1")
