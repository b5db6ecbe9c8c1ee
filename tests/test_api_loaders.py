"""The API loaders, with the vendors' real client libraries against loopback servers that answer as the
vendors do."""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from storyfi_lite import tasks
from storyfi_lite.cli import cli
from storyfi_lite.errors import (
    BadInput,
    Busy,
    ConfigError,
    DeadlineExceeded,
    EngineError,
    LiteError,
    Unavailable,
)
from storyfi_lite.loaders.answers import read_answer, simple_schema
from storyfi_lite.loaders.api import ApiLoader
from storyfi_lite.loaders.base import Answer, Job, LoaderHealth, ModelClaim, NotAgain
from storyfi_lite.loaders.client import ApiClient, ApiSettings
from storyfi_lite.loaders.fallback import Choice, FallbackLoader
from storyfi_lite.loaders.gemini import GenaiClient, GenerativeAiClient, gemini_schema
from storyfi_lite.loaders.keys import API_KEYS, Secret, load_key
from storyfi_lite.loaders.meter import DAY_S, Caps, Meter, Prices
from storyfi_lite.loaders.openai import OpenAIClient
from storyfi_lite.models.registry import ApiModel, load_registry
from storyfi_lite.opening.loader import api_choices, api_client, api_loader, open_loader
from storyfi_lite.opening.local import Notices
from storyfi_lite.options import ApiOptions, ModelOptions
from storyfi_lite.protocol.messages import ModelInfo, StoryRequest
from tests import api_server, gemini_server, openai_server
from tests.api_server import Script, Step

KEY = "sk-THE-SECRET-0123456789abcdef"
REQUEST = StoryRequest(task_type="blueprint", user_input="a lighthouse keeper who hears the sea speak")
STORY = {
    "title": "灯塔",
    "genre": "fantasy",
    "setting": "s" * 299 + ".",
    "core_conflict": "c" * 149 + ".",
    "themes": ["sea", "duty", "voice"],
    "tone": "quiet",
    "target_audience": "adults",
}
CANONICAL = json.dumps(STORY, ensure_ascii=False, separators=(",", ":"))
SHORT = json.dumps({**STORY, "setting": "too short"})
CUT_OFF = json.dumps({**STORY, "core_conflict": "c" * 150})
QUIET = Notices(lambda name, done, total: None, lambda text: None)
CLIENTS: dict[str, type[ApiClient]] = {
    "genai": GenaiClient,
    "generativeai": GenerativeAiClient,
    "openai": OpenAIClient,
}
SERVERS = {"genai": gemini_server, "generativeai": gemini_server, "openai": openai_server}
MODELS = {"genai": "gemini-2.5-flash", "generativeai": "gemini-2.5-flash", "openai": "gpt-4-turbo"}

Serve = Callable[..., Script]


