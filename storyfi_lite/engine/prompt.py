"""Turns a chat template into the tokens of a conversation. A stranger's text can never become a control token.

The template comes from the GGUF's metadata (or the registry, where the file has none) and is rendered in jinja2's
sandbox with placeholders for the contents; the template's parts are tokenized with control tokens, the contents without.
It is rendered as transformers does (chat_template_utils.py: the same extensions, filters and variables), with every switch
for thinking off; where a prompt ends inside a thought all the same, the thought is closed. For a script that thinks, the first
turn's prompt ends inside a thought, and what closes it stands where another turn's words would.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from storyfi_lite.errors import BadInput

if TYPE_CHECKING:
    from jinja2 import Environment, Template

    from storyfi_lite.engine.vocabulary import Vocabulary
    from storyfi_lite.grammar.script import Script

# Private-use characters: in no template, and replaced before anything is tokenized.
_SYSTEM, _USER, _ANSWER, _NEXT = ("\ue000system\ue001", "\ue000user\ue001", "\ue000answer\ue001", "\ue000next\ue001")
# For templates that tell the model today's date: one day for ever, or a proof could not be replayed the day after.
_PROMPT_DATE = datetime.date(2025, 1, 1)
_SPLIT = re.compile(f"({_SYSTEM}|{_USER}|{_NEXT})")
# The switches for thinking that models' templates know; who does not know one ignores it.
_NO_THINKING = {
    "enable_thinking": False,
    "thinking": False,
    "reasoning": False,
    "thinking_budget": 0,
    "thinking_mode": "disabled",
}
_THINKING = {"enable_thinking": True, "thinking": True, "reasoning": True, "thinking_mode": "enabled"}
# What opens a thought, and what closes it.
_THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
    "<|open|>think<|sep|>": "<|close|>think<|sep|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "Here are my reasoning steps:": "[BEGIN FINAL RESPONSE]",
    "<|channel|>analysis<|message|>": "<|end|><|start|>assistant<|channel|>final<|message|>",
}


@dataclass(frozen=True)
class Conversation:
    """Holds the token ids of all that the model does not write: `opening` is what stands before its first turn, `bridges` what stands
    between one turn and the next. For a script that thinks, the first bridge closes the thought, and `thought_mark` is the text that
    a model closes it with."""

    opening: tuple[int, ...]
    bridges: tuple[tuple[int, ...], ...] = ()
    thought_mark: str = ""

    @property
    def sha256(self) -> str:
        """Hash the token ids in their order, as little-endian 32-bit integers; -1 stands for a turn of the model's."""
        tokens = [*self.opening, *(token for bridge in self.bridges for token in (-1, *bridge))]
        return hashlib.sha256(b"".join(token.to_bytes(4, "little", signed=True) for token in tokens)).hexdigest()

    def with_answer(self, tokens: Sequence[int], end: int) -> tuple[list[int], list[int]]:
        """Return all that is decoded when these are the answer's tokens, and for each of them the place in it of the one that
        predicts it. `end` closes a turn; it is not decoded itself, the bridge is."""
        fed, before, turn = list(self.opening), [], 0
        for token in tokens:
            before.append(len(fed) - 1)
            if token != end:
                fed.append(token)
            elif turn < len(self.bridges):
                fed += self.bridges[turn]
                turn += 1
        return fed, before

    def __len__(self) -> int:
        return len(self.opening) + sum(map(len, self.bridges))


