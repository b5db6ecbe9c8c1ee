"""Answers that real API servers, models and proxies give: each ends in a story or one clear line, and none is paid twice.
The vendors' real client libraries, against loopback servers."""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from storyfi_lite.cli import cli
from storyfi_lite.errors import BadInput, ConfigError, LiteError, Unavailable
from storyfi_lite.loaders.api import ApiLoader
from storyfi_lite.loaders.base import Answer, Job
from storyfi_lite.loaders.client import ApiClient, ApiSettings
from storyfi_lite.loaders.fallback import FallbackLoader
from storyfi_lite.loaders.gemini import GenaiClient, GenerativeAiClient
from storyfi_lite.loaders.keys import API_KEYS, Secret
from storyfi_lite.loaders.meter import Caps, Meter
from storyfi_lite.loaders.openai import OpenAIClient
from storyfi_lite.models.registry import ApiModel
from storyfi_lite.opening.loader import api_choices, api_loader
from storyfi_lite.protocol.messages import StoryRequest
from tests import gemini_server, openai_server
from tests.api_server import Script, Step, serve

STORY = {
    "title": "灯塔",
    "genre": "fantasy",
    "setting": "s" * 299 + ".",
    "core_conflict": "c" * 149 + ".",
    "themes": ["sea", "duty", "voice"],
    "tone": "quiet",
    "target_audience": "adults",
}
GOOD = json.dumps(STORY, ensure_ascii=False, separators=(",", ":"))
GOOGLE = (GenaiClient, GenerativeAiClient)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine's; certificates, which loopback does not need, are read once."""
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    monkeypatch.setattr(ssl, "create_default_context", _certificates)


_certificates = lru_cache(ssl.create_default_context)


@dataclass
class Asked:
    """`said`: the story, or the error's text. `sent`: the bodies of the calls."""

    loader: ApiLoader
    script: Script
    error: LiteError | None = None
    said: str = ""
    sent: list[dict[str, Any]] = field(default_factory=list)

    def again(self, **request: Any) -> Asked:
        temperature = request.pop("temperature", None)
        story = StoryRequest(task_type="blueprint", user_input="a lighthouse keeper", **request)
        job = Job(story, seed=1, deadline_s=time.monotonic() + 20, temperature=temperature)
        del self.script.requests[:]
        try:
            self.said, self.error = self.loader.submit(job).result(25).text, None
        except LiteError as error:
            self.said, self.error = str(error), error
        self.sent = list(self.script.requests)
        return self


@pytest.fixture
def meter(tmp_path: Path) -> Meter:
    return Meter(tmp_path / "meter", Caps())


@contextmanager
def asking(client: type[ApiClient], meter: Meter, *steps: Any) -> Iterator[Asked]:
    provider, path = ("openai", "/v1") if client is OpenAIClient else ("gemini", "")
    with serve(list(steps)) as script:
        model = ApiModel.model_validate({"key": f"{provider}-model", "provider": provider})
        settings = ApiSettings(model, script.url + path, workers=1, first_backoff_s=0.002)
        loader = ApiLoader(client(Secret("sk-test"), settings), meter)
        yield Asked(loader, script)
        loader.close()


def page(words: str) -> Step:
    return Step(body=words.encode(), headers={"content-type": "text/html; charset=utf-8"})


def candidate(**fields: Any) -> Step:
    used = {"promptTokenCount": 900, "thoughtsTokenCount": 2999, "totalTokenCount": 3899}
    return gemini_server.reply({"candidates": [fields], "usageMetadata": used})


def chat(finish: str = "stop", **fields: Any) -> Step:
    message = {"role": "assistant", "content": "", **fields.pop("message", {})}
    choice = {"index": 0, "finish_reason": finish, "message": message, **fields}
    return openai_server.reply(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    )


# --- a faulty answer is paid once and told in the server's words ---