@pytest.fixture(params=list(CLIENTS))
def vendor(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def says(vendor: str) -> ModuleType:
    return SERVERS[vendor]


@pytest.fixture(autouse=True, scope="module")
def certificates_are_read_once() -> Iterator[None]:
    """Each client reads them, which takes longer than most of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", lru_cache(ssl.create_default_context))
        yield


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = []

    def start(*steps: Any) -> Script:
        running.append(api_server.serve(list(steps)))
        return running[-1].__enter__()

    yield start
    for server in running:
        server.__exit__(None, None, None)


@pytest.fixture
def meter(tmp_path: Path) -> Meter:
    return Meter(tmp_path / "state" / "api-meter.json", Caps())


@pytest.fixture
def load(vendor: str, meter: Meter) -> Iterator[Callable[..., ApiLoader]]:
    made: list[ApiLoader] = []

    def start(script: Script, meter: Meter = meter, **changes: Any) -> ApiLoader:
        made.append(loader_of(vendor, script.url, meter, **changes))
        return made[-1]

    yield start
    for loader in made:
        loader.close()


def settings_for(vendor: str, url: str, **changes: Any) -> ApiSettings:
    quick: dict[str, Any] = {"workers": 2, "first_backoff_s": 0.002, "call_timeout_s": 20.0, **changes}
    return ApiSettings(listed(MODELS[vendor]), base_url=url + ("/v1" if vendor == "openai" else ""), **quick)


def loader_of(vendor: str, url: str, meter: Meter, **changes: Any) -> ApiLoader:
    return ApiLoader(CLIENTS[vendor](Secret(KEY), settings_for(vendor, url, **changes)), meter)


@lru_cache
def listed(name: str) -> ApiModel:
    model = load_registry().find(name)
    assert isinstance(model, ApiModel)
    return model


def job(seconds: float = 20.0, request: StoryRequest = REQUEST, priority: float = 0.0) -> Job:
    return Job(request, seed=1, deadline_s=time.monotonic() + seconds, priority=priority)


def outcome(loader: Any, seconds: float = 20.0) -> Answer:
    return loader.submit(job(seconds)).result(30)


def prompt_texts(vendor: str, body: dict[str, Any]) -> list[str]:
    if vendor == "openai":
        return [message["content"] for message in body["messages"][1:]]
    return [turn["parts"][0]["text"] for turn in body["contents"]]


# --- the call itself ---


def test_an_answer_is_canonical_claimed_as_an_api_answer_and_counted(
    vendor: Any, says: Any, serve: Any, load: Any, meter: Any
) -> None:
    backwards = json.dumps(dict(reversed(STORY.items())), indent=2)
    script = serve(says.text(backwards))
    answer = outcome(load(script))
    assert answer.text == CANONICAL
    assert tasks.get("blueprint").constraint(REQUEST).check(answer.text).canonical
    assert (answer.prompt_tokens, answer.completion_tokens) == (100, 50)
    assert (meter.usage.prompt_tokens, meter.usage.completion_tokens) == (100, 50)
    assert (answer.claim.miner_mode, answer.claim.multiplier) == ("APIFallbackLoader", 0.5)
    assert (answer.claim.model_info.mode, answer.claim.model_info.provider) == ("api", listed(MODELS[vendor]).provider)
    assert answer.proof is None and answer.tokens is None


@pytest.mark.parametrize("gemini", ["genai", "generativeai"])
def test_gemini_gets_the_schema_in_its_own_dialect_and_the_key_in_a_header(gemini: Any, serve: Any, meter: Any) -> None:
    script = serve(gemini_server.text(CANONICAL))
    loader = loader_of(gemini, script.url, meter)
    outcome(loader)
    loader.close()
    config = script.requests[0]["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    schema = config["responseSchema"]
    assert schema["type"] in (6, "OBJECT")
    assert list(schema["required"]) == list(STORY)
    assert script.paths[0].startswith("/v1beta/models/gemini-2.5-flash:generateContent")
    assert KEY not in script.paths[0]
    assert KEY in script.headers[0].values()


def test_openai_gets_a_strict_schema(serve: Any, meter: Any) -> None:
    script = serve(openai_server.text(CANONICAL))
    loader = loader_of("openai", script.url, meter)
    outcome(loader)
    loader.close()
    form = script.requests[0]["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["required"] == list(STORY)
    assert form["schema"]["additionalProperties"] is False


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_every_task_s_schema_fits_the_vendors_dialects(name: Any) -> None:
    request = StoryRequest(
        task_type=name, user_input="x", blueprint={}, characters={}, story_arc={}, chapter_ids=[1, 2]
    )
    full = tasks.get(name).constraint(request).json_schema

    def walk(schema: dict[str, Any]) -> None:
        allowed = {"type", "description", "enum", "items", "minItems", "maxItems", "properties", "required",
                   "additionalProperties", "anyOf"}  # fmt: skip
        assert set(schema) <= allowed
        if schema.get("type") == "object":
            assert schema["required"] and schema["additionalProperties"] is False
        for one in [*schema.get("anyOf", []), *schema.get("properties", {}).values()]:
            walk(one)
        if "items" in schema:
            walk(schema["items"])

    strict = simple_schema(full, unions=True)
    walk(strict)
    assert '"required": []' not in json.dumps(strict)
    from google.ai.generativelanguage import Schema

    assert Schema.from_json(json.dumps(gemini_schema(simple_schema(full, unions=False)))).properties


def test_a_server_without_json_schema_is_asked_for_a_json_object_from_then_on(serve: Any, meter: Any) -> None:
    script = serve(openai_server.no_json_schema(), openai_server.text(CANONICAL))
    loader = loader_of("openai", script.url, meter)
    assert outcome(loader).text == CANONICAL
    assert outcome(loader).text == CANONICAL
    loader.close()
    assert [body["response_format"]["type"] for body in script.requests] == [
        "json_schema",
        "json_object",
        "json_object",
    ]
    assert '"core_conflict"' in script.requests[1]["messages"][0]["content"]


# --- answers that are not right ---


def test_a_code_fence_is_stripped(says: Any, serve: Any, load: Any) -> None:
    assert outcome(load(serve(says.text(f"```json\n{CANONICAL}\n```")))).text == CANONICAL


@pytest.mark.parametrize(
    # not "": to ask the same again for a paid nothing would be paid again (test_an_empty_answer_that_was_paid…)
    "bad",
    [SHORT, CUT_OFF, f"Here is your story: {CANONICAL}", "Once upon a time.", CANONICAL[:-9], "[1]", "null"],
)
def test_a_bad_answer_is_repaired_with_its_problems_told(
    bad: Any, vendor: Any, says: Any, serve: Any, load: Any
) -> None:
    script = serve(says.text(bad), says.text(CANONICAL))
    answer = outcome(load(script))
    assert answer.text == CANONICAL
    assert answer.completion_tokens == 100
    turns = prompt_texts(vendor, script.requests[1])
    assert len(turns) == 3
    if bad == SHORT:
        assert "setting has 9 characters, not 300 to 520" in turns[2]
    if bad == CUT_OFF:
        assert f"- core_conflict stops inside a sentence: …{'c' * 30}\n" in turns[2]


@pytest.mark.parametrize(("bad", "problem"), [(SHORT, "setting has 9"), (CUT_OFF, "core_conflict stops inside")])
def test_after_two_repairs_there_is_a_clear_error(bad: Any, problem: Any, says: Any, serve: Any, load: Any) -> None:
    script = serve(says.text(bad))
    with pytest.raises(Unavailable, match=rf"no valid answer in 3 attempts.*{problem}"):
        outcome(load(script))
    assert len(script.requests) == 3


@pytest.mark.parametrize("kind", ["blocked", "cut_by_safety"])
def test_a_refusal_is_an_error_at_once(kind: Any, says: Any, serve: Any, load: Any) -> None:
    script = serve(getattr(says, kind)())
    with pytest.raises(Unavailable, match="refused to write this story"):
        outcome(load(script))
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"title":"a","title":"b"}',
        '{"title":NaN}',
        '{"title":"\\ud800"}',
        "[" * 100_000,
        CANONICAL + "x",
        "\ud800",
    ],
    ids=["twice", "nan", "surrogate", "deep", "trailing", "raw surrogate"],
)
def test_hostile_json_is_refused_in_words(text: Any) -> None:
    answer, problems = read_answer(text, tasks.get("blueprint").constraint(REQUEST))
    assert answer is None and problems


def test_certificates_are_read_once_and_not_for_each_call(
    vendor: Any, serve: Any, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading takes a megabyte that Python frees late: a miner's memory would grow for hours."""
    loader = load(serve(WHOLE[vendor]))
    read: list[object] = []
    real = ssl.create_default_context

    def counted(*args: Any, **options: Any) -> ssl.SSLContext:
        read.append(args)
        return real(*args, **options)

    monkeypatch.setattr(ssl, "create_default_context", counted)
    assert [outcome(loader).text for _ in range(2)] == [CANONICAL] * 2
    assert read == []


# --- servers that fail ---

WHOLE = {vendor: server.text(CANONICAL) for vendor, server in SERVERS.items()}
PASSING = {
    "429": lambda vendor: SERVERS[vendor].error(429, "slow down", {"retry-after": "0.01"}),
    "500": lambda vendor: SERVERS[vendor].error(500, "internal"),
    "503": lambda vendor: SERVERS[vendor].error(503, "overloaded"),
    "html": lambda vendor: Step(502, b"<html>bad gateway</html>", {"content-type": "text/html"}),
}
PERHAPS_PAID = {
    "half a body": lambda vendor: Step(body=WHOLE[vendor].body, sent=0.5),
    "wrong json": lambda vendor: Step(body=b'{"candidates": ['),
    "no answer": lambda vendor: Step(hang=True),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_tried_again(fault: Any, vendor: Any, serve: Any, load: Any) -> None:
    script = serve(PASSING[fault](vendor), WHOLE[vendor])
    assert outcome(load(script)).text == CANONICAL
    assert len(script.requests) == 2


@pytest.mark.parametrize("fault", PASSING)
def test_what_does_not_pass_ends_in_a_clear_error(fault: Any, vendor: Any, serve: Any, load: Any) -> None:
    script = serve(PASSING[fault](vendor))
    with pytest.raises((Busy, Unavailable), match=r"API (answered|gave no)"):
        outcome(load(script, calls_per_text=3))
    assert len(script.requests) == 3  # the client libraries don't retry beside us


@pytest.mark.parametrize("fault", PERHAPS_PAID)
def test_what_may_have_been_paid_is_not_asked_again(fault: Any, vendor: Any, serve: Any, load: Any, meter: Any) -> None:
    script = serve(PERHAPS_PAID[fault](vendor), WHOLE[vendor])
    loader = load(script, call_timeout_s=1.0)
    with pytest.raises(NotAgain, match="gave no whole answer"):
        outcome(loader)
    assert len(script.requests) == 1
    assert meter.usage.tokens > 0  # the estimate stays
    assert outcome(loader).text == CANONICAL  # the next story is another matter


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'"text"'], ids=repr)
def test_a_body_with_nothing_in_it_is_a_clear_error(body: Any, serve: Any, load: Any) -> None:
    with pytest.raises(Unavailable, match="gave no"):
        outcome(load(serve(Step(body=body)), calls_per_text=2))


