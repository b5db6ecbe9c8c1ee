"""What a script's turns may hold: whole sentences, whole labels, and from any point a way to the end within the bound."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyfi_lite import tasks
from storyfi_lite.errors import GrammarError
from storyfi_lite.grammar.prose import (
    Cursor,
    Items,
    Prose,
    Row,
    Rows,
    Words,
    alphabets_of,
    ends_a_sentence,
    is_of,
    need_tokens,
    values,
)
from storyfi_lite.grammar.schema import Text
from storyfi_lite.grammar.script import one_turn, text_at
from storyfi_lite.tasks.base import told
from tests.stories import example, request_for

TASKS = tuple(tasks.TASKS)
ROWS: dict[str, Rows] = {
    "short prose": (Row("", Prose(12, 40)),),
    "prose": (Row("", Prose(60, 200)),),
    "paragraphs": (Row("", Prose(200, 400, paragraphs=True)),),
    "labels": (Row("Title:", Words(2, 20)), Row("Past:", Prose(20, 60)), Row("Themes:", Items(Words(2, 12), 2, 4))),
}
PARTS = [" the", " of", " a", " and", " ship", "ship", " Mr", ".", "!", "…", ",", " ", "\n", '"', "“", "”", "(", ")", "-", "1932",
         "海", "灯塔", "。", "，", "「", "」", "和", "x", "😀", "é", "'", " I", ".\n\n", '."', " ‒", "†", "’"]  # fmt: skip
# A token each: what surely finishes a text, a letter or a byte at a time.
WAYS = [b"x", b"z", b"X", b".", b"!", b"\n", b",", *("\N{HORIZONTAL ELLIPSIS}".encode()[at : at + 1] for at in range(3)),
        *(bytes([byte]) for closer in '")”」』）》»' for byte in closer.encode()), 
        *(bytes([byte]) for byte in range(0x80, 0xC0)), *(bytes([byte]) for byte in b":TitlePashm")]  # fmt: skip


def advanced(cursor: Cursor, data: bytes) -> Cursor | None:
    after = cursor.copy()
    try:
        after.end() if data == b"end" else after.advance(data)
    except GrammarError:
        return None
    return after


def finished(cursor: Cursor) -> Cursor:
    """By tokens of one byte, each of which lowers what is needed."""
    while not cursor.done:
        steps = [after for way in (b"end", *WAYS) if (after := advanced(cursor, way)) is not None]
        nearest = min(steps, key=lambda after: after.need_tokens, default=None)
        assert nearest is not None and nearest.need_tokens < cursor.need_tokens, (cursor.need_tokens, cursor._tail)
        cursor = nearest
    return cursor


@settings(max_examples=60, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(list(ROWS)),
    st.sampled_from(["", "sea", "海"]),
    st.integers(0, 200),
)
def test_from_any_point_a_text_closes_within_what_is_said_to_suffice(
    rng: random.Random, which: str, asked: str, steps: int
) -> None:
    cursor = Cursor(ROWS[which], alphabets_of(asked) if asked else frozenset())
    assert cursor.need_tokens == need_tokens(ROWS[which])
    for _ in range(steps):
        data = rng.choice(PARTS).encode()
        after = advanced(cursor, data[: rng.randint(1, len(data))] if rng.random() < 0.1 else data)
        cursor = after or cursor
    finished(cursor)


def test_where_a_letter_must_come_an_end_is_counted_too() -> None:
    cursor = Cursor((Row("", Prose(12, 40)),))
    cursor.advance('1932，-"…,…"'.encode())  # six signs, eleven characters
    assert cursor.need_tokens == 3
    finished(cursor)


@pytest.mark.parametrize(
    ("before", "begun"),
    [
        ("", b"\xf0\x9f\xaf"),  # segmented digits: no label has digits
        ("abcdefghijklmnopqrs", b"\xe2\x80"),  # dashes and quotes: no label ends on one
    ],
)
def test_no_character_is_begun_that_a_label_cannot_have(before: str, begun: bytes) -> None:
    """A byte at a time a vocabulary can begin any character; one that nothing can finish would be a dead end."""
    cursor = Cursor((Row("", Words(2, 20)),))
    if before:
        cursor.advance(before.encode())
    assert advanced(cursor, begun) is None
    assert advanced(cursor, b"\xe6") is not None  # Chinese


@pytest.mark.parametrize(
    ("asked", "written", "refused"),
    [
        ("a café by the sea", "The café closes.", ["Она", "海", "ℳ", "ↄ", "ₒ", "ƨ", "ẽ"]),
        ("một câu chuyện về biển", "Người đàn ông nói.", ["Она", "海"]),
        ("a ship called Ελένη", "The Ελένη sails.", ["Она"]),
        (
            "一个守灯塔的人",
            "灯塔很高。Tom说OK，AI也说。Mary Ann笑了。",
            ["Она", "바다", "うみ", "walls", "他的 future", "他是he", "é"],
        ),
        ("一个iPhone的故事", "他的iPhone在walls上。", ["Она"]),
        ("灯台を守るひと", "海が話す。「カモメ」", ["바다"]),
        ("등대를 지키는 사람", "바다가 말한다.", ["海"]),
    ],
)
def test_a_text_has_the_letters_of_what_was_asked_and_latin_ones(asked: str, written: str, refused: list[str]) -> None:
    cursor = Cursor((Row("", Prose(5, 200)),), alphabets_of(asked))
    assert advanced(cursor, written.encode())
    for text in refused:
        assert advanced(cursor, text.encode()) is None, text
    assert advanced(cursor, "Она".encode()[:1]) is None  # no byte of what could not be finished


@pytest.mark.parametrize(
    ("asked", "text", "taken", "refused"),
    [
        ("a ship", "The ship", "’–,;…", "，。｡｢‽※†﹣︲฿₩‰€„‚‐‒"),
        ("船", "船很小", "，。…、；！？", "｡｢‽※†﹣︲฿₩‰€„‚‐‒＃＇．／＂￥"),
    ],
)
def test_a_text_has_the_signs_of_its_script(asked: str, text: str, taken: str, refused: str) -> None:
    """A small model that may not say a word again goes on in signs that nobody writes."""
    cursor = Cursor((Row("", Prose(5, 200)),), alphabets_of(asked))
    cursor.advance(text.encode())
    assert [sign for sign in taken + refused if advanced(cursor, sign.encode())] == list(taken)


@pytest.mark.parametrize(("label", "taken"), [("", True), ("Past:", False)])
def test_a_text_behind_a_label_begins_with_a_letter(label: str, taken: bool) -> None:
    cursor = Cursor((Row(label, Prose(5, 200)),))
    if label:
        cursor.advance(label.encode())
    assert [bool(advanced(cursor, text)) for text in (b"1668", b" 1668", b" ", b" S", "灯".encode()[:1])] == [
        taken, taken, taken, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("It rains.", True), ("Is it raining?", True), ("It rains…", True), ("She said: “It rains.”", True), ("下雨了。", True),
        ("她说：「下雨了！」", True), ("It rains", False), ("It is Mr.", False), ("It rains,", False), ("下雨了，", False), ("", False),
    ],
)  # fmt: skip
def test_where_a_sentence_ends(text: str, whole: bool) -> None:
    assert ends_a_sentence(text) is whole


@pytest.mark.parametrize(
    "text",
    [
        "The ship sails on the",
        "The ship sails on the.",
        "* The ship sails away.",
        "The **ship** sails away.",
        "It was 19322 in all there.",
        "It was 1932, 1989, 1990 in all there.",
        "The sea, the ship, the storm, the night, the rocks, the waves, the wind, the sand, the salt, the cold.",
        "She was ½ a year old.",
        "A-I-N-I-O-E was all of it.",
        "The ship † ‡ † ‡ † ‡ † sails away.",
        "The ship — — — — — — — sails away.",
        "Red: it is. Sea: it is. Sky: it is. Day: it is. Old: it is. New: it is. Far: it is. Low: it is.",
        "AI：红。AI：绿。AI：蓝。AI：白。AI：黑。AI：黄。AI：紫。AI：青。AI：灰。AI：红的一盏灯。",
    ],
)
def test_what_prose_refuses(text: str) -> None:
    cursor = Cursor((Row("", Prose(12, 200)),))
    with pytest.raises(GrammarError):
        cursor.advance(text.encode())
        cursor.end()


LABELLED = (Row("第1章：", Prose(8, 90)), Row("第2章：", Prose(8, 90)), Row("With the ally:", Prose(8, 90)))


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("他走进了灯塔。第2章", False),  # a chapter that is told in the first one's place
        ("他走进了灯塔。第2天他走了。", True),
        ("他读完了第2章就走了。", True),
        ("He goes away. With the ally: ", False),
        ("He goes away with the ally.", True),
        ("He goes away. With the ally he goes.", True),
    ],
)
def test_a_text_does_not_go_over_to_another_row(text: str, taken: bool) -> None:
    cursor = Cursor(LABELLED)
    cursor.advance("第1章：".encode())
    assert bool(advanced(cursor, text.encode())) is taken


def test_no_two_names_of_a_turn_are_alike_and_none_ends_on_a_title() -> None:
    cursor = Cursor((Row("Hero:", Words(2, 20)), Row("Ally:", Words(2, 20))))
    assert advanced(cursor, b"Hero: Dr\n") is None
    cursor.advance(b"Hero: Dr Ada\nAlly: dr ada")
    assert not cursor.may_end
    cursor.advance(b" Lovelace")
    assert cursor.may_end


def test_a_long_text_is_written_in_parts_which_are_one_text() -> None:
    request = request_for("chapters", "a lighthouse keeper")
    script = tasks.get("chapters").script(request)
    path = ("chapters", 0, "content")
    forms = [row.form for piece in script.pieces for at, row in zip(piece.paths, piece.rows, strict=True) if at == path]
    schema = text_at(script.schema, path)
    assert isinstance(schema, Text) and len(forms) == 3
    lengths = [(form.min_chars, form.max_chars) for form in forms if isinstance(form, Prose)]
    assert sum(least for least, _ in lengths) >= schema.min_chars
    assert sum(most for _, most in lengths) + 2 * len("\n\n") <= schema.max_chars
    data = example(script.schema)
    data["chapters"][0]["content"] = "It rains. It pours.\n\nThe sea rises.\n\nWho goes?\n\nAda goes."
    texts = script.texts(data)
    assert texts[:3] == ["It rains. It pours.", "The sea rises.", "Who goes?\n\nAda goes."]
    assert json.loads(script.answer(texts)) == data


@pytest.mark.parametrize(
    ("language", "parts", "several"), [("a lighthouse keeper", 3, True), ("一个守灯塔的人", 5, False)]
)
def test_a_part_of_a_chinese_chapter_is_one_paragraph(language: str, parts: int, several: bool) -> None:
    """After an empty line small models go on with our side of the conversation, in Chinese."""
    script = tasks.get("chapters").script(request_for("chapters", language))
    forms = [row.form for piece in script.pieces for row in piece.rows if not row.label]
    assert [form.paragraphs for form in forms if isinstance(form, Prose)] == [several] * parts


@pytest.mark.parametrize("text", ["“It rains!” – “(No.)”", '"It rains"... "No?!"', "「下雨了！」——「没有。」"])
def test_what_prose_takes(text: str) -> None:
    cursor = Cursor((Row("", Prose(5, 200)),))
    cursor.advance(text.encode())
    cursor.end()


@pytest.mark.parametrize("language", ["a lighthouse keeper", "一个守灯塔的人"])
@pytest.mark.parametrize("task", TASKS)
def test_a_script_says_all_of_an_answer_and_nothing_that_has_one_right_value(task: str, language: str) -> None:
    request = request_for(task, language)
    script = tasks.get(task).script(request)
    filled = [(path, row) for piece in script.pieces for path, row in zip(piece.paths, piece.rows, strict=True)]
    again = {path for path, count in Counter(path for path, _ in filled).items() if count > 1}
    assert all(isinstance(row.form, Prose) and not row.label for path, row in filled if path in again)
    assert again <= {("chapters", 0, "content")}
    data = example(script.schema)
    for row in (row for piece in script.pieces for row in piece.rows):
        assert len(row.label) < 20
    assert json.loads(script.answer(script.texts(data))) == data
    assert tasks.get(task).constraint(request).check_data(data).canonical


def test_an_earlier_stage_is_told_without_keys_and_fits_its_share() -> None:
    people = {"characters": [{"id": f"id{at}", "name": "Ada", "background": "She sails. " * 90} for at in range(9)]}
    assert told({"title": "Tide", "themes": ["sea", "loss"], "id": 3}, 99, "en") == "Tide, sea, loss"
    assert (
        told({"title": "潮", "themes": ["海", "失去"]}, 99, "zh") == "潮、海、失去"
    )  # a model writes the signs that it read
    for share in (2_000, 300, 40):
        text = told(people, share, "en")
        assert 0 < len(text) <= share and text.startswith("Ada: She sails.") and "{" not in text and "id1" not in text


def test_a_script_knows_the_names_of_the_people_that_the_request_brings() -> None:
    def names(characters: dict[str, object]) -> tuple[str, ...]:
        request = request_for("chapters", "a lighthouse keeper").model_copy(update={"characters": characters})
        return tasks.get("chapters").script(request).names

    assert names({"characters": [{"name": "Ada"}, {"name": "艾米丽"}, {"name": 3}, {}, "Bo", {"name": "x" * 41}]}) == (
        "Ada",
        "艾米丽",
    )
    assert len(names({"characters": [{"name": "Ada"}] * 1000})) == 20
    assert names({"people": []}) == names({"characters": "Ada"}) == ()
    assert tasks.get("blueprint").script(request_for("blueprint", "a ship")).names == ()


@pytest.mark.parametrize("task", ["characters", "story_arc", "chapters"])
def test_a_later_stage_is_told_the_blueprint_s_sentences_and_not_its_labels(task: str) -> None:
    request = request_for(task, "a lighthouse keeper")
    blueprint = {"title": "Tide", "genre": "Gothic", "setting": "The sea is near.", "themes": ["loss"], "tone": "grim"}
    told_of = {
        shape: tasks.get(task).script(request.model_copy(update={"blueprint": shape_of})).material
        for shape, shape_of in {"ours": blueprint, "another's": {"genre": "Gothic"}}.items()
    }
    assert "Tide\nThe sea is near.\n" in told_of["ours"]
    assert not any(label in told_of["ours"] for label in ("Gothic", "loss", "grim"))
    assert "Gothic" in told_of["another's"]


@pytest.mark.parametrize("task", ["story_arc", "chapters"])
def test_a_later_stage_is_told_who_the_people_are_and_no_list_of_their_skills(task: str) -> None:
    ada = {
        "name": "Ada",
        "archetype": "Sailor",
        "background": "She sails.",
        "motivation": "She waits.",
        "skills": ["knots"],
    }
    request = request_for(task, "a lighthouse keeper")
    told_of = {
        shape: tasks.get(task).script(request.model_copy(update={"characters": shape_of})).material
        for shape, shape_of in {"ours": {"characters": [ada]}, "another's": {"people": [ada]}}.items()
    }
    assert "Ada, Sailor: She sails. She waits." in told_of["ours"] and "knots" not in told_of["ours"]
    assert "knots" in told_of["another's"]


def test_what_is_cut_of_an_earlier_stage_ends_with_a_sentence_or_a_word() -> None:
    assert (
        told({"setting": "She sails away at dawn. The sea was wide and cold."}, 40, "en") == "She sails away at dawn."
    )
    assert (
        told({"setting": "The sea was wide and the storm was near the coast"}, 40, "en") == "The sea was wide and the…"
    )


@pytest.mark.parametrize(
    ("said", "colon", "taken"),
    [
        ("守灯塔的人说", "：“", True),
        ("守灯塔的人说", "：", False),
        ("守灯塔的人说", ":", False),
        ("AI", "：", False),
        ("The keeper had one rule", ":", True),
    ],
)
def test_in_chinese_a_colon_leads_to_speech_and_neither_to_a_list_nor_to_a_play(
    said: str, colon: str, taken: bool
) -> None:
    cursor = Cursor((Row("", Prose(5, 200)),))
    cursor.advance(said.encode())
    assert (advanced(cursor, colon.encode()) is not None) == taken


@pytest.mark.parametrize("text", ["ⱼⱯ", "ﬆ", "ʃip", "½"])
def test_letters_that_no_language_s_everyday_spelling_uses_are_not_written(text: str) -> None:
    """A small model that finds no other way takes one of the many tokens that hardly differ in likelihood."""
    for form in (Words(2, 20), Prose(20, 200)):
        cursor = Cursor((Row("", form),), alphabets_of("a lighthouse in Đà Nẵng, Łódź and Århus"))
        assert advanced(cursor, "Đà Nẵng".encode()) and advanced(cursor, text.encode()) is None


@pytest.mark.parametrize(
    ("request_text", "beside", "simplified", "traditional"),
    [
        ("一个关于灯塔的故事", "", True, False),
        ("一個關於燈塔的故事", "", False, True),
        ("山水", "", True, True),  # written alike
        ("山水", "灯塔", True, False),
        ("山水", "燈塔", False, True),
        ("灯塔與燈塔", "", True, True),
        ("灯台の話", "", True, True),  # Japanese writes some of both
    ],
)
def test_chinese_is_simplified_or_traditional_as_the_request_is(
    request_text: str, beside: str, simplified: bool, traditional: bool
) -> None:
    alphabets = alphabets_of(request_text, beside)
    assert [is_of(text, alphabets) for text in ("山水", "们", "們")] == [True, simplified, traditional]
    assert not is_of("喆", alphabets) or "の" in request_text
    assert is_of("喆", alphabets_of("喆的灯塔"))


def test_a_space_alone_begins_no_label() -> None:
    """A small model means a number by it; no token of a word follows."""
    label, prose = (Cursor((Row("", form),)) for form in (Words(2, 20), Prose(20, 200)))
    assert advanced(label, b" ") is None and advanced(label, b" Young") and advanced(prose, b" ")


@pytest.mark.parametrize(
    ("said", "in_name", "endless"),
    [
        ("She saw El", True, False),
        ("El", True, False),
        ("She saw ", False, False),
        ("She saw.", False, False),
        ("守灯塔", False, False),
        ("1932", False, False),
        (f"She {'ha' * 7}", False, False),
        (f"She {'ha' * 15}", False, False),
        (f"She {'ha' * 16}", False, True),
        (f"She {'ha' * 16} left", True, False),
        ("ก" * 40, False, False),  # Thai writes no spaces
    ],
)
def test_a_word_in_hand_may_be_a_name_and_is_endless_from_some_length_on(
    said: str, in_name: bool, endless: bool
) -> None:
    for step in (1, len(said)):  # letter by letter, and in one token
        cursor = Cursor((Row("", Prose(5, 200)),))
        for at in range(0, len(said), step):
            cursor.advance(said[at : at + step].encode())
        assert (cursor.in_name, cursor.in_endless_word) == (in_name, endless)


@pytest.mark.parametrize(("pauses", "begun"), [(8, False), (7, True)])
def test_a_character_is_begun_by_its_bytes_only_if_it_may_come(pauses: int, begun: bool) -> None:
    """EF BC begins wide signs alone: after a space and inside two quotes, of these a pause may come, until there are too many."""
    cursor = Cursor((Row("", Prose(5, 300)),), alphabets_of("守灯塔"))
    cursor.advance(("“他说『" + "山水灯塔山、" * pauses + "石 ").encode())
    assert (advanced(cursor, "，".encode()[:2]) is not None) == begun


def test_characters_that_no_text_has_are_not_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """F3 alone begins a quarter of a million, and a token may be this byte at any place."""
    cursor = Cursor((Row("", Prose(5, 300)),), alphabets_of("守灯塔"))
    cursor.advance("守灯塔的人。".encode())
    tried, copy = Counter[str](), Cursor.copy

    def counted(one: Cursor) -> Cursor:
        tried["copies"] += 1
        return copy(one)

    monkeypatch.setattr(Cursor, "copy", counted)
    advanced(cursor, b"\xf3")
    assert tried["copies"] < 100


def test_a_script_is_named_by_its_words_and_not_by_the_request() -> None:
    task = tasks.get("blueprint")
    names = {task.script(request_for("blueprint", text)).version for text in ("a ship", "an island")}
    chinese = task.script(request_for("blueprint", "一条船")).version
    assert len(names) == 1 and chinese not in names


def test_a_turn_that_is_not_its_rows_is_refused() -> None:
    script = one_turn("Name it.", {"name": Words(2, 9), "fate": Prose(5, 20)})
    assert script.answer(["name: Ship\nfate: It sank."]) == '{"name":"Ship","fate":"It sank."}'
    for texts in ([], ["name: Ship"], ["Ship\nfate: It sank."]):
        with pytest.raises(GrammarError):
            script.answer(texts)
    assert values((Row("", Items(Words(2, 9), 1, 3)),), "sea, night") == [["sea", "night"]]


def test_a_label_begins_no_character_that_it_cannot_end_with() -> None:
    """The last one must be a letter, a digit or ! ?; the first two bytes of a sign like ☘ lead to no such."""
    cursor = Cursor((Row("Readers:", Words(2, 8)),))
    cursor.advance(b"Readers: sevenss")
    with pytest.raises(GrammarError):
        cursor.copy().advance("☘".encode()[:2])
    cursor.advance("é".encode()[:1])
    cursor.advance("é".encode()[1:])
    assert cursor.may_end
