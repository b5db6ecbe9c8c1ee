"""Chat template -> the tokens of a conversation. A stranger's text can never become a control token.

The template comes from the GGUF's metadata (or the registry, where the file has none) and is rendered in jinja2's
sandbox with placeholders for the contents; the template's parts are tokenized with control tokens, the contents without.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storyfi_lite.errors import BadInput

if TYPE_CHECKING:
    from storyfi_lite.engine.vocabulary import Vocabulary
    from storyfi_lite.grammar.script import Script

# Private-use characters: in no template, and replaced before anything is tokenized.
_SYSTEM, _USER, _ANSWER, _NEXT = ("\ue000system\ue001", "\ue000user\ue001", "\ue000answer\ue001", "\ue000next\ue001")
# For templates that tell the model today's date: one day for ever, or a proof could not be replayed the day after.
_PROMPT_DATE = datetime.date(2025, 1, 1)
_SPLIT = re.compile(f"({_SYSTEM}|{_USER}|{_NEXT})")


@dataclass(frozen=True)
class Conversation:
    """Token ids of all that the model does not write: `opening` is what stands before its first turn, `bridges` what stands
    between one turn and the next."""

    opening: tuple[int, ...]
    bridges: tuple[tuple[int, ...], ...] = ()

    @property
    def sha256(self) -> str:
        """Of the token ids in their order, as little-endian 32-bit integers; -1 stands for a turn of the model's."""
        tokens = [*self.opening, *(token for bridge in self.bridges for token in (-1, *bridge))]
        return hashlib.sha256(b"".join(token.to_bytes(4, "little", signed=True) for token in tokens)).hexdigest()

    def with_answer(self, tokens: Sequence[int], end: int) -> tuple[list[int], list[int]]:
        """All that is decoded when these are the answer's tokens, and for each of them the place in it of the one that
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
    """A compiled template. Raises BadInput if it does not compile, renders no user turn, or no second one."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _PROMPT_DATE.strftime
        try:
            self._template = environment.from_string(source)
            self._opening, self._bridge = self._render_parts(bos, eos)
        except TemplateError as error:
            raise BadInput(f"the model's chat template does not work: {error}") from None

    def _render_parts(self, bos: str, eos: str) -> tuple[list[str], list[str]]:
        """The rendered prompt, and what stands between an answer and the next one, split at the contents. Where the template
        has no system role (it raises, or drops the text), the system text opens the first user turn."""
        from jinja2 import TemplateError

        def render(*turns: tuple[str, str]) -> str:
            messages = [{"role": role, "content": content} for role, content in turns]
            return self._template.render(messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos)

        try:
            opening = render(("system", _SYSTEM), ("user", _USER))
        except (TemplateError, TypeError):
            opening = ""
        if opening.count(_SYSTEM) != 1:
            opening = render(("user", f"{_SYSTEM}\n\n{_USER}"))
        # Without the system text, which some templates put into the last turn; and with one header for all answers, the
        # prompt's, where a template writes another one before those that are over.
        both = render(("user", _USER), ("assistant", _ANSWER), ("user", _NEXT))
        bridge = both.partition(_ANSWER)[2]
        if (
            [opening.count(one) for one in (_SYSTEM, _USER)] != [1, 1]
            or both.count(_ANSWER) != 1
            or bridge.count(_NEXT) != 1
        ):
            raise BadInput("the model's chat template does not repeat each message once")
        return _SPLIT.split(opening), _SPLIT.split(bridge)

    def conversation(self, vocabulary: Vocabulary, script: Script) -> Conversation:
        """The script's turns as token ids, begun with the model's own first token if it has one."""
        first, *others = script.asks
        opening = self._tokens(vocabulary, self._opening, {_SYSTEM: script.system, _USER: first})
        if vocabulary.bos is not None and opening[:1] != [vocabulary.bos]:
            opening.insert(0, vocabulary.bos)
        bridges = (tuple(self._tokens(vocabulary, self._bridge, {_NEXT: ask})) for ask in others)
        return Conversation(tuple(opening), tuple(bridges))

    def _tokens(self, vocabulary: Vocabulary, parts: list[str], contents: dict[str, str]) -> list[int]:
        tokens: list[int] = []
        for part in parts:
            if part:
                tokens += vocabulary.tokenize(contents.get(part, part), special=part not in contents)
        return tokens


def _raise(message: str) -> Any:
    from jinja2 import TemplateError

    raise TemplateError(message)