def test_a_longer_retry_after_than_the_deadline_is_not_waited_for(says: Any, serve: Any, load: Any) -> None:
    script = serve(says.error(429, "quota", {"retry-after": "3000"}))
    with pytest.raises(Busy) as caught:
        outcome(load(script))
    assert caught.value.retry_after_s == 3000
    assert len(script.requests) == 1


@pytest.mark.parametrize("gemini", ["genai", "generativeai"])
def test_gemini_s_retry_info_counts_as_retry_after(gemini: Any, serve: Any, meter: Any) -> None:
    script = serve(gemini_server.error(429, "quota", details=gemini_server.retry_info("34s")))
    loader = loader_of(gemini, script.url, meter)
    with pytest.raises(Busy) as caught:
        outcome(loader)
    loader.close()
    assert caught.value.retry_after_s == 34


def test_an_account_without_quota_is_not_retried(serve: Any, meter: Any) -> None:
    script = serve(openai_server.error(429, "You exceeded your current quota", code="insufficient_quota"))
    loader = loader_of("openai", script.url, meter)
    for _ in range(2):
        with pytest.raises(NotAgain, match="out of quota"):
            outcome(loader)
    assert len(script.requests) == 1 and loader.health().alive and "out of quota" in loader.health().detail
    loader.close()


