"""Defines what a task is: the schema of its answer, the script by which a model of ours writes it turn by turn, and the prompt by
which an API is asked for all of it at once. Knows no model, engine, transport or chain."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from storyfi_lite.errors import BadInput
from storyfi_lite.grammar import Constraint
from storyfi_lite.grammar.prose import Form, Items, Prose, Row, Words, alphabets_of, ends_a_sentence
from storyfi_lite.grammar.schema import Array, Node, Object, Text, as_brief, dump
from storyfi_lite.grammar.script import BETWEEN_PARTS, Path, Piece, Script, text_at
from storyfi_lite.protocol.messages import StoryRequest

Language = Literal["zh", "en"]


MAX_NAMES, MAX_NAME_CHARS = 20, 40  # of those that are written as they are
RULES_VERSION = 6  # of grammar/prose.py and engine/rule.py: what a turn may hold and how it is closed


@dataclass(frozen=True)
class Messages:
    """Holds the prompt for an API, in two turns."""

    system: str
    user: str


@dataclass(frozen=True)
class Turn:
    """Says what one turn of a script asks for. `rows`: a label that costs no choice, and the place of the text in the answer.
    `one_paragraph`: even of a text that may have several."""

    name: str
    ask: str
    rows: tuple[tuple[str, Path], ...]
    one_paragraph: bool = False


@dataclass(frozen=True)
class Task:
    """Defines one task. `needs` names the earlier stages that a request must carry. `told` is what of a request a script's writer sees."""

    name: str
    needs: tuple[str, ...]
    schema_of: Callable[[StoryRequest], Object]
    rules: Callable[[Any], Iterable[str]]
    instructions: Callable[[Language], str]
    material: Callable[[StoryRequest, Language], str]
    told: Callable[[StoryRequest, Language], str]
    turns: Callable[[StoryRequest, Language], tuple[Turn, ...]]

    def constraint(self, request: StoryRequest, brief: bool = False) -> Constraint:
        """Return the answer's grammar; with `brief`, the one that a machine short of time writes with. Raises BadInput
        if the request lacks what the task needs."""
        for stage in self.needs:
            if getattr(request, stage) is None:
                raise BadInput(f"a {self.name} request needs `{stage}`")
        schema = self.schema_of(request)
        return _constraint(as_brief(schema) if brief else schema, self.rules)

    def constraint_named(self, request: StoryRequest, sha256: str) -> Constraint | None:
        """Return the one of both grammars that a proof's header names; None if it is neither."""
        both = (self.constraint(request), self.constraint(request, brief=True))
        return next((constraint for constraint in both if constraint.sha256 == sha256), None)

    def script(self, request: StoryRequest, constraint: Constraint | None = None) -> Script:
        """Return the turns that write the answer, of the lengths of `constraint`, this task's own if None. Raises BadInput if the
        input cannot be put into a prompt."""
        check_input(request.user_input)
        schema = (constraint or self.constraint(request)).schema
        language = language_of(request.user_input)
        turns = self.turns(request, language)
        spelled = dump([RULES_VERSION, SYSTEM[language], [[turn.ask, turn.rows] for turn in turns]])
        version = f"{self.name}/2:{hashlib.sha256(spelled.encode()).hexdigest()[:16]}"
        parts = Counter(path for turn in turns for _, path in turn.rows)
        pieces = tuple(
            Piece.of(
                turn.name,
                turn.ask,
                *(
                    (path, Row(label, _form(text_at(schema, path), parts[path], turn.one_paragraph)))
                    for label, path in turn.rows
                ),
            )
            for turn in turns
        )
        told = self.told(request, language)
        alphabets = alphabets_of(request.user_input, told)
        return Script(version, SYSTEM[language], told, pieces, schema, alphabets, _names(request))

    def messages(self, request: StoryRequest) -> Messages:
        """Return the prompt for an API. Raises BadInput if the input cannot be put into one."""
        check_input(request.user_input)
        language = language_of(request.user_input)
        return Messages(f"{self.instructions(language)}\n{_WHOLE[language]}", self.material(request, language))


SYSTEM = {
    "zh": "你是一位小说家，文笔平实生动，善写具体的人、物和地方。只写所要的内容，用完整的句子，不解释，不列清单。",
    "en": "You are a novelist. You write plain, vivid prose about particular people, things and places. "
    "Write only what you are asked for, in whole sentences, without lists or remarks.",
}


_WHOLE = {"zh": "每段文字都以完整的句子结束。", "en": "Every text of more than a phrase ends with a whole sentence."}


def _names(request: StoryRequest) -> tuple[str, ...]:
    """Return the names of the people that an earlier stage made, whoever wrote it."""
    people = (request.characters or {}).get("characters")
    names = [one.get("name") for one in people if isinstance(one, dict)] if isinstance(people, list) else []
    return tuple(name for name in names[:MAX_NAMES] if isinstance(name, str) and len(name) <= MAX_NAME_CHARS)


