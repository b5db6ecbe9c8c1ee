"""Prose and noise: what each kind of noise costs of the 30 content points, and what human prose keeps, in both languages."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from storyfi_lite import tasks
from storyfi_lite.validator import Context, score
from storyfi_lite.validator.readable import Reading
from tests.answers import ASKED, as_bytes, blueprint_request

SAMPLES = json.loads((Path(__file__).parent / "prose.json").read_text("utf-8"))
PROSE = [(language, *texts) for language in ("en", "zh") for texts in SAMPLES[language]]
NOISE = ["words", "sentence", "digits", "number letters", "other scripts", "few", "instructions"]


def content(asked: str, setting: str, conflict: str) -> float:
    """Content points, of 30."""
    data = {"title": asked, "setting": setting, "core_conflict": conflict}
    return sum(part.points for part in score(as_bytes(data), Context(blueprint_request(asked), 1.0)).parts[6:])


def noise(kind: str, language: str, text: str) -> str:
    """Of the same length and the same words."""
    rng, space = random.Random(3), " " if language == "en" else ""
    words = text.rstrip("。.").split() if language == "en" else list(text.rstrip("。."))
    if kind == "words":
        rng.shuffle(words)
    elif kind == "sentence":
        words = [*words[:9], "." if language == "en" else "。"] * (len(words) // 10)
    elif kind == "digits":
        words = [word if at % 2 else str(rng.randint(1, 2026)) for at, word in enumerate(words)]
    elif kind == "number letters":
        words = [word if at % 2 else "".join(rng.choices("ⅠⅢⅩⅻ①", k=3)) for at, word in enumerate(words)]
    elif kind == "other scripts":
        words = [word if at % 4 else "".join(rng.choices("ﾆﾦﾧ가나다лдж", k=4)) for at, word in enumerate(words)]
    elif kind == "few":
        words = [rng.choice(words[:12]) for _ in words]
    else:
        words = [tasks.get("blueprint").instructions("en" if language == "en" else "zh")[-len(text) :]]
    return space.join(words) + ("." if language == "en" else "。")


@pytest.mark.parametrize(("language", "setting", "conflict"), PROSE)
def test_human_prose_keeps_28_of_30(language: str, setting: str, conflict: str) -> None:
    assert content(setting[:60], setting, conflict) >= 28


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_noise_of_every_kind_gets_at_most_10(language: str, kind: str) -> None:
    for _, setting, conflict in (sample for sample in PROSE if sample[0] == language):
        assert content(setting[:60], noise(kind, language, setting), noise(kind, language, conflict)) <= 10


@pytest.mark.parametrize(("asked", "setting", "conflict"), SAMPLES["small_models"])
def test_what_small_models_wrote_under_a_json_prompt_gets_at_most_10(asked: str, setting: str, conflict: str) -> None:
    assert content(asked, setting, conflict) <= 10


@pytest.mark.parametrize("end", ["", ",", " and", "，"])
def test_a_text_that_stops_inside_a_sentence_loses(end: str) -> None:
    for _, setting, conflict in PROSE:
        whole = content(setting[:60], setting, conflict)
        cut = content(setting[:60], setting, conflict.rstrip("\"'”.。!?！？") + end)
        assert whole * 0.75 < cut < whole * 0.85  # one of two texts


@pytest.mark.parametrize("end", ['."', "?’", "!)", "…", "。」", "！”", "。）", ".\n"])
def test_a_sentence_ends_inside_quotes_and_brackets_too(end: str) -> None:
    for _, setting, conflict in PROSE:
        assert "cut off" not in Reading([setting, conflict.rstrip("\"'”.。!?！？") + end]).worth(ASKED[0][0])[1]


def test_a_phrase_need_not_end_as_a_sentence_does() -> None:
    for phrase in ("to win back the mill that her father gambled away", "不再让任何人离开这座岛"):
        assert Reading([phrase]).worth(ASKED[0][0]) == (1.0, "")


def test_each_fault_is_named_and_they_multiply() -> None:
    setting, conflict = SAMPLES["en"][0]
    half, why = Reading([setting, conflict.rstrip(".") + " and"]).worth(ASKED[0][0])
    assert why == "50% of the texts cut off" and half == pytest.approx(0.8)
    loop, why = Reading([setting, setting.rstrip(".") + " and"]).worth(ASKED[0][0])
    assert "said before" in why and "cut off" in why and loop < 0.5


@pytest.mark.parametrize("data", [data for _, data in ASKED[2:]], ids=["ja", "th"])
def test_a_language_that_the_tables_do_not_know_costs_nothing(data: dict[str, str]) -> None:
    assert Reading([data["setting"], data["core_conflict"]]).worth("42") == (1.0, "")


@pytest.mark.parametrize(
    "text",
    [
        "Le gardien du phare monte chaque soir les cent marches, allume la lampe et écrit le temps dans son cahier. Depuis que sa "
        "fille est partie, la mer lui parle à marée basse, et il n'ose plus dormir.",
        "Jeden Abend steigt der alte Wärter die hundert Stufen hinauf, zündet die Lampe an und schreibt das Wetter in sein Heft. "
        "Seit seine Tochter fort ist, spricht bei Ebbe das Meer mit ihm.",
    ],
)
def test_french_and_german_are_not_taken_for_shuffled_english(text: str) -> None:
    assert Reading([text]).worth(text[:40]) == (1.0, "")


def test_a_list_of_nouns_is_no_answer_to_a_request_in_english() -> None:
    nouns = """dragon castle forest sword river mountain lantern harbour winter letter bridge garden mirror island
    soldier candle thunder village anchor feather kingdom orchard shadow copper marble harvest"""
    assert content("a story about a dragon and a castle", ", ".join(nouns.split()) + ".", "") == 0


@pytest.mark.parametrize("text", ["", "\0", "!!!", "字" * 2, "7" * 500, "a" * 500, "\u0301" * 500])
def test_any_text_is_read_without_a_fall(text: str) -> None:
    assert 0 <= Reading([text]).worth(ASKED[0][0])[0] <= 1