@pytest.mark.parametrize("gemini", ["genai", "generativeai"])
@pytest.mark.parametrize(("quota", "calls"), [("PerDay", 1), ("PerMinute", 2)])
def test_a_day_s_quota_is_not_asked_for_again_whatever_wait_is_named(
    gemini: Any, quota: Any, calls: Any, serve: Any, meter: Any
) -> None:
    spent = {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": f"Requests{quota}-Free"}],
    }
    full = gemini_server.error(429, "quota exceeded", details=[spent, *gemini_server.retry_info("0.01s")])
    script = serve(full, WHOLE[gemini])
    loader = loader_of(gemini, script.url, meter)
    if calls == 2:
        assert outcome(loader).text == CANONICAL
    else:
        for _ in range(2):
            with pytest.raises(NotAgain, match=r"out of quota: .*quota exceeded"):
                outcome(loader)
    loader.close()
    assert len(script.requests) == calls


@pytest.mark.parametrize("status", [401, 403])
def test_what_only_the_operator_can_mend_is_not_retried(
    status: Any, vendor: Any, says: Any, serve: Any, load: Any
) -> None:
    script = serve(says.error(status, "no"))
    loader = load(script)
    with pytest.raises(ConfigError, match=f"{API_KEYS[listed(MODELS[vendor]).provider]}"):
        outcome(loader)
    with pytest.raises(ConfigError):
        outcome(loader)
    assert len(script.requests) == 1 and not loader.health().alive


def test_one_bad_request_says_nothing_of_the_next(says: Any, serve: Any, load: Any) -> None:
    script = serve(says.error(400, "that story has no end"))
    loader = load(script)
    with pytest.raises(ConfigError, match=r"answered 400: that story has no end$"):
        outcome(loader)
    assert len(script.requests) == 1 and loader.health().alive


