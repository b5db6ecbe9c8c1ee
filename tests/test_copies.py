"""Near-copies: every disguise is seen through, nobody honest is accused, and the index finds what brute force finds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from storyfi_lite.validator import CopyIndex, Entry, Fingerprint, Likeness, fingerprint
from storyfi_lite.validator.copies import HISTORY_JACCARD, jaccard
from tests.answers import ASKED, CHINESE, ENGLISH, JAPANESE, blueprint_request
from tests.stories import request_for

REQUEST = blueprint_request()
Story = dict[str, Any]


def each_text(story: Any, change: Callable[[str], str]) -> Any:
    if isinstance(story, dict):
        return {key: each_text(value, change) for key, value in story.items()}
    if isinstance(story, list):
        return [each_text(value, change) for value in story]
    return change(story) if isinstance(story, str) else story


def reordered(story: Story) -> Story:
    return {key: value[::-1] if isinstance(value, list) else value for key, value in reversed(story.items())}


def sentences_shuffled(text: str) -> str:
    mark = "。" if "。" in text else ". "
    parts = text.split(mark)
    return mark.join(parts[1:] + parts[:1])


def homoglyphs(text: str) -> str:
    return text.translate(str.maketrans("aeocpxyi", "аеосрхуі"))


def every_third(insert: str) -> Callable[[str], str]:
    return lambda text: "".join(char + insert * (at % 3 == 2) for at, char in enumerate(text))


DISGUISES: dict[str, Callable[[Story], Story]] = {
    "none": lambda story: story,
    "fields and items in another order": reordered,
    "sentences in another order": lambda story: each_text(story, sentences_shuffled),
    "upper case": lambda story: each_text(story, str.upper),
    "full width": lambda story: each_text(
        story, lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    ),
    "Cyrillic look-alikes": lambda story: each_text(story, homoglyphs),
    "accents": lambda story: each_text(story, lambda text: text.replace("e", "é").replace("a", "ä").replace("n", "ñ")),
    "combining marks": lambda story: each_text(story, every_third("\u0301")),
    "marks of other scripts": lambda story: each_text(story, every_third("\u05b0\u093e\u20dd\u1abe")),
    "small capitals": lambda story: each_text(story, lambda text: text.translate(str.maketrans("aeon", "ᴀᴇᴏɴ"))),
    "zero-width spaces": lambda story: each_text(story, every_third("\u200b")),
    "tag characters": lambda story: each_text(story, every_third("\U000e0041")),
    "soft hyphens": lambda story: each_text(story, every_third("\u00ad")),
    "other punctuation": lambda story: each_text(
        story, lambda text: text.replace(", ", " - ").replace(".", "!").replace("，", "、").replace("。", "！")
    ),
    "double spaces": lambda story: each_text(story, lambda text: text.replace(" ", "  ")),
    "no spaces": lambda story: each_text(story, lambda text: text.replace(" ", "")),
    "a space after every third letter": lambda story: each_text(story, every_third(" ")),
    "padding of one's own": lambda story: {
        **story,
        "setting": f"{story['setting']} Nobody in the harbour remembers who lit it first or why the bell was sold.",
    },
    "the text said twice": lambda story: {**story, "setting": f"{story['setting']} {story['setting']}"},
    "one half cut off": lambda story: {**story, "setting": story["setting"][: len(story["setting"]) // 2]},
    "a new title and tone": lambda story: {**story, "title": "Quite Another", "genre": "novel", "tone": "merry"},
    "moved to other fields": lambda story: {
        **story,
        "setting": story["core_conflict"],
        "core_conflict": story["setting"],
    },
}


def entry(story: Any, hotkey: str, at_s: float, proven: bool = False) -> Entry:
    return Entry(fingerprint(REQUEST, story, hotkey), at_s, proven)


@pytest.mark.parametrize("story", [ENGLISH, CHINESE, JAPANESE], ids=["en", "zh", "ja"])
@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=list(DISGUISES))
def test_no_disguise_hides_a_copy(story: Story, disguise: Callable[[Story], Story]) -> None:
    copy = disguise(story)
    first, second = CopyIndex().compare([entry(story, "author", 1.0), entry(copy, "copycat", 2.0)])
    assert first.copy_of is None
    assert second.copy_of == "author", second.saw
    (old,) = CopyIndex([fingerprint(REQUEST, story, "author")]).compare([entry(copy, "copycat", 9.0)])
    assert old.copy_of == "author", old.saw


SECOND_ENGLISH = {
    "title": "Salt Grammar",
    "genre": "magical realism",
    "setting": (
        "On a spit of shale north of the fishing town of Corrin stands a lighthouse whose keeper, Oona Brae, is deaf in one "
        "ear. With the other she understands the sea, which dictates a slow alphabet against the rocks each night. She writes "
        "it down in ledgers that fill the spiral stair. The town thinks the ledgers are tide tables, and pays her for them."
    ),
    "core_conflict": (
        "A scholar arrives to buy the ledgers and finds that the sea is reciting the names of people not yet drowned; Oona "
        "must decide whether a warning is a theft from the deep."
    ),
    "themes": ["language", "fate", "solitude"],
    "tone": "wry and tidal",
    "target_audience": "readers of magical realism",
}


def test_honest_answers_to_one_prompt_are_no_copies() -> None:
    found = CopyIndex().compare([entry(ENGLISH, "a", 1.0), entry(SECOND_ENGLISH, "b", 2.0)])
    assert [like.copy_of for like in found] == [None, None]
    assert all(like.shared < 0.05 for like in found)


def test_of_equal_answers_only_the_first_received_stands() -> None:
    entries = [entry(ENGLISH, hotkey, at_s) for hotkey, at_s in [("c", 3.0), ("a", 5.0), ("b", 2.0), ("d", 2.5)]]
    assert [like.copy_of for like in CopyIndex().compare(entries)] == ["b", "b", None, "b"]


def test_at_the_same_instant_the_hotkey_decides_whatever_the_order() -> None:
    both = [entry(ENGLISH, "b", 1.0), entry(ENGLISH, "a", 1.0)]
    assert [like.copy_of for like in CopyIndex().compare(both)] == ["a", None]
    assert [like.copy_of for like in CopyIndex().compare(both[::-1])] == [None, "a"]


def test_who_proves_an_answer_wrote_it_even_if_a_thief_was_faster() -> None:
    entries = [entry(ENGLISH, "thief", 1.0), entry(ENGLISH, "author", 2.0, proven=True)]
    assert [like.copy_of for like in CopyIndex().compare(entries)] == ["author", None]


def test_ones_own_old_answer_is_a_replay() -> None:
    index = CopyIndex()
    index.add([fingerprint(REQUEST, ENGLISH, "same")])
    (like,) = index.compare([entry(ENGLISH, "same", 1.0)])
    assert like.copy_of == "same" and "given before" in like.saw


def test_another_task_is_another_kind_of_answer() -> None:
    other = fingerprint(request_for("story_arc"), ENGLISH, "a")
    (like,) = CopyIndex([other]).compare([entry(ENGLISH, "b", 1.0)])
    assert like.copy_of is None


def test_what_stands_in_the_request_belongs_to_nobody() -> None:
    """Two miners that quote the earlier stage alike copy the request, not each other."""
    request = request_for("characters", blueprint=ENGLISH)
    quoting = [{"characters": [{"background": ENGLISH["setting"], "name": name}]} for name in ("Ada", "Bo")]
    kept = [fingerprint(request, story, story["characters"][0]["name"]).passages for story in quoting]
    assert [len(passages) for passages in kept] == [0, 0]


def test_a_phrase_that_everybody_uses_is_no_evidence() -> None:
    rng = random.Random(5)
    stock = ENGLISH["setting"] + ENGLISH["core_conflict"]
    old = [fingerprint(REQUEST, {"setting": stock + gibberish(rng, 700)}, f"m{at}") for at in range(150)]
    (like,) = CopyIndex(old).compare([entry({"setting": stock + gibberish(rng, 300)}, "new", 1.0)])
    assert like.copy_of is None and like.shared < 0.1


@pytest.mark.parametrize("story", [{}, {"title": ""}, {"title": "a"}, {"title": 1}, {"themes": [[], {}]}])
def test_answers_without_text_are_like_nothing(story: Any) -> None:
    index = CopyIndex([fingerprint(REQUEST, story, "old")])
    found = index.compare([entry(story, "a", 1.0), entry(story, "b", 2.0)])
    assert [like.copy_of for like in found] == [None, None]


def test_an_empty_round_and_an_empty_index() -> None:
    assert CopyIndex().compare([]) == ()
    (like,) = CopyIndex().compare([entry(ENGLISH, "a", 1.0)])
    assert like.copy_of is None and like.shared == 0.0


def test_the_oldest_answers_are_forgotten_first() -> None:
    rng = random.Random(3)
    stories = [{"setting": gibberish(rng, 500)} for _ in range(30)]
    index = CopyIndex(max_answers=16)
    for at, story in enumerate(stories):
        index.add([fingerprint(REQUEST, story, f"m{at}")])
    assert 16 <= len(index) <= 18
    newest, oldest = index.compare([entry(stories[-1], "x", 1.0), entry(stories[0], "y", 2.0)])
    assert newest.copy_of == "m29" and oldest.copy_of is None


def test_a_fingerprint_survives_the_database() -> None:
    made = fingerprint(REQUEST, CHINESE, "a")
    read = Fingerprint.from_bytes(made.task, made.hotkey, made.to_bytes())
    assert jaccard(made, read) == 1.0 and (read.passages == made.passages).all()
    assert read.to_bytes() == made.to_bytes()


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    """Validators that exchange or keep fingerprints need this to stay: pinned."""
    made = fingerprint(REQUEST, {"title": "The sea, the SEA 大海"}, "a")
    assert made.keys.tolist() == [
        86044898,
        272596852,
        273811296,
        437367002,
        761983224,
        1255177454,
        1406745883,
        1895493301,
        2153043795,
        2671198277,
    ]
    assert made.counts.tolist() == [2, 2, 2, 1, 1, 1, 1, 2, 2, 2]
    assert made.passages.tolist() == [712556294]


def gibberish(rng: random.Random, length: int) -> str:
    return "".join(rng.choices("etaoinshrdlu ", [12, 9, 8, 8, 7, 7, 6, 6, 6, 4, 4, 3, 18], k=length))


def changed(words: list[str], share: float, rng: random.Random) -> list[str]:
    return [
        "".join(rng.choice("abcdefghijklm") if rng.random() < share / 2 else char for char in word) for word in words
    ]


def cut(words: list[str], share: float, rng: random.Random) -> list[str]:
    return words[int(len(words) * share) :]


def padded(words: list[str], share: float, rng: random.Random) -> list[str]:
    return words + gibberish(rng, int(len(" ".join(words)) * share)).split()


@pytest.mark.parametrize("change", [changed, cut, padded])
def test_the_index_finds_exactly_what_brute_force_finds(change: Callable[..., list[str]]) -> None:
    """Around the threshold. With its words in another order a text keeps its bigrams and loses its passages, so that
    the bigrams alone decide. Cutting and padding differ in size as far as the threshold allows."""
    rng = random.Random(11)
    texts = [gibberish(rng, rng.randrange(500, 900)) for _ in range(80)]
    old = [fingerprint(REQUEST, {"setting": text}, f"t{at}") for at, text in enumerate(texts)]
    queries = []
    for text in texts:
        words = text.split()
        rng.shuffle(words)
        mixed = " ".join(change(words, rng.uniform(0.02, 0.16), rng))
        queries.append(fingerprint(REQUEST, {"setting": mixed}, "q"))
    expected = [{one.hotkey for one in old if jaccard(one, query) > HISTORY_JACCARD} for query in queries]
    found = CopyIndex(old).compare([Entry(query, float(at)) for at, query in enumerate(queries)])
    assert 20 < sum(map(bool, expected)) < 70
    for like, names in zip(found, expected, strict=True):
        assert like.copy_of in names if names else like.copy_of is None
        assert (like.copy_of is None) or "Jaccard" in like.saw


def test_long_honest_texts_of_one_language_are_not_alike() -> None:
    """As bare sets of bigrams these would be: there are only so many pairs of letters."""
    one, other = (fingerprint(REQUEST, {"content": gibberish(random.Random(seed), 36_000)}, "m") for seed in (1, 2))
    assert len(set(one.keys.tolist()) & set(other.keys.tolist())) == len(
        set(one.keys.tolist()) | set(other.keys.tolist())
    )
    real = [fingerprint(blueprint_request(asked), json.loads(json.dumps(story)), "m") for asked, story in ASKED]
    assert max(jaccard(a, b) for a in real for b in real if a is not b) < 0.5


def test_a_likeness_is_data() -> None:
    assert Likeness("a", 0.7, "why") == Likeness("a", 0.7, "why")