OPENAI_FAULTS = {
    "cut": (openai_server.text(GOOD[:200], finish="length"), "ended the answer .* at its own token limit, 50 tokens"),
    "nothing but a limit": (openai_server.text("", finish="length"), "ended the answer"),
    "a page": (page("<!doctype html><title>Open WebUI</title>"), "web page, not with JSON: Open WebUI\n.*base-url"),
    "a hotel": (page("<html>Sign in to the hotel wifi</html>"), "Sign in to the hotel wifi"),
    "upstream": (chat("error", error={"message": "Upstream idle timeout", "code": 502}), "502: Upstream idle timeout"),
    "azure's filter": (
        openai_server.error(400, "policy", code="content_filter"),
        "refused to write this story: policy",
    ),
}
GEMINI_FAULTS = {
    "only thoughts": (candidate(content={"role": "model"}, finishReason="MAX_TOKENS"), "token limit, 2,999 tokens"),
    "cut": (candidate(content={"parts": [{"text": GOOD[:99]}]}, finishReason="MAX_TOKENS"), "its own token limit"),
    "a number": (gemini_server.reply({"promptFeedback": {"blockReason": 9}}), r"prompt blocked \(9\)"),
    "a new word": (gemini_server.reply({"promptFeedback": {"blockReason": "MODEL_ARMOR"}}), "prompt blocked"),
    "an end as a number": (candidate(content={"role": "model"}, finishReason=17), r"answer blocked \(17\)"),
    "a new end": (candidate(content={"role": "model"}, finishReason="IMAGE_SAFETY"), "answer blocked"),
    "a page": (page("<title>Open WebUI</title>"), "web page, not with JSON: Open WebUI"),
}


@pytest.mark.parametrize(
    ("client", "fault"),
    [(OpenAIClient, fault) for fault in OPENAI_FAULTS] + [(one, fault) for one in GOOGLE for fault in GEMINI_FAULTS],
)
def test_a_faulty_answer_is_one_call_and_a_clear_line(client: Any, fault: Any, meter: Any) -> None:
    step, words = (OPENAI_FAULTS if client is OpenAIClient else GEMINI_FAULTS)[fault]
    with asking(client, meter, step) as asked:
        asked.again()
        assert isinstance(asked.error, Unavailable)
        with pytest.raises(Unavailable, match=words):
            raise asked.error
        assert len(asked.sent) == 1 and asked.loader.health().alive


def test_the_caller_s_limit_is_named_with_what_thinking_took(meter: Any) -> None:
    with asking(GenaiClient, meter, candidate(content={}, finishReason="MAX_TOKENS")) as asked:
        said = asked.again(max_tokens=3000).said
    assert "the request's limit of 3,000 tokens, 2,999 tokens written, 2,999 of them thinking" in said


@pytest.mark.parametrize("client", [OpenAIClient, *GOOGLE])
def test_an_empty_answer_that_was_paid_is_not_asked_for_again(client: Any, meter: Any) -> None:
    empty = openai_server.text("") if client is OpenAIClient else candidate(content={}, finishReason="STOP")
    with asking(client, meter, empty) as asked:
        assert re.search(r"gave no text, (50|2,999) tokens written", asked.again().said)
        assert len(asked.sent) == 1
        asked.script.steps[:] = [openai_server.reply({"choices": []}), openai_server.text(GOOD)]  # who knows
        assert client in GOOGLE or "gave no text, and did not say why" in asked.again().said
        assert client in GOOGLE or len(asked.sent) == 1


def test_an_empty_answer_that_cost_nothing_is_asked_for_once_more(meter: Any) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}
    nothing = openai_server.reply({"choices": [], "usage": usage})
    with asking(OpenAIClient, meter, nothing, openai_server.text(GOOD)) as asked:
        assert asked.again().said == GOOD
        asked.script.steps[:] = [nothing]
        assert "gave no text" in asked.again().said
        assert len(asked.sent) == 2


