"""Lays a story out for a reader: which of its fields are headings, paragraphs and lists, and what they are called in its language.

Knows no format: formats.py spells what is laid out here. Fields of a writer's own (`Open` in a task's schema) may hold
any JSON, and are shown as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storyfi_lite.grammar.schema import dump
from storyfi_lite.protocol.messages import StoryResponse
from storyfi_lite.story.saved import SavedAnswer
from storyfi_lite.tasks.base import Language, language_of

if TYPE_CHECKING:
    from storyfi_lite.validator.verdict import Verdict


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Prose:
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Holds rows of a label and what it says."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Points:
    """Holds a list whose items begin with what matters most."""

    items: tuple[tuple[str, str], ...]
    is_numbered: bool = False


Block = Heading | Prose | Facts | Points


@dataclass(frozen=True)
class Document:
    """Holds a story that is laid out. `parts` are what a reader reads: each begins with its heading. `claims` say of each answer who wrote it, and what holds
    of that."""

    language: Language
    title: str
    subtitle: str
    parts: tuple[tuple[Block, ...], ...]
    claims: tuple[tuple[str, ...], ...]


WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "setting": "The world", "core_conflict": "The conflict", "themes": "Themes", "characters": "The people",
        "background": "Past", "motivation": "Wish", "skills": "Skills", "personality_traits": "Nature",
        "with": "With {who}", "story_arc": "The outline", "chapter": "Chapter {id}: {title}",
        "choices": "What now?", "target_audience": "For", "protagonist": "the hero", "ally": "the ally",
        "rival": "the rival", "mentor": "the mentor", "wildcard": "the stranger", "opening": "Opening",
        "midpoint": "Middle", "ending": "Ending", "blueprint": "Blueprint",
        "made": "Who wrote this", "part": "Part", "model": "Model", "file": "File", "seed": "Seed", "length": "Length",
        "proof": "Proof", "tokens": "{count} tokens in {seconds:.0f} s", "api": "an API; cannot be proven",
        "open": "not replayed yet", "none": "carries no proof", "colon": ": ", "comma": ", ",
        "how": "This file carries all that a replay needs: storyfi-lite prove FILE",
    },
    "zh": {
        "setting": "世界", "core_conflict": "冲突", "themes": "主题", "characters": "人物", "background": "过去",
        "motivation": "心愿", "skills": "本领", "personality_traits": "性格", "with": "与{who}", 
        "story_arc": "大纲", "chapter": "第{id}章 {title}", "choices": "接下来怎么办？",
        "target_audience": "读者", "protagonist": "主角", "ally": "盟友", "rival": "对手", "mentor": "导师",
        "wildcard": "变数", "opening": "开头", "midpoint": "中点", "ending": "结尾", "blueprint": "蓝图",
        "made": "由谁所写", "part": "部分", "model": "模型", "file": "文件", "seed": "种子", "length": "长度",
        "proof": "证明", "tokens": "{count} 个词元，{seconds:.0f} 秒", "api": "来自 API，无法证明", "open": "尚未重放",
        "none": "不带证明", "colon": "：", "comma": "、", "how": "重放所需的一切都在本文件中：storyfi-lite prove FILE",
    },
}  # fmt: skip
STATUS: dict[Language, dict[str, str]] = {
    "en": {"proven": "proven", "refuted": "refuted", "inconclusive": "inconclusive"},
    "zh": {"proven": "已证明", "refuted": "已推翻", "inconclusive": "尚无定论"},
}


def lay_out(user_input: str, answers: Sequence[SavedAnswer], verdicts: Mapping[str, Verdict]) -> Document:
    """Lay out a story. `verdicts`: by the answers' names, for those that were replayed."""
    language = language_of(user_input)
    words = WORDS[language]
    first = answers[0].data
    labels = [str(first[key]) for key in ("genre", "tone") if key in first]
    in_order = sorted(answers, key=lambda answer: answer.name == "story_arc")  # it tells how the chapters end
    parts = [part for answer in in_order for part in _parts(answer, words)]
    claims = tuple(
        _claim(answer, answer.response, words, STATUS[language], verdicts.get(answer.name))
        for answer in answers
        if answer.response
    )
    title = str(first.get("title") or user_input)
    return Document(language, title, " · ".join(labels), tuple(parts), claims)


def _parts(answer: SavedAnswer, words: Mapping[str, str]) -> Iterator[tuple[Block, ...]]:
    data = answer.data
    if "setting" in data:
        yield (Heading(words["setting"]), _prose(data["setting"]))
        themes = (words["themes"], words["comma"].join(data["themes"]))
        facts = Facts((themes, (words["target_audience"], data["target_audience"])))
        yield (Heading(words["core_conflict"]), _prose(data["core_conflict"]), facts)
    elif "hooks" in data:
        heading = Heading(f"{words['story_arc']}{words['colon']}{data['title']}")
        chapters = Points(tuple((one["title"], one["description"]) for one in data["chapters"]), is_numbered=True)
        hooks = Facts(tuple((words.get(at, at), _text(said)) for at, said in data["hooks"].items()))
        yield (heading, _prose(data["description"]), chapters, hooks)
    elif "characters" in data:
        yield (Heading(words["characters"]), *(block for one in data["characters"] for block in _person(one, words)))
    else:
        for chapter in data["chapters"]:
            heading = Heading(words["chapter"].format(id=chapter["id"], title=chapter["title"]))
            choices = Points(tuple((one["text"], _effect(one["consequences"])) for one in chapter["choices"]))
            yield (heading, _prose(chapter["content"]), Heading(words["choices"], 3), choices)


def _person(one: Mapping[str, Any], words: Mapping[str, str]) -> Iterator[Block]:
    yield Heading(f"{one['name']} – {words.get(one['id'], one['id'])}, {one['archetype']}", 3)
    yield _prose(one["background"])
    lists = ((words[key], words["comma"].join(map(str, one[key]))) for key in ("skills", "personality_traits"))
    others = (
        (words["with"].format(who=words.get(other, other)), _text(said)) for other, said in one["relationships"].items()
    )
    yield Facts(((words["motivation"], one["motivation"]), *lists, *others))


def _effect(consequences: Any) -> str:
    effect = consequences.get("effect") if isinstance(consequences, dict) else None
    return effect if isinstance(effect, str) else _text(consequences)


def _prose(text: str) -> Prose:
    return Prose(tuple(line.strip() for line in text.splitlines() if line.strip()))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dump(value)


def claim_head(words: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(words[key] for key in ("part", "model", "file", "seed", "length", "proof"))


def _claim(
    answer: SavedAnswer,
    said: StoryResponse,
    words: Mapping[str, str],
    status: Mapping[str, str],
    verdict: Verdict | None,
) -> tuple[str, ...]:
    name, _, id = answer.name.partition(" ")
    proof = said.proof
    local = said.miner_mode == "LocalModelLoader"
    held = words["open"] if proof else words["none"] if local else words["api"]
    return (
        words[name].format(id=id, title="").strip(" :") if name in words else answer.name,
        f"{said.model_name} {proof.quantization}" if proof else said.model_name,
        f"sha256 {proof.model_sha256[:16]}…" if proof else "",
        str(proof.seed) if proof else "",
        words["tokens"].format(count=len(said.tokens or ()), seconds=said.generation_time) if said.tokens else "",
        f"{status[verdict.status]}{words['colon']}{verdict.reason}" if verdict else held,
    )