@pytest.mark.parametrize(("status", "calls"), [(410, 1), (404, 3)])
def test_a_model_that_is_gone_ends_the_loader_with_its_successor_s_name(
    status: Any, calls: Any, vendor: Any, says: Any, serve: Any, load: Any
) -> None:
    script = serve(says.error(status, "no such model"))
    loader = load(script)
    successor = listed(MODELS[vendor]).successor
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"(?s)no such model.*--api\.model {successor}"):
            outcome(loader)
    assert len(script.requests) == calls
    assert not loader.health().alive and successor in loader.health().detail


def test_a_404_that_passes_is_a_gateway_s(says: Any, serve: Any, load: Any, vendor: Any) -> None:
    lost = says.error(404, "no")
    script = serve(lost, lost, WHOLE[vendor], lost, lost, WHOLE[vendor])
    loader = load(script)
    assert [outcome(loader).text for _ in range(2)] == [CANONICAL] * 2
    assert loader.health().alive


def test_a_refused_key_makes_the_loader_dead(says: Any, serve: Any, load: Any) -> None:
    loader = load(serve(says.bad_key()))
    with pytest.raises(ConfigError):
        outcome(loader)
    assert not loader.health().alive


@pytest.mark.parametrize("step", [Step(hang=True), Step(drip_s=0.02)], ids=["hang", "drip"])
def test_a_server_that_never_ends_is_cut_at_the_deadline(step: Any, serve: Any, load: Any) -> None:
    script = serve(step)
    loader = load(script)
    with pytest.raises(DeadlineExceeded):
        outcome(loader, seconds=0.4)
    assert script.gone.wait(10), "the connection stayed open"
    until(lambda: loader.health().running == 0)


@pytest.mark.parametrize("step", [Step(hang=True), Step(drip_s=0.02)], ids=["hang", "drip"])
def test_cancelling_frees_the_worker(step: Any, serve: Any, load: Any) -> None:
    script = serve(step)
    loader = load(script)
    future = loader.submit(job())
    until(lambda: script.requests)
    assert future.cancel()
    assert script.gone.wait(10), "the connection stayed open"
    until(lambda: loader.health().running == 0)


def test_a_redirect_is_not_followed_with_the_key(says: Any, serve: Any, load: Any) -> None:
    other = serve(says.text(CANONICAL))
    script = serve(Step(307, headers={"location": other.url}))
    with pytest.raises(LiteError):
        outcome(load(script, calls_per_text=1))
    assert len(script.requests) == 1 and not other.requests


def test_nothing_listens(vendor: Any, meter: Any) -> None:
    loader = loader_of(vendor, "http://127.0.0.1:9", meter, calls_per_text=2)
    with pytest.raises(Unavailable, match="gave no whole answer"):
        outcome(loader)
    loader.close()


# --- the queue ---


def test_a_full_queue_is_busy_and_stake_goes_first(vendor: Any, says: Any, serve: Any, load: Any) -> Any:
    go = threading.Event()

    def held(body: dict[str, Any]) -> Step:
        assert go.wait(10)
        return says.text(CANONICAL)

    script = serve(held)
    loader = load(script, workers=1, max_queued=2)
    first = loader.submit(job())
    until(lambda: script.requests)
    small, large = (
        loader.submit(job(request=REQUEST.model_copy(update={"user_input": f"stake {stake}"}), priority=stake))
        for stake in (1.0, 9.0)
    )
    with pytest.raises(Busy):
        loader.submit(job())
    assert (loader.health().running, loader.health().queued) == (1, 2)
    go.set()
    for future in (first, small, large):
        assert future.result(20).text == CANONICAL
    assert "stake 9.0" in prompt_texts(vendor, script.requests[1])[0]


def test_a_cancelled_job_leaves_its_place_in_the_queue(says: Any, serve: Any, load: Any) -> None:
    script = serve(Step(hang=True))
    loader = load(script, workers=1, max_queued=1)
    loader.submit(job(0.3))
    until(lambda: script.requests)
    loader.submit(job(0.3)).cancel()
    loader.submit(job(0.3))
    assert loader.health().queued == 1


def test_close_refuses_what_waits_and_ends_what_runs_by_its_deadline(serve: Any, load: Any) -> None:
    script = serve(Step(hang=True))
    loader = load(script, workers=1)
    running = loader.submit(job(0.5))
    until(lambda: script.requests)
    waiting = loader.submit(job())
    loader.close()
    assert isinstance(running.exception(1), DeadlineExceeded)
    assert isinstance(waiting.exception(1), Unavailable)
    with pytest.raises(Unavailable, match="closed"):
        loader.submit(job())
    loader.close()