class ChatTemplate:
    """Holds a compiled template. Raises BadInput if it does not compile, renders no user turn, or no second one."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        failures: list[Exception] = []
        try:
            template = _environment().from_string(source)
        except Exception as error:
            raise _refusal(error) from None
        # Content as text, or as a list of parts; that there are no tools as transformers says it, or not at all, as llama.cpp.
        for parts, no_tools in itertools.product((False, True), ({"tools": None, "documents": None}, {})):
            variables = {"bos_token": bos, "eos_token": eos, **no_tools, **_NO_THINKING}
            try:
                opening, bridge, written = _rendered(template, parts, variables)
                self._opening = opening + _answer_begins(opening.partition(_USER)[2], written)
                self._bridge = bridge + _answer_begins(bridge.partition(_NEXT)[2], written)
                self._opening.encode(), self._bridge.encode()  # UnicodeEncodeError: a surrogate is no text
                self._source = source
                self._render_thinking = partial(_rendered, template, parts, {**variables, **_THINKING})
                return
            except Exception as error:  # a template is a program: it can fail in any way
                failures.append(error)
        raise _refusal(failures[0])

    def conversation(self, vocabulary: Vocabulary, script: Script) -> Conversation:
        """Return the script's turns as token ids, begun with the model's own first token if it has one."""
        first, *others = script.asks
        begun, closed, mark = self._thought if script.think_tokens else (self._opening, "", "")
        opening = self._tokens(vocabulary, begun, {_SYSTEM: script.system, _USER: first})
        if vocabulary.bos is not None and opening[:1] != [vocabulary.bos]:
            opening.insert(0, vocabulary.bos)
        bridges = [self._tokens(vocabulary, self._bridge, {_NEXT: ask}) for ask in others]
        if mark:
            bridges.insert(0, self._tokens(vocabulary, closed, {}))
        return Conversation(tuple(opening), tuple(map(tuple, bridges)), mark)

    @cached_property
    def _thought(self) -> tuple[str, str, str]:
        """Return the prompt that ends inside a thought, what closes the thought so that the answer begins, and the mark that this begins
        with. Raises BadInput if the template knows no thoughts."""
        opening, _, _ = self._render_thinking()
        before, _, header = opening.partition(_USER)
        opener = max(_THOUGHTS, key=header.rfind)
        at = header.rfind(opener)
        if at < 0:
            known = [opener for opener, mark in _THOUGHTS.items() if opener in self._source or mark in self._source]
            if not known:
                raise BadInput("the model's chat template knows no thoughts; leave out --think")
            opener = known[0]
        mark = _THOUGHTS[opener]
        if at < 0 or mark in header[at:]:  # the model opens it itself, or may not at all
            header = (header if at < 0 else header[:at]) + opener + ("\n" if re.fullmatch(r"<\w+>", opener) else "")
        line_feed = "\n" if header.endswith("\n") else ""
        answer = self._opening.rpartition(mark)[2] if mark in self._opening else 2 * line_feed
        return before + _USER + header, line_feed + mark + answer, mark

    def _tokens(self, vocabulary: Vocabulary, text: str, contents: dict[str, str]) -> list[int]:
        tokens: list[int] = []
        for part in _SPLIT.split(text):
            if part:
                tokens += vocabulary.tokenize(contents.get(part, part), special=part not in contents)
        return tokens


def _refusal(error: Exception) -> BadInput:
    why = " ".join(str(error).split()) or type(error).__name__
    return BadInput(f"the model's chat template does not work: {why}; take another file of this model")


def _rendered(template: Template, parts: bool, variables: dict[str, Any]) -> tuple[str, str, str]:
    """Return the rendered prompt, what stands between an answer and the next one, and the header of an answer that is over. Where the
    template has no system role (it raises, or drops the text), the system text opens the first user turn. Raises whatever a
    template raises, and BadInput if it does not repeat each content once."""

    def render(*turns: tuple[str, str]) -> str:
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if parts else text} for role, text in turns
        ]
        return template.render(messages=messages, add_generation_prompt=True, **variables)

    try:
        opening = render(("system", _SYSTEM), ("user", _USER))
    except Exception:
        opening = ""
    if opening.count(_SYSTEM) != 1:
        opening = render(("user", f"{_SYSTEM}\n\n{_USER}"))
    # Without the system text, which some templates put into the last turn; and with one header for all answers, the
    # prompt's, where a template writes another one before those that are over.
    before, _, bridge = render(("user", _USER), ("assistant", _ANSWER), ("user", _NEXT)).partition(_ANSWER)
    once = [opening.count(_SYSTEM), opening.count(_USER), before.count(_USER), bridge.count(_NEXT)]
    if once != [1, 1, 1, 1] or _ANSWER in bridge or re.search(f"{_USER}['\"]}}", before):  # a list, printed as such
        raise BadInput("it does not repeat each message once")
    return opening, bridge, before.partition(_USER)[2]


def _answer_begins(header: str, written: str) -> str:
    """Return what must follow the header of an answer that is to come, so that the answer itself begins and no thought. `written`:
    the header that the template gives an answer that is over, which shows what stands between a header and an answer
    (gpt-oss: `<|channel|>final<|message|>`)."""
    more = written.removeprefix(header) if written.startswith(header) else ""
    more = more if more.strip() else ""  # a lone space would be the answer's own
    begun = header + more
    opener = max(_THOUGHTS, key=begun.rfind)
    at, closer = begun.rfind(opener), _THOUGHTS[opener]
    if at < 0:
        return more
    rest = written[at:].rpartition(closer)[2] if written.startswith(begun[:at]) else ""
    rest = "" if not rest.strip() or begun.endswith(rest) else rest
    if closer in begun[at:]:
        return more + rest
    line_feed = "\n" if begun.endswith("\n") else ""
    return more + line_feed + closer + (rest or 2 * line_feed)


def _environment() -> Environment:
    """Set jinja2 up as transformers does for chat templates."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what a model wrote, for training; here it does nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> Any:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # jinja2's own escapes <, > and & for HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _PROMPT_DATE.strftime
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
