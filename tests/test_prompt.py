"""Chat templates as the hub's models have them: each renders, keeps every message, and ends where the answer begins."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from storyfi_lite.engine.model import Model
from storyfi_lite.engine.prompt import ChatTemplate, Conversation
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.engine.vocabulary import Vocabulary
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.prose import Prose
from storyfi_lite.grammar.schema import Object
from storyfi_lite.grammar.script import Piece, Script
from tests.llama_source import llama_models
from tests.tiny_gguf import tiny_gguf

SCRIPT = Script(
    "test",
    "SYSTEM",
    "",
    tuple(Piece.of(ask, ask, ((ask,), Prose(1, 9))) for ask in ("FIRST", "SECOND")),  # type: ignore[arg-type]
    Object(()),
)


class Letters:
    """A vocabulary of characters."""

    bos = None

    def tokenize(self, text: str, special: bool) -> list[int]:
        return [ord(char) for char in text]


def converse(source: str, script: Script) -> Conversation:
    return ChatTemplate(source, "<s>", "</s>").conversation(cast(Vocabulary, Letters()), script)


def rendered(source: str) -> tuple[str, str]:
    """All that stands before the first answer, and what stands between it and the second."""
    conversation = converse(source, SCRIPT)
    opening, bridge = (
        "".join(map(chr, tokens)) for tokens in (conversation.opening, *conversation.bridges)
    )  # two turns: one bridge
    return opening, bridge


def template(content: str = "{{ m.content }}", before: str = "", header: str = "<bot>") -> str:
    """A template that prints messages as <role>…</>, with `content` for what is in one."""
    turn = "{% if m.role == 'assistant' %}<bot>{% else %}<{{ m.role }}>{% endif %}" + content + "</>"
    return (
        before
        + "{% for m in messages %}"
        + turn
        + "{% endfor %}{% if add_generation_prompt %}"
        + header
        + "{% endif %}"
    )


PLAIN = "<system>SYSTEM</><user>FIRST</><bot>", "</><user>SECOND</><bot>"


@pytest.mark.parametrize(
    "source",
    [
        template(),
        template("{{ m.content }}{% if loop.index > 8 %}{% break %}{% endif %}"),
        template("{% if not m.content %}{% continue %}{% endif %}{{ m.content }}"),
        template("{% generation %}{{ m.content }}{% endgeneration %}"),
        template("{{ m.content[0].text }}"),
        template("{% for part in m.content %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"),
        template(before="{% if tools is not none %}You may call: {{ tools }}{% endif %}"),
        template(before="{% if documents is not none %}You may read: {{ documents }}{% endif %}"),
        template(before="{% if tools is defined and tools %}You may call: {{ tools }}{% endif %}"),
        template(before="{% for tool in tools %}{{ tool }}{% endfor %}"),  # None is no list
        template(before="{% set now = strftime_now('%d %b %Y') %}{% if now != '01 Jan 2025' %}{{ now }}{% endif %}"),
    ],
)
def test_renders_as_in_transformers_and_llama_cpp(source: str) -> None:
    assert rendered(source) == PLAIN


def test_json_is_written_as_in_transformers() -> None:
    """Without HTML's escapes, with the options of json.dumps; None where there are no tools."""
    said = "{{ {'b': '<é>', 'a': [1]} | tojson(indent=1, sort_keys=true, separators=(',', ':')) }}{{ tools | tojson }}"
    assert rendered(template(before=said))[0] == '{\n "a":[\n  1\n ],\n "b":"<é>"\n}null' + PLAIN[0]
    assert rendered(template(before="{{ 'é' | tojson(ensure_ascii=true) }}"))[0].startswith('"\\u00e9"')


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking", "reasoning"])
def test_thinking_is_switched_off(switch: str) -> None:
    header = f"<bot>{{% if {switch} is defined and not {switch} %}}<think></think>{{% else %}}<think>{{% endif %}}"
    assert [text.partition("<bot>")[2] for text in rendered(template(header=header))] == ["<think></think>"] * 2


@pytest.mark.parametrize(
    ("header", "content", "begins"),
    [
        ("<bot><think>\n", "{{ m.content }}", "<think>\n\n</think>\n\n"),
        ("<bot>[THINK]", "{{ m.content }}", "[THINK][/THINK]"),
        ("<bot><|START_THINKING|>", "{{ m.content }}", "<|START_THINKING|><|END_THINKING|>"),
        # what stands before an answer that is over shows how one begins
        ("<bot>", "{% if m.role == 'assistant' %}<|final|>{% endif %}{{ m.content }}", "<|final|>"),
        ("<bot><think>", "{% if m.role == 'assistant' %}<|text|>{% endif %}{{ m.content }}", "<think></think><|text|>"),
        (
            "<bot><think>",
            "{% if m.role == 'assistant' %}<think>-</think>!{% endif %}{{ m.content }}",
            "<think>-</think>!",
        ),
        ("<bot>", "{% if m.role == 'assistant' %} {% endif %}{{ m.content }}", ""),  # a space is the answer's own
        ("<bot><think></think>", "{{ m.content }}", "<think></think>"),
    ],
)
def test_a_prompt_ends_where_the_answer_begins(header: str, content: str, begins: str) -> None:
    """Not inside a thought, and not before the header that a model writes itself."""
    opening, bridge = rendered(template(content, header=header))
    assert opening == "<system>SYSTEM</><user>FIRST</><bot>" + begins
    assert bridge == "</><user>SECOND</><bot>" + begins