def test_a_request_that_lacks_its_earlier_stage_ends_with_bad_input(says: Any, serve: Any, load: Any) -> None:
    loader = load(serve(says.text(CANONICAL)))
    future = loader.submit(job(request=StoryRequest(task_type="characters", user_input="x")))
    assert isinstance(future.exception(10), BadInput)


# --- secrets ---


@pytest.mark.parametrize("fault", ["echo 400", "echo 401", "echo 500", "echo text", "half", "refused", "ok"])
def test_the_key_is_in_no_log_line_error_or_repr(
    fault: Any, vendor: Any, says: Any, serve: Any, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"the key {KEY} is wrong " + "x" * 280 + KEY
    steps = {
        "echo 400": says.error(400, echo),
        "echo 401": says.bad_key(echo),
        "echo 500": says.error(500, echo),
        "echo text": says.text(echo),
        "half": Step(body=WHOLE[vendor].body, sent=0.5),
        "refused": says.blocked(),
        "ok": WHOLE[vendor],
    }
    loader = load(serve(steps[fault]), calls_per_text=2)
    error = loader.submit(job()).exception(20)
    seen = [repr(loader), repr(vars(loader)), str(loader.health()), repr(loader.claim), caplog.text]
    while error is not None:
        seen += [str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception(error))]
        error = error.__cause__ or error.__context__
    assert KEY not in "\n".join(seen)
    assert KEY[:20] not in "\n".join(seen)


def test_a_fault_of_our_own_hides_the_key_too(
    vendor: Any, says: Any, serve: Any, load: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = load(serve(says.text(CANONICAL)))
    monkeypatch.setattr(loader, "_answer", lambda job, line: dict[str, Any]()[KEY])
    error = loader.submit(job()).exception(10)
    assert isinstance(error, LiteError) and error.__context__ is None
    assert "KeyError" in caplog.text and KEY not in caplog.text + str(error)


def test_a_secret_is_masked_everywhere() -> None:
    secret = Secret(KEY)
    assert KEY not in f"{secret} {secret!r} {[secret]} {secret:>40}"
    with pytest.raises(TypeError):
        import pickle

        pickle.dumps(secret)
    assert secret.get_secret_value() == KEY


def key_file(tmp_path: Path, text: str = f"# keys\nGEMINI_API_KEY={KEY}\n", mode: int = 0o600) -> Path:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_comes_from_the_environment_then_from_the_file(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    for environment, key in (({}, KEY), ({"GEMINI_API_KEY": "other"}, "other")):
        found = load_key("GEMINI_API_KEY", path, environment)
        assert found is not None and found.get_secret_value() == key
    assert load_key("OPENAI_API_KEY", path, {}) is None
    assert load_key("GEMINI_API_KEY", None, {}) is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o400, 0o700])
def test_a_key_file_with_another_mode_is_refused_with_the_command(mode: Any, tmp_path: Path) -> None:
    path = key_file(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match=f"\nchmod 600 {path}"):
        load_key("GEMINI_API_KEY", path, {})


@pytest.mark.parametrize("text", [KEY, f"GEMINI_API_KEY={KEY} {KEY}", f"GEMINI_API_KEY={KEY}密"])
def test_a_malformed_key_is_refused_without_showing_it(text: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_key("GEMINI_API_KEY", key_file(tmp_path, text), {})
    assert KEY not in str(caught.value)


def test_a_key_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="key file"):
            load_key("GEMINI_API_KEY", path, {})


# --- the meter ---


def test_the_cap_survives_a_restart_and_opens_the_next_day(tmp_path: Path) -> None:
    path, now = tmp_path / "meter.json", [10.5 * DAY_S]
    meter = Meter(path, Caps(tokens=1000), lambda: now[0])
    meter.settle(meter.charge(500, 400, None), 600, 300)
    again = Meter(path, Caps(tokens=1000), lambda: now[0])
    assert (again.usage.prompt_tokens, again.usage.completion_tokens) == (600, 300)
    with pytest.raises(Busy, match="900 used today") as caught:
        again.charge(50, 51, None)
    assert caught.value.retry_after_s == DAY_S / 2
    now[0] -= DAY_S  # a clock set back opens nothing
    with pytest.raises(Busy):
        again.charge(50, 51, None)
    now[0] += 2 * DAY_S
    again.charge(50, 51, None)
    assert again.usage.tokens == 101