def test_what_is_not_to_be_paid_twice_the_next_api_writes(meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That story alone: the first one is asked for the next story."""
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test")
    nothing, story = openai_server.text(""), openai_server.text(GOOD)
    with (
        serve([nothing, story, nothing]) as old,
        serve([gemini_server.text(GOOD), gemini_server.blocked()]) as new,
    ):
        chain = FallbackLoader(api_choices([ApiSettings(GPT, f"{old.url}/v1"), ApiSettings(FLASH, new.url)], meter))

        def answer() -> Answer:
            job = Job(StoryRequest(task_type="blueprint", user_input="x"), 1, time.monotonic() + 20)
            return chain.submit(job).result(25)

        assert [answer().claim.model_name for _ in range(2)] == [FLASH.key, GPT.key]
        assert (len(old.requests), len(new.requests)) == (2, 1)
        with pytest.raises(Unavailable, match="the OpenAI API gave no text"):  # Gemini refuses
            answer()
        chain.close()


def test_an_unpaid_error_with_status_200_is_tried_again_in_its_own_words(meter: Any) -> None:
    overloaded = openai_server.reply({"error": {"message": "upstream is overloaded", "code": 502}, "user_id": "u"})
    with asking(OpenAIClient, meter, overloaded) as asked:
        assert asked.again().said == "the OpenAI API answered 502: upstream is overloaded"
        asked.script.steps[:] = [overloaded, openai_server.text(GOOD)]
        assert asked.again().said == GOOD


def test_an_account_that_google_does_not_serve_ends_the_loader(meter: Any) -> None:
    problem = {"code": 400, "message": "User location is not supported.", "status": "FAILED_PRECONDITION"}
    for client in GOOGLE:
        with asking(client, meter, Step(400, json.dumps({"error": problem}).encode())) as asked:
            assert asked.again().said.endswith("does not serve this account: User location is not supported.")
            assert not asked.loader.health().alive


# --- a good answer in an unusual dress is a story ---

THOUGHT = [{"type": "text", "text": "hm"}]


@pytest.mark.parametrize(
    ("client", "step"),
    [
        (OpenAIClient, openai_server.text(f"<think>\nA story.\n</think>\n\n{GOOD}")),
        (OpenAIClient, openai_server.text([{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": GOOD}])),
        (OpenAIClient, openai_server.text(f"\ufeff{GOOD}")),
        (
            GenaiClient,
            candidate(content={"parts": [{"text": "Plan", "thought": True}, {"text": GOOD}]}, finishReason="STOP"),
        ),
    ],
    ids=["think", "parts", "bom", "gemini's thought"],
)
def test_a_thought_before_the_answer_costs_no_story(client: Any, step: Any, meter: Any) -> None:
    with asking(client, meter, step) as asked:
        assert asked.again().said == GOOD
        assert len(asked.sent) == 1


# --- parameters that a model refuses ---


def refuses(name: str, message: str, when: Any = lambda value: True, param: str | None = None) -> Any:
    def answer(body: dict[str, Any]) -> Step:
        refused = name in body and when(body[name])
        return openai_server.error(400, message, param=param) if refused else openai_server.text(GOOD)

    return answer


@pytest.mark.parametrize(
    ("step", "calls", "kept"),
    [
        (refuses("max_tokens", "Use 'max_completion_tokens' instead.", param="max_tokens"), 2, {"max_completion_tokens": 2000}),
        (refuses("temperature", "Only the default (1) value is supported.", param="temperature"), 2, {"temperature": None}),
        (refuses("reasoning_effort", "Unrecognized request argument: reasoning_effort"), 4, {"reasoning_effort": None}),
        (refuses("reasoning_effort", "Unsupported value: 'reasoning_effort'", lambda value: value == "none"), 2,
         {"reasoning_effort": "minimal"}),
        (refuses("response_format", "This model does not support structured outputs.",
                 lambda form: form["type"] == "json_schema"), 2, {"response_format": {"type": "json_object"}}),
        (refuses("response_format", "failed to parse grammar"), 3, {"response_format": None}),
    ],
    ids=["max_tokens", "temperature", "no effort", "another effort", "structured", "grammar"],
)  # fmt: skip
def test_a_refused_parameter_is_renamed_or_left_out_once_and_for_all(
    step: Any, calls: Any, kept: Any, meter: Any
) -> None:
    with asking(OpenAIClient, meter, step) as asked:
        assert asked.again(max_tokens=2000, temperature=0.7).said == GOOD
        assert len(asked.sent) == calls
        assert asked.again(max_tokens=2000, temperature=0.7).said == GOOD
        assert len(asked.sent) == 1
        assert {name: asked.sent[0].get(name) for name in kept} == kept
    assert meter.usage.tokens == 300  # the refusals were free


def test_gemini_is_told_not_to_think_in_the_words_that_it_knows(meter: Any) -> Any:
    def thinking(body: dict[str, Any]) -> list[Any]:  # the interface takes thinkingBudget and thinking_budget
        return list(body["generationConfig"].get("thinkingConfig", {}).values())

    def answer(body: dict[str, Any]) -> Step:
        if thinking(body) == [0]:
            return gemini_server.error(400, "Budget 0 is invalid. This model only works in thinking mode.")
        return gemini_server.text(GOOD)

    with asking(GenaiClient, meter, gemini_server.text(GOOD)) as asked:
        asked.again()
        assert thinking(asked.sent[0]) == [0]
    with asking(GenaiClient, meter, answer) as asked:
        assert (asked.again().said, len(asked.sent)) == (GOOD, 2)
        assert (asked.again().said, len(asked.sent)) == (GOOD, 1)
        assert thinking(asked.sent[0]) == ["MINIMAL"]


# --- the look-up at the start ---


@contextmanager
def looked_up(monkeypatch: pytest.MonkeyPatch, model: ApiModel, answer: Step, own: bool = False) -> Iterator[Any]:
    """The settings for `model` where its vendor answers a look-up with `answer`; with `own` it is the operator's server."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test")
    with serve([openai_server.text(GOOD)]) as script:
        script.look_up = answer
        url = script.url + ("/v1" if model.provider == "openai" else "")
        for client in (OpenAIClient, GenaiClient):
            monkeypatch.setattr(client, "vendor_url", url)
        yield script, ApiSettings(model, url if own else None, first_backoff_s=0.002)


GPT = ApiModel.model_validate_json(
    '{"key": "gpt-4-turbo", "provider": "openai", "ends": "2026-10-23", "successor": "gpt-6-luna"}'
)
FLASH = ApiModel(key="gemini-9-flash", provider="gemini")


@pytest.mark.parametrize(
    ("model", "answer", "words"),
    [
        (
            GPT,
            openai_server.error(404, "no such model"),
            "(?s)no such model.*ends it on 2026-10-23.*--api.model gpt-6-luna",
        ),
        (GPT, openai_server.error(410, "it was here"), "gpt-6-luna"),
        (GPT, openai_server.bad_key(), "check OPENAI_API_KEY"),
        (FLASH, gemini_server.error(404, "models/gemini-9-flash is not found"), "another model: --api.model NAME"),
        (FLASH, gemini_server.bad_key(), "check GEMINI_API_KEY"),
    ],
)
def test_a_model_that_is_gone_and_a_bad_key_are_told_before_the_first_request(
    model: Any, answer: Any, words: Any, meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looked_up(monkeypatch, model, answer) as (script, settings):
        with pytest.raises(ConfigError, match=words):
            api_loader(settings, meter)
        assert len(script.looked_up) == 1 and not script.requests
        assert script.looked_up[0].endswith(f"/models/{model.key}")


@pytest.mark.parametrize("model", [GPT, FLASH], ids=["openai", "gemini"])
@pytest.mark.parametrize("answer", [Step(501), Step(500), Step(429), page("<title>hm</title>"), Step(body=b"{}")])
def test_a_look_up_that_says_nothing_stops_nobody(
    model: Any, answer: Any, meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looked_up(monkeypatch, model, answer) as (script, settings):
        api_loader(settings, meter).close()
        assert len(script.looked_up) == 1


@pytest.mark.parametrize(
    ("answer", "own"),
    [
        (openai_server.error(403, "Missing scopes: api.model.read"), False),
        (openai_server.error(404, "File Not Found"), True),
    ],
    ids=["a key for writing only", "a server without look-ups"],
)
def test_what_proves_nothing_against_a_model_is_let_pass(
    answer: Any, own: Any, meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looked_up(monkeypatch, GPT, answer, own) as (_, settings):
        api_loader(settings, meter).close()


def test_two_models_of_one_provider_keep_their_own_settings(meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve([openai_server.text(GOOD)]) as script:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        models = [ApiModel(key=name, provider="openai") for name in ("first", "second")]
        choices = api_choices([ApiSettings(model, f"{script.url}/v1") for model in models], meter)
        loaders = [choice.open() for choice in choices]
        assert [loader.claim.model_name for loader in loaders] == ["first", "second"]
        for loader in loaders:
            loader.close()


def test_when_a_model_ends_while_running_the_next_api_answers_the_same_request(
    meter: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test")
    with serve([openai_server.error(404, "gone")]) as old, serve([gemini_server.text(GOOD)]) as new:
        chain = FallbackLoader(
            api_choices([ApiSettings(GPT, f"{old.url}/v1", first_backoff_s=0.002), ApiSettings(FLASH, new.url)], meter)
        )
        job = Job(StoryRequest(task_type="blueprint", user_input="x"), 1, time.monotonic() + 20)
        answer = chain.submit(job).result(25)
        assert (answer.text, answer.claim.model_name) == (GOOD, "gemini-9-flash")
        assert len(old.requests) == 3 and "gpt-6-luna" in caplog.text
        chain.close()


# --- proxies ---


@pytest.mark.parametrize("value", ["socks://127.0.0.1:1", "socks5://me:secret@127.0.0.1:1"])
@pytest.mark.parametrize("client", [OpenAIClient, *GOOGLE])
def test_a_proxy_setting_that_cannot_be_used_is_named(
    client: Any, value: Any, meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with (
        pytest.raises(
            ConfigError, match=r"the proxy setting ALL_PROXY=socks5?://(…@)?127\.0\.0\.1:1 cannot be used"
        ) as said,
        asking(client, meter, openai_server.text(GOOD)) as asked,
    ):
        failure: Any = asked.again()
        raise failure.error
    assert "secret" not in str(said.value)


@pytest.mark.parametrize("client", [OpenAIClient, *GOOGLE])
def test_a_proxy_that_does_not_answer_is_named(client: Any, meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    with asking(client, meter, openai_server.text(GOOD)) as asked:
        said = asked.again().said
    assert "gave no whole answer through the proxy of HTTP_PROXY=http://…@127.0.0.1:9" in said


# --- from the command line ---


def generate(*flags: str) -> tuple[str, BaseException | None]:
    """What stdout got, and the error that `storyfi-lite` would print."""
    done = CliRunner().invoke(cli, ["generate", "a lighthouse keeper", *flags])
    return done.stdout, done.exception


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        (openai_server.text(GOOD), None, ""),
        (page("<title>Open WebUI</title>"), Unavailable, "web page, not with JSON: Open WebUI"),
        (openai_server.error(410, "it was here"), ConfigError, "another model: --api.model NAME"),
    ],
    ids=["a story", "a page", "gone"],
)
def test_generate_with_any_model_of_a_server_like_openai_s(
    step: Any, kind: Any, words: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with serve([step]) as script:
        story, error = generate("--api.model", "my-model", "--api.base-url", f"{script.url}/v1")
    assert [body["model"] for body in script.requests] == ["my-model"]
    if kind is None:
        assert (story, error) == (f"{GOOD}\n", None)
    else:
        assert isinstance(error, kind) and words in str(error)


def test_a_missing_key_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in API_KEYS.values():
        monkeypatch.delenv(name, raising=False)
    _, error = generate("--model.name", "gpt-6-luna")
    assert isinstance(error, ConfigError)
    assert (str(error) + caplog.text).count("no key for gpt-6-luna: export OPENAI_API_KEY=…") == 1


def test_a_cap_in_dollars_without_prices_is_refused_whatever_answers() -> None:
    _, error = generate("--api.daily-usd", "2")
    assert isinstance(error, BadInput) and "--api.price MODEL=PROMPT,COMPLETION" in str(error)