@pytest.mark.parametrize(
    ("header", "content", "thinks", "ends"),
    [
        ("<bot><think>\n", "{{ m.content }}", "<think>\n", "\n</think>\n\n"),
        ("<bot>{% if enable_thinking %}<think>{% else %}</think>{% endif %}", "{{ m.content }}", "<think>", "</think>"),
        ("<bot><think></think>", "{{ m.content }}", "<think>\n", "\n</think>"),  # always closed: opened all the same
        ("<bot>", "{{ m.content.split('</think>')[-1] }}", "<think>\n", "\n</think>\n\n"),  # the model opens it
        (
            "<bot>",
            "{% if m.role == 'assistant' %}<|channel|>final<|message|>{% endif %}{{ m.content }}{# <|channel|>analysis<|message|> #}",
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ],
)
def test_a_script_that_thinks_begins_inside_a_thought(header: str, content: str, thinks: str, ends: str) -> None:
    conversation = converse(template(content, header=header), SCRIPT.thinking(5))
    opening, closed, bridge = ("".join(map(chr, part)) for part in (conversation.opening, *conversation.bridges))
    assert opening == "<system>SYSTEM</><user>FIRST</><bot>" + thinks
    assert closed == ends
    assert bridge == rendered(template(content, header=header))[1]  # later turns do not think
    assert conversation.thought_mark == ends.strip()


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (template(before="{{ render_tools(messages) }}"), "'render_tools' is undefined"),
        (template(before="{% unknown %}"), "unknown tag 'unknown'"),
        (template(before="{{ raise_exception('only\nwith tools') }}"), "only with tools"),
        (template(before="{{ 1 / 0 }}"), "division by zero"),
        (template(before="{{ tools | tojson(indent=nothing) }}"), "."),
        (template("{{ m.content | length }}"), "does not repeat each message once"),
        (template("{{ m.content }}{{ m.content }}"), "does not repeat each message once"),
        (template("{{ [m.content] | string }}", before="{{ messages[0].content.append }}"), "."),
        ("{{ '\\ud800' }}" + template(), "surrogates"),
    ],
)
def test_what_does_not_work_is_refused_in_one_line(source: str, why: str) -> None:
    with pytest.raises(BadInput, match=why) as caught:
        rendered(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("named", "taken"),
    [
        ({"": template(), "tool_use": template("tools")}, template()),
        ({"rag": template("{{ m.content }}{{ documents[0] }}"), "default": template()}, template()),
        ({"rag": "{{ documents[0] }}", "tool_use": template()}, template()),  # the first one that works
        ({}, None),
    ],
)
def test_of_a_list_of_templates_the_unnamed_one_is_taken(
    tmp_path: Path, named: dict[str, str], taken: str | None
) -> None:
    with closing(Model(tiny_gguf(tmp_path / "m.gguf", named), EngineSettings())) as model:
        if taken is None:
            with pytest.raises(BadInput, match="carries no chat template"):
                _ = model.chat_template
            return
        same = ChatTemplate(taken, "<s>", "</s>")
        assert model.chat_template.conversation(model.vocabulary, SCRIPT) == same.conversation(model.vocabulary, SCRIPT)


FOR_TOOLS_ONLY = {"fireworks-ai-llama-3-firefunction-v2": "'functions' is undefined"}


@pytest.mark.slow
def test_the_templates_of_real_models() -> None:
    """Of all that llama.cpp is tested with, those render that do without tools."""
    refused: dict[str, str] = {}
    thinkers: list[str] = []
    sources = sorted((llama_models() / "templates").glob("*.jinja"))
    assert len(sources) >= 70
    for path in sources:
        try:
            opening, bridge = rendered(path.read_text())
        except BadInput as error:
            refused[path.stem] = str(error)
            continue
        assert [opening.count(text) for text in ("FIRST", "SECOND")] == [1, 0], path.stem
        assert bridge.count("SECOND") == 1, path.stem
        headers = [text.rpartition(last)[2] for text, last in ((opening, "FIRST"), (bridge, "SECOND"))]
        assert headers[0] == headers[1], path.stem
        assert all(header.count("<think>") <= header.count("</think>") for header in headers), path.stem
        try:
            thinking = converse(path.read_text(), SCRIPT.thinking(5))
        except BadInput as error:
            assert "knows no thoughts" in str(error)
            continue
        opening, closed, _ = ("".join(map(chr, part)) for part in (thinking.opening, *thinking.bridges))
        assert thinking.thought_mark in closed and thinking.thought_mark not in opening.rpartition("FIRST")[2], (
            path.stem
        )
        thinkers.append(path.stem)
    assert len(thinkers) >= 38 and "Qwen-Qwen3-0.6B" in thinkers and "Qwen3-Coder" not in thinkers
    assert refused.keys() == FOR_TOOLS_ONLY.keys()
    assert all(why in refused[name] for name, why in FOR_TOOLS_ONLY.items())