def test_two_processes_share_one_cap(tmp_path: Path) -> None:
    """Two hotkeys on one machine use one account."""
    miner, other = (Meter(tmp_path / "m", Caps(tokens=1000)) for _ in range(2))
    charge = miner.charge(300, 300, None)
    other.charge(200, 100, None)
    with pytest.raises(Busy, match="900 used today"):
        miner.charge(100, 100, None)
    miner.settle(charge, 100, 100)
    other.charge(200, 200, None)
    assert Meter(tmp_path / "m", Caps()).usage.tokens == 900


def test_a_call_that_was_never_settled_stays_charged(tmp_path: Path) -> None:
    Meter(tmp_path / "m", Caps()).charge(10, 20, None)
    assert Meter(tmp_path / "m", Caps()).usage.tokens == 30


def test_money_is_counted_with_the_operator_s_prices(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "m", Caps(usd=1.0))
    prices = Prices(prompt_usd=2.0, completion_usd=8.0)
    meter.charge(100_000, 50_000, prices)
    assert meter.usage.usd == pytest.approx(0.6)
    with pytest.raises(Busy, match=r"\$1.00"):
        meter.charge(100_000, 50_000, prices)
    with pytest.raises(ConfigError, match="prices"):
        meter.check_prices(None)


def test_the_operator_gives_prices_by_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(BadInput, match=r"--api\.daily-usd needs.*\n  --api\.price"):
        ApiOptions(daily_usd=2.0)

    def opened(model: str) -> Any:
        api = ApiOptions(daily_usd=2.0, base_url="http://127.0.0.1:9/v1", prices=((model, 10.0, 30.0),))
        return open_loader(ModelOptions(name="gpt-4-turbo", api=api), QUIET)[0]

    with pytest.raises(BadInput, match="API models"):
        opened("llama-3-8b")
    with pytest.raises(ConfigError, match=r"--api\.price"):  # a price, but of another model
        opened("gpt-6-luna")
    loader = opened("gpt-4-turbo")
    assert loader.health().usage.usd == 0.0
    loader.close()


@pytest.mark.parametrize(
    "given", ["gpt-4-turbo", "gpt-4-turbo=1", "gpt-4-turbo=1,x", "=1,2", "gpt-4-turbo=-1,2", "m=nan,1"]
)
def test_a_price_that_is_none_is_refused_at_the_command_line(given: Any) -> None:
    done = CliRunner().invoke(cli, ["generate", "a tale", "--api.price", given])
    assert done.exit_code == 2
    assert "gpt-6-luna=10,30" in done.output


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"day":1,"prompt_tokens":-5,"completion_tokens":0,"usd":0}'])
def test_a_damaged_meter_is_not_a_fresh_day(text: Any, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"rm {path}"):
        Meter(path, Caps())


def test_over_the_cap_no_call_is_made(says: Any, serve: Any, load: Any, tmp_path: Path) -> None:
    script = serve(says.text(CANONICAL))
    capped = Meter(tmp_path / "m", Caps(tokens=10))
    with pytest.raises(Busy, match="daily cap"):
        outcome(load(script, meter=capped))
    assert not script.requests


def test_a_failed_call_is_free_and_a_cut_one_is_not(says: Any, serve: Any, load: Any, meter: Any, vendor: Any) -> None:
    with pytest.raises(Unavailable):
        outcome(load(serve(says.error(500, "no")), calls_per_text=1))
    assert meter.usage.tokens == 0
    with pytest.raises(Unavailable):
        outcome(load(serve(Step(body=WHOLE[vendor].body, sent=0.5)), calls_per_text=1))
    assert meter.usage.tokens > 1000


# --- the chain of loaders ---


class LocalStandIn:
    """In the local model's place: answers until it is killed, and then as a dead engine does."""

    def __init__(self) -> None:
        self.alive, self.pending = True, []  # type: ignore[var-annotated]

    claim = ModelClaim(
        "LocalModelLoader",
        "llama-3-8b",
        ModelInfo(mode="local", name="l", version="1", provider="p"),
        24.0,
        1.0,
    )

    def submit(self, job: Job) -> Future[Answer]:
        self.pending.append(Future())
        return self.pending[-1]

    def die(self) -> None:
        self.alive = False
        for future in self.pending:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineError("llama.cpp failed"))

    def health(self) -> LoaderHealth:
        return LoaderHealth(self.alive, "well" if self.alive else "llama.cpp failed")

    def close(self) -> None:
        pass


