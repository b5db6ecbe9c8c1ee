"""Reasoning models: they think only if they are let, at most so long, outside the answer and inside its proof."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from storyfi_lite.cli import main
from storyfi_lite.engine.model import Model
from storyfi_lite.engine.rule import ChoiceRule, answer_of, thought_length
from storyfi_lite.engine.settings import EngineSettings, SamplingParams
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.prose import Prose
from storyfi_lite.grammar.script import one_turn
from storyfi_lite.loaders.base import Job
from storyfi_lite.loaders.local import LocalModel, LocalModelLoader
from storyfi_lite.miner.service import to_response
from storyfi_lite.opening.loader import open_loader
from storyfi_lite.opening.local import SILENT
from storyfi_lite.options import ModelOptions
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator.proof import Prover
from tests.tiny_gguf import CHAT, SPM, USER_DEFINED, TinyVocabulary, tiny_gguf

REQUEST = StoryRequest(task_type="blueprint", user_input="a lighthouse keeper", max_tokens=900)
SEED, THINK_TOKENS = 5, 20
THINKS = CHAT + "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
VOCABULARY = TinyVocabulary(
    "llama",
    {**SPM.tokens, "<think>": USER_DEFINED, "</think>": USER_DEFINED},
    {**SPM.more, "add_space_prefix": False},
)
SETTINGS = EngineSettings(n_ctx=2048, n_threads=1)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("thinker") / "thinker.gguf", THINKS, vocabulary=VOCABULARY)


def answered(path: Path, think_tokens: int | None) -> StoryResponse:
    model = LocalModel(path, "thinker", "F32", "someone", 1.0)
    with closing(LocalModelLoader(model, SETTINGS, think_tokens=think_tokens)) as loader:
        return to_response(loader.submit(Job(REQUEST, SEED, time.monotonic() + 120)).result())


@pytest.fixture(scope="module")
def thought_over(thinker: Path) -> StoryResponse:
    return answered(thinker, THINK_TOKENS)


@pytest.fixture(scope="module")
def prover(thinker: Path) -> Iterator[Prover]:
    with Prover(thinker, SETTINGS) as prover:
        yield prover


def test_a_thought_is_outside_the_answer_and_inside_the_proof(thought_over: StoryResponse, prover: Prover) -> None:
    response, end = thought_over, prover.model.vocabulary.end
    assert response.proof is not None and response.tokens is not None
    assert response.proof.think_tokens == THINK_TOKENS
    assert response.tokens.index(end) == THINK_TOKENS  # a model that knows nothing does not stop by itself
    assert set(response.output_data) >= {"title", "setting"}
    verdict = prover.prove(REQUEST, response, SEED)
    assert verdict.status == "proven", verdict


def test_a_thought_that_this_model_did_not_have_is_refuted(thought_over: StoryResponse, prover: Prover) -> None:
    tokens, header = thought_over.tokens, thought_over.proof
    assert tokens is not None and header is not None
    claims = [
        ([*tokens[THINK_TOKENS + 1 :]], header),  # none at all
        (tokens, header.model_copy(update={"think_tokens": None})),
        (tokens, header.model_copy(update={"think_tokens": THINK_TOKENS - 1})),
    ]
    for told, claimed in claims:
        response = thought_over.model_copy(update={"tokens": told, "proof": claimed})
        assert prover.prove(REQUEST, response, SEED).status == "refuted"
    honest = prover.replay(REQUEST, thought_over)
    invented = [tokens[0], *[token + 1 for token in tokens[1:THINK_TOKENS]], *tokens[THINK_TOKENS:]]
    other = prover.replay(REQUEST, thought_over.model_copy(update={"tokens": invented}))
    assert other.refuted or other.mean_margin > honest.mean_margin + 0.02


def test_nobody_thinks_unasked(thinker: Path, prover: Prover) -> None:
    response = answered(thinker, None)
    assert b"think_tokens" not in response.to_json_bytes()
    assert prover.prove(REQUEST, response, SEED).status == "proven"


def test_a_model_may_end_its_thought(thinker: Path) -> None:
    """By its own mark for that, which is never written into the thought; then the answer begins where it always does."""
    script = one_turn("Tell.", {"said": Prose(12, 40)}).thinking(100)
    with closing(Model(thinker, SETTINGS)) as model:
        words = model.vocabulary
        conversation = model.chat_template.conversation(words, script)
        assert words.text_of(conversation.opening).endswith("assistant\n<think>\n")
        assert words.text_of(conversation.bridges[0]) == "\n</think>\n\n"
        rule = ChoiceRule(words, conversation, script, SamplingParams(1), 400)
        assert rule.force() == []
        [mark] = words.tokenize("</think>", special=True)
        noise = np.random.default_rng(0)
        while not rule.done:
            logits = noise.normal(0, 1, words.size).astype(np.float32)
            logits[mark] = 50 if len(rule.tokens) == 7 else -50
            rule.choose(logits)
        assert thought_length(script, words, rule.tokens) == 8  # seven, and the end
        assert mark not in rule.tokens and json.loads(answer_of(script, words, rule.tokens)).keys() == {"said"}
        assert rule.fed[: len(conversation.opening) + 7][-7:] == rule.tokens[:7]


def test_a_short_answer_thinks_less(thinker: Path) -> None:
    """At most half of what the budget holds beyond the answer's needs."""
    script = one_turn("Tell.", {"said": Prose(12, 40)}).thinking(100)
    with closing(Model(thinker, SETTINGS)) as model:
        words = model.vocabulary
        conversation = model.chat_template.conversation(words, script)
        for spare, thought in ((0, 0), (1, 0), (10, 5)):
            rule = ChoiceRule(words, conversation, script, SamplingParams(1), script.min_tokens_bound + spare)
            rule.force()
            noise = np.random.default_rng(0)
            while not rule.done:
                rule.choose(noise.normal(0, 1, words.size).astype(np.float32))
            assert thought_length(script, words, rule.tokens) == thought + 1
            assert len(rule.tokens) <= script.min_tokens_bound + spare


def test_a_model_that_knows_no_thoughts_is_not_asked_for_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="leave out --think"):
        answered(tiny_gguf(tmp_path / "plain.gguf"), THINK_TOKENS)


def test_an_api_is_not_told_how_long_to_think() -> None:
    with pytest.raises(BadInput, match="--think is for a local model"):
        open_loader(ModelOptions(name="gpt-4-turbo", think_tokens=THINK_TOKENS), SILENT, warm_up=False)


def test_from_the_command_line(
    thinker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"generate hello --model.path {thinker} --think 12 --seed 3 --threads 1 --max-tokens 900 --json"
    monkeypatch.setattr(sys, "argv", ["storyfi-lite", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = json.loads(capsys.readouterr().out)
    response = said.get("response", said)
    assert response["proof"]["think_tokens"] == 12 and response["tokens"].index(2) == 12
