"""Chat template -> prompt tokens. A stranger's text can never become a control token.

The template comes from the GGUF's metadata (or the registry, where the file has none) and is rendered in jinja2's
sandbox with placeholders for the contents; the template's parts are tokenized with control tokens, the contents without.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from typing import TYPE_CHECKING, Any

from storyfi_lite.errors import BadInput
from storyfi_lite.tasks.base import Messages

if TYPE_CHECKING:
    from storyfi_lite.engine.vocabulary import Vocabulary

# Private-use characters: in no template, and replaced before anything is tokenized.
_SYSTEM, _USER = "\ue000system\ue001", "\ue000user\ue001"
# For templates that tell the model today's date: one day for ever, or a proof could not be replayed the day after.
_PROMPT_DATE = datetime.date(2025, 1, 1)
_SPLIT = re.compile(f"({_SYSTEM}|{_USER})")


class ChatTemplate:
    """A compiled template. Raises BadInput if it does not compile, or renders no user turn."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _PROMPT_DATE.strftime
        try:
            self._template = environment.from_string(source)
            self._parts = self._render_parts(bos, eos)
        except TemplateError as error:
            raise BadInput(f"the model's chat template does not work: {error}") from None

    def _render_parts(self, bos: str, eos: str) -> list[str]:
        """The rendered prompt, split at the contents. Where the template has no system role (it raises, or drops the
        text), the system text opens the user turn."""
        from jinja2 import TemplateError

        def render(turns: list[dict[str, str]]) -> str:
            return self._template.render(messages=turns, add_generation_prompt=True, bos_token=bos, eos_token=eos)

        user = {"role": "user", "content": _USER}
        try:
            text = render([{"role": "system", "content": _SYSTEM}, user])
        except (TemplateError, TypeError):
            text = ""
        if text.count(_SYSTEM) != 1:
            text = render([{"role": "user", "content": f"{_SYSTEM}\n\n{_USER}"}])
        if text.count(_USER) != 1 or text.count(_SYSTEM) != 1:
            raise BadInput("the model's chat template does not repeat the user's message once")
        return _SPLIT.split(text)

    def tokens(self, vocabulary: Vocabulary, messages: Messages) -> list[int]:
        """Prompt token ids, begun with the model's own first token if it has one."""
        contents = {_SYSTEM: messages.system, _USER: messages.user}
        tokens: list[int] = []
        for part in self._parts:
            if part:
                tokens += vocabulary.tokenize(contents.get(part, part), special=part not in contents)
        if vocabulary.bos is not None and tokens[:1] != [vocabulary.bos]:
            tokens.insert(0, vocabulary.bos)
        return tokens


def _raise(message: str) -> Any:
    from jinja2 import TemplateError

    raise TemplateError(message)


def prompt_sha256(prompt: tuple[int, ...] | list[int]) -> str:
    """Of the prompt's token ids as little-endian 32-bit integers."""
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in prompt)).hexdigest()