def no_local() -> Any:
    raise EngineError("no GPU")


def test_without_a_local_model_the_chosen_api_answers_and_says_so(
    vendor: Any, says: Any, serve: Any, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    script = serve(says.text(CANONICAL))
    chain = FallbackLoader([Choice("local", no_local), Choice("api", lambda: load(script))])
    assert outcome(chain).claim.miner_mode == "APIFallbackLoader"
    loud = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("local can't be used: no GPU" in line for line in loud)
    assert any(" API, " in line and "0.5" in line for line in loud)


def test_requests_move_to_the_api_when_the_local_engine_dies(
    says: Any, serve: Any, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    local, script = LocalStandIn(), serve(says.text(CANONICAL))
    chain = FallbackLoader([Choice("local", lambda: local), Choice("api", lambda: load(script))])
    assert chain.claim.miner_mode == "LocalModelLoader"
    orphan, cancelled = chain.submit(job()), chain.submit(job())
    assert cancelled.cancel() and local.pending[1].cancelled()
    caplog.clear()
    local.die()
    assert orphan.result(20).claim.miner_mode == "APIFallbackLoader"
    assert chain.claim.multiplier == 0.5
    assert outcome(chain).text == CANONICAL
    assert "local is dead" in caplog.text and "from now on" in caplog.text
    assert len(script.requests) == 2


def test_with_nothing_to_move_to_the_dead_loader_says_why() -> None:
    local = LocalStandIn()
    alone = FallbackLoader([Choice("local", lambda: local)])
    orphan = alone.submit(job())
    local.die()
    assert isinstance(orphan.exception(5), EngineError)
    with pytest.raises(Unavailable, match="nothing stands in"):
        alone.submit(job())
    assert alone.claim.miner_mode == "LocalModelLoader" and not alone.health().alive


def test_an_error_of_a_living_loader_moves_nothing(says: Any, serve: Any, load: Any) -> None:
    local, script = LocalStandIn(), serve(says.text(CANONICAL))
    chain = FallbackLoader([Choice("local", lambda: local), Choice("api", lambda: load(script))])
    future = chain.submit(job())
    local.pending[0].set_exception(DeadlineExceeded("late"))
    assert isinstance(future.exception(5), DeadlineExceeded)
    assert chain.claim.miner_mode == "LocalModelLoader"


def test_a_refused_key_moves_to_the_other_api(
    serve: Any, meter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    keys = key_file(tmp_path, f"OPENAI_API_KEY={KEY}")
    bad, good = serve(gemini_server.bad_key()), serve(openai_server.text(CANONICAL))
    choices = api_choices([settings_for("genai", bad.url), settings_for("openai", good.url)], meter, keys)
    assert [choice.name for choice in choices] == ["gemini API", "openai API"]
    chain = FallbackLoader(choices)
    assert outcome(chain).claim.model_name == "gpt-4-turbo"
    chain.close()


def test_the_other_api_is_no_choice_without_its_key(meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    settings = [ApiSettings(listed("gemini-2.5-flash")), ApiSettings(listed("gpt-4-turbo"))]
    assert [choice.name for choice in api_choices(settings, meter)] == ["gemini API"]


def test_with_nothing_left_the_error_names_every_reason(meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    choices = [Choice("local", no_local), *api_choices([ApiSettings(listed("gemini-2.5-flash"))], meter)]
    with pytest.raises(ConfigError, match=r"(?s)local: no GPU.*export GEMINI_API_KEY="):
        FallbackLoader(choices)


def test_a_server_of_one_s_own_needs_no_key(serve: Any, meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    script = serve(openai_server.text(CANONICAL))
    loader = api_loader(settings_for("openai", script.url), meter)
    assert outcome(loader).text == CANONICAL
    loader.close()


def test_a_missing_package_is_named_with_its_extra(vendor: Any, meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("openai", "google.genai", "google.generativeai.client", "google.generativeai"):
        monkeypatch.setitem(sys.modules, name, None)
    model = listed(MODELS[vendor])
    with pytest.raises(ConfigError, match=rf"pip install '\.\[{model.provider}\]'"):
        api_client(Secret(KEY), ApiSettings(model))


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)