def _form(node: Text | Array, parts: int, one_paragraph: bool) -> Form:
    """Return what one turn of `parts` writes of the node's text."""
    if isinstance(node, Array):
        assert isinstance(node.item, Text)
        return Items(Words(node.item.min_chars, node.item.max_chars), node.min_items, node.max_items)
    if node.sentences:
        between = (parts - 1) * len(BETWEEN_PARTS)
        return Prose(
            -(-node.min_chars // parts), (node.max_chars - between) // parts, node.newlines and not one_paragraph
        )
    return Words(node.min_chars, node.max_chars)


@lru_cache(maxsize=64)
def _constraint(schema: Node, rules: Callable[[Any], Iterable[str]]) -> Constraint:
    assert isinstance(schema, Object)
    return Constraint(schema, rules)


def language_of(text: str) -> Language:
    """Return the language of the instructions: Chinese for a text in Han characters without kana or hangul, English ones for
    every other script. The story itself is asked for in the language of the input."""
    names = [unicodedata.name(char, "") for char in text if char.isalpha()]
    han = sum(name.startswith("CJK") for name in names)
    other_cjk = sum(name.startswith(("HIRAGANA", "KATAKANA", "HANGUL")) for name in names)
    return "zh" if han * 5 >= len(names) and han > 0 and not other_cjk else "en"


def check_input(text: str) -> None:
    """Raise BadInput for text that is no text: blank, lone surrogates, control characters other than line feeds and tabs."""
    if not text.strip():
        raise BadInput("`user_input` is blank")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadInput("`user_input` holds a lone surrogate, which is no character") from None
    control = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)
    if control:
        raise BadInput(f"`user_input` holds the control character U+{ord(control[0]):04X}")


# Between labels, before what is told of them, and between sentences: a model writes the signs that it read.
_BETWEEN: dict[Language, tuple[str, str, str]] = {"zh": ("、", "：", ""), "en": (", ", ": ", " ")}


def told(stage: dict[str, Any], max_chars: int, language: Language) -> str:
    """Write an earlier stage as a writer would read it, in at most `max_chars`: its names and labels on one line, then its sentences;
    one line for each character or chapter; no keys and no numbers. Cut as `shortened` cuts. Sentences come last, because a small
    model goes on in the manner of what it read last."""
    return _fitting(stage, max_chars, lambda cut: "\n".join(_lines(cut, *_BETWEEN[language])))


def _lines(stage: dict[str, Any], comma: str, colon: str, space: str) -> list[str]:
    """Return a line of labels, the sentences, and for each character or chapter of a list its labels and its sentences."""
    lists = [
        key for key, value in stage.items() if isinstance(value, list) and any(isinstance(one, dict) for one in value)
    ]
    labels, prose = _said({key: value for key, value in stage.items() if key not in lists})
    lines = [comma.join(labels), *prose]
    for labels, prose in (_said(one) for key in lists for one in stage[key]):
        lines.append(colon.join(filter(None, (comma.join(labels), space.join(prose)))))
    return [line for line in lines if line]


def _said(value: Any) -> tuple[list[str], list[str]]:
    """Return the texts in a value, in their order: labels, and whole sentences."""
    if isinstance(value, str):
        text = " ".join(value.split())
        return ([], [text]) if ends_a_sentence(text) else ([text], [])
    if isinstance(value, dict):
        value = [item for key, item in value.items() if key != "id"]
    if not isinstance(value, list):
        return [], []
    found = [_said(item) for item in value]
    return [label for labels, _ in found for label in labels], [text for _, prose in found for text in prose]


def fenced(text: str) -> str:
    """Put the text between two fence lines that do not occur in it: to the model it is material, not instructions."""
    fence = "-----"
    while fence in text:
        fence += "-"
    return f"{fence}\n{text}\n{fence}"


def shortened(stage: dict[str, Any], max_chars: int) -> str:
    """Write an earlier stage as compact JSON of at most `max_chars`: the longest strings are cut first, each to the largest
    of a few lengths at which the whole fits; if none does, the JSON itself is cut."""
    return _fitting(stage, max_chars, dump)


def _fitting(stage: dict[str, Any], max_chars: int, spelled: Callable[[Any], str]) -> str:
    try:
        for longest in (10_000, 600, 400, 250, 160, 100, 60, 30):
            text = spelled(_cut(stage, longest))
            if len(text) <= max_chars:
                return text
    except (RecursionError, ValueError, TypeError):
        raise BadInput("an earlier stage is not plain JSON, or nested too deeply") from None
    return text[:max_chars]


def _cut(value: Any, longest: int) -> Any:
    if isinstance(value, str):
        value = value.encode(errors="replace").decode()
        return value if len(value) <= longest else _begun(value[: longest - 1])
    if isinstance(value, dict):
        return {str(key): _cut(item, longest) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, longest) for item in value]
    return value


def _begun(text: str) -> str:
    """Return the beginning of a text without the word or, if half of it or more is left, the sentence that was cut: models go
    on like what they read."""
    sentences = re.match(r"(.*[.!?。！？][\"”’」』]*)(?:\s|(?<=[。！？]))", text, re.DOTALL)
    if sentences and len(sentences[1]) * 2 >= len(text):
        return sentences[1]
    return (text.rpartition(" ")[0] or text) + "…"


def no_rules(data: Any) -> Iterable[str]:
    return ()
