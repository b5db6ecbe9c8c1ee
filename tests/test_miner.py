"""The miner over real HTTP on loopback, with signatures of the real SDK. Only the loader is scripted."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import escape, unescape
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from bittensor.sp_core import Keypair
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from storyfi_lite import stopping
from storyfi_lite.cli import cli
from storyfi_lite.errors import ConfigError, Unavailable
from storyfi_lite.loaders.meter import Usage
from storyfi_lite.miner import admission, lifecycle
from storyfi_lite.miner.admission import RateLimit
from storyfi_lite.miner.metrics import GpuCollector, Minute
from storyfi_lite.miner.nonces import SqliteNonceStore
from storyfi_lite.miner.status import MEANING
from storyfi_lite.miner.words import CHINESE
from storyfi_lite.protocol.messages import parse_response
from storyfi_lite.protocol.seed import challenge_seed
from storyfi_lite.wire.http_status import PUBLIC_TEXT, Refused
from tests.miner_server import (
    ALLOWED,
    BLUEPRINT,
    DENIED,
    MINER,
    NO_PERMIT,
    POOR,
    STRANGER,
    VALIDATOR,
    Running,
    ScriptedLoader,
    make_miner,
    running,
    signed,
    story,
    until,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(make_miner(tmp_path)) as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """For tests that leave nothing behind: starting one takes 0.3 s."""
    with running(make_miner(tmp_path_factory.mktemp("miner"))) as found:
        yield found


def refused(server: Running, reason: str) -> int:
    return server.miner.metrics.refused_by_reason.get(reason, 0)


@contextlib.contextmanager
def refusals(server: Running, reason: str) -> Iterator[None]:
    """Exactly one refusal, for this reason, and nothing reaches the loader."""
    counts, jobs = dict(server.miner.metrics.refused_by_reason), len(server.loader.jobs)
    yield
    assert server.miner.metrics.refused_by_reason == {**counts, reason: counts.get(reason, 0) + 1}
    assert len(server.loader.jobs) == jobs


def is_refusal(answer: httpx.Response, status: int) -> None:
    """A status and a fixed text, and nothing else."""
    assert answer.status_code == status
    assert answer.json() == {"message": PUBLIC_TEXT[status]}


# --- answers --------------------------------------------------------------------------------------


def test_a_signed_request_is_answered(shared: Running) -> None:
    answer = shared.ask("灯塔看守人的故事")
    assert answer.status_code == 200
    response = parse_response(answer.content)
    assert response.output_data == BLUEPRINT
    assert json.loads(response.output_text or "") == BLUEPRINT
    assert response.tokens == [5, 6, 7]
    assert (response.miner_mode, response.model_name) == ("LocalModelLoader", "smollm2-135m")


def test_the_seed_is_the_requests_or_binds_request_and_miner(server: Running) -> None:
    body = story("a tale")
    headers = signed(body)
    server.post(body, headers)
    server.ask("a tale", seed=0)
    derived = challenge_seed(
        VALIDATOR.ss58_address, MINER.ss58_address, headers["X-Bittensor-Nonce"], "blueprint", "a tale"
    )
    assert [job.seed for job in server.loader.jobs] == [derived, 0]


def test_the_job_carries_deadline_and_stake(server: Running) -> None:
    before_s = time.monotonic()
    server.ask()
    job = server.loader.jobs[0]
    assert before_s + 55 <= job.deadline_s <= time.monotonic() + 55
    assert job.priority == 5_000.0


def test_streams_are_answered_side_by_side(shared: Running) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: shared.ask("sleep:0.3"), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({job.seed for job in shared.loader.jobs[-4:]}) == 4


def test_one_connection_serves_many_requests_and_refusals(shared: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared.port)
    statuses = []
    for key in (VALIDATOR, STRANGER, VALIDATOR):
        body = story()
        connection.request("POST", "/story", body, signed(body, key))
        reply = connection.getresponse()
        statuses.append(reply.status)
        reply.read()
    assert statuses == [200, 403, 200]
    connection.close()


# --- strangers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "reason"),
    [(STRANGER, "unregistered"), (NO_PERMIT, "no_permit"), (POOR, "low_stake"), (DENIED, "denied")],
)
def test_who_may_not_ask(shared: Running, key: Keypair, reason: str) -> None:
    with refusals(shared, reason):
        is_refusal(shared.ask(key=key), 403)


def test_the_allow_list_needs_no_registration(shared: Running) -> None:
    assert shared.ask(key=ALLOWED).status_code == 200
    assert shared.loader.jobs[-1].priority == 0.0


def test_unsigned(shared: Running) -> None:
    with refusals(shared, "malformed_headers"):
        is_refusal(shared.post(story(), {}), 401)


def test_forged_in_a_validators_name(shared: Running) -> None:
    body = story()
    headers = {**signed(body, STRANGER), "X-Bittensor-Hotkey": VALIDATOR.ss58_address}
    with refusals(shared, "bad_signature"):
        is_refusal(shared.post(body, headers), 401)


def test_body_changed_on_the_way(shared: Running) -> None:
    with refusals(shared, "bad_signature"):
        is_refusal(shared.post(story("another tale"), signed(story("a tale"))), 401)


def test_addressed_to_another_miner(shared: Running) -> None:
    body = story()
    with refusals(shared, "wrong_receiver"):
        is_refusal(shared.post(body, signed(body, receiver_ss58=STRANGER.ss58_address)), 401)


@pytest.mark.parametrize("age_s", [11, 3_600, -3])
def test_stale_or_from_the_future(shared: Running, age_s: int) -> None:
    body = story()
    with refusals(shared, "stale"):
        is_refusal(shared.post(body, signed(body, nonce_ns=time.time_ns() - age_s * 10**9)), 401)


def test_a_replay_is_refused(server: Running) -> None:
    body = story()
    headers = signed(body)
    assert server.post(body, headers).status_code == 200
    is_refusal(server.post(body, headers), 401)
    assert refused(server, "replayed") == 1
    assert len(server.loader.jobs) == 1


def test_a_replay_is_refused_after_a_restart(tmp_path: Path) -> None:
    body = story()
    headers = signed(body)
    with running(make_miner(tmp_path)) as first:
        assert first.post(body, headers).status_code == 200
    with running(make_miner(tmp_path)) as second:
        is_refusal(second.post(body, headers), 401)
        assert refused(second, "replayed") == 1


def test_a_forged_request_does_not_burn_the_nonce(shared: Running) -> None:
    """A stranger who copies a request's headers cannot shut the true one out."""
    body = story()
    headers = signed(body)
    assert shared.post(story("another"), headers).status_code == 401
    assert shared.post(body, headers).status_code == 200


def test_the_rate_is_counted_only_for_what_was_signed(tmp_path: Path) -> None:
    with running(make_miner(tmp_path, rate_per_minute=6)) as server:  # two at once
        for _ in range(5):
            server.post(story("forged"), signed(story()))
        assert [server.ask().status_code for _ in range(3)] == [200, 200, 429]
        answer = server.ask()
        is_refusal(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        assert server.ask(key=ALLOWED).status_code == 200  # another hotkey has its own rate


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"task_type":"poem","user_input":"x"}',
        b'{"task_type":"blueprint"}',
        b'{"task_type":"blueprint","user_input":""}',
        b'{"task_type":"blueprint","user_input":"x","seed":-1}',
        b'{"task_type":"blueprint","user_input":"\\ud800"}',
        b"[" * 100_000,
        "x".encode("utf-16"),
    ],
)
def test_signed_but_malformed(shared: Running, body: bytes) -> None:
    with refusals(shared, "bad_request"):
        is_refusal(shared.post(body, signed(body)), 400)


@pytest.mark.parametrize(
    "header",
    [
        "X-Bittensor-Nonce",
        "X-Bittensor-Signature",
        "X-Bittensor-Hotkey",
        "X-Bittensor-Version",
        "X-Bittensor-Receiver",
    ],
)
@pytest.mark.parametrize("value", ["", "x" * 5_000, "-1", "0x", "٣٤", "1_0"])
def test_malformed_headers(shared: Running, header: str, value: str) -> None:
    body, jobs = story(), len(shared.loader.jobs)
    headers: dict[str, str | bytes] = {**signed(body), header: value.encode()}
    answer = shared.post(body, headers)  # type: ignore[arg-type]
    assert answer.status_code in (401, 403)
    assert len(shared.loader.jobs) == jobs


def test_oversize_is_refused_from_the_header(shared: Running) -> None:
    """Not one byte of the body is waited for."""
    headers = signed(b"")
    connection = http.client.HTTPConnection("127.0.0.1", shared.port)
    connection.putrequest("POST", "/story")
    for name, value in {**headers, "content-length": "999999999"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_oversize_is_refused_while_streaming(tmp_path: Path) -> None:
    with running(make_miner(tmp_path, max_body_bytes=100_000)) as server:
        body = b"x" * 150_000
        reader = (body[at : at + 10_000] for at in range(0, len(body), 10_000))
        with httpx.Client(trust_env=False, verify=False) as client:
            answer = client.post(server.url + "/story", content=reader, headers=signed(body))
        is_refusal(answer, 413)


def test_large_bodies_are_read_a_few_at_a_time(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand callers who only claim to be a validator cannot make the miner hold a gigabyte."""
    monkeypatch.setattr(admission, "MAX_LARGE_BODIES", 1)
    body = story("x", blueprint={"setting": "x" * 200_000})
    slow = http.client.HTTPConnection("127.0.0.1", server.port)
    slow.putrequest("POST", "/story")
    for name, value in {**signed(body), "content-length": str(len(body))}.items():
        slow.putheader(name, value)
    slow.endheaders(body[:150_000])
    until(lambda: server.miner.gate._large_bodies == 1)
    is_refusal(server.post(body, signed(body)), 503)
    assert server.ask().status_code == 200  # small ones are not held up
    slow.send(body[150_000:])
    assert slow.getresponse().status == 200
    slow.close()
    assert server.miner.gate._large_bodies == 0


def test_a_slow_body_is_cut_off(tmp_path: Path) -> None:
    with running(make_miner(tmp_path, body_timeout_s=0.3)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.putrequest("POST", "/story")
        for name, value in {**signed(story()), "content-length": "100"}.items():
            connection.putheader(name, value)
        connection.endheaders(b'{"task')
        assert connection.getresponse().status == 408
        connection.close()
        assert refused(server, "slow_body") == 1


def test_slow_headers_are_cut_off(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "HEAD_TIMEOUT_S", 0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"POST /story HTTP/1.1\r\nHost: x\r\n")
        slow.settimeout(10)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(200):
                slow.sendall(b"X-A: b\r\n")
                time.sleep(0.05)


def test_idle_connections_make_room(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "MAX_CONNECTIONS", 8)
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    assert server.ask().status_code == 200
    for each in idle:
        each.close()


def test_slow_bodies_make_room(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can name a validator in a header, and then send its body a byte at a time."""
    monkeypatch.setattr(lifecycle, "MAX_CONNECTIONS", 8)
    slow = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(20)]
    for connection in slow:
        connection.putrequest("POST", "/story")
        for name, value in {**signed(story()), "content-length": "100"}.items():
            connection.putheader(name, value)
        connection.endheaders(b'{"task')
    assert server.ask().status_code == 200
    for connection in slow:
        connection.close()


def test_headers_without_end(shared: Running) -> None:
    with socket.create_connection(("127.0.0.1", shared.port)) as flood:
        flood.sendall(b"POST /story HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 100_000)
        flood.settimeout(10)
        assert flood.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/story", 405), ("POST", "/health", 405), ("GET", "/nothing", 404), ("GET", "/docs", 404)],
)
def test_other_paths_say_little(shared: Running, method: str, path: str, status: int) -> None:
    is_refusal(httpx.request(method, shared.url + path, trust_env=False, verify=False), status)


# --- trouble behind -------------------------------------------------------------------------------


def test_busy_says_when_to_come_back(shared: Running) -> None:
    answer = shared.ask("busy")
    is_refusal(answer, 503)
    assert answer.headers["retry-after"] == "7"


def test_an_engine_error_says_nothing_of_the_inside(shared: Running) -> None:
    answer = shared.ask("break")
    is_refusal(answer, 500)
    assert "secret" not in answer.text


def test_bad_input_found_by_the_loader(shared: Running) -> None:
    is_refusal(shared.ask("bad"), 400)


def test_the_deadline_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyfi_lite.miner.service.GRACE_S", 0.0)
    miner = make_miner(tmp_path)
    object.__setattr__(miner.service, "deadline_s", 0.3)
    with running(miner) as server:
        is_refusal(server.ask("hang"), 408)
        until(server.loader.futures[0].cancelled)


def test_a_caller_who_hangs_up_frees_the_slot(server: Running) -> None:
    body = story("hang")
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/story", body, signed(body))
    until(lambda: server.loader.futures)
    connection.close()
    until(server.loader.futures[0].cancelled)
    until(lambda: server.miner.answering == 0)
    assert server.miner.metrics.outcomes == {"CallerGone": 1}


def test_a_job_dropped_by_the_loader_is_an_answer_too(server: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.ask, "hang")
        until(lambda: server.loader.futures)
        server.loader.futures[0].cancel()
        is_refusal(waiting.result(), 503)


def test_without_a_chain_nobody_is_answered(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(hotkey: str) -> None:
        raise Unavailable("the chain was never seen")

    monkeypatch.setattr(server.miner.gate.directory, "lookup", unknown)
    is_refusal(server.ask(), 503)
    assert refused(server, "not_ready") == 1


# --- to see ---------------------------------------------------------------------------------------


def test_health_follows_the_loader(server: Running) -> None:
    assert server.get("/health").status_code == 200
    server.loader.alive = False
    assert server.get("/health").status_code == 503


def test_metrics_count_by_task_outcome_and_reason(server: Running) -> None:
    server.ask()
    server.ask("busy")
    server.ask(key=STRANGER)
    text = server.get("/metrics").text
    assert 'storyfi_requests_total{outcome="answered",task="blueprint",wire="btauth"} 1.0' in text
    assert 'storyfi_requests_total{outcome="Busy",task="blueprint",wire="btauth"} 1.0' in text
    assert 'storyfi_refusals_total{reason="unregistered"} 1.0' in text
    assert "storyfi_caller_stake_tao_total 5000.0" in text
    assert 'storyfi_answer_seconds_bucket{le="30.0",task="blueprint"} 1.0' in text
    assert 'storyfi_first_token_seconds_bucket{le="0.25",task="blueprint"} 1.0' in text
    assert "storyfi_api_usd_today NaN" in text  # a local model costs no money


def test_metrics_tell_what_the_api_cost_today(server: Running) -> None:
    server.loader.usage = Usage(day=20_000, prompt_tokens=1_000, completion_tokens=500, usd=0.025)
    text = server.get("/metrics").text
    assert "storyfi_api_tokens_today 1500.0" in text
    assert "storyfi_api_usd_today 0.025" in text


def test_the_status_page_shows_what_happened_and_escapes_it(server: Running) -> None:
    server.ask()
    body = story()
    server.post(body, {**signed(body), "X-Bittensor-Hotkey": "<script>alert(1)</script>"})
    page = server.get("/").text
    assert "smollm2-135m" in page and VALIDATOR.ss58_address[:8] in page and "unregistered" in page
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=|url\(|@import", page)


def test_the_status_page_says_what_a_validator_would(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ask()
    first = server.get("/").text
    assert re.search(r'class="good">valid, base score \d+ of 100; relevance 0.0 of 15', first)
    monkeypatch.setitem(BLUEPRINT, "setting", "海")
    server.ask()
    assert "not valid, base score" in server.get("/").text


def test_the_status_page_says_each_thing_once_and_what_an_answer_earns(server: Running) -> None:
    server.miner.facts = lambda: {"Model": {"model": "smollm2-135m", "multiplier": "0.5", "predicted": "9 s"}}
    server.ask()
    page = server.get("/").text
    rows = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert rows["predicted"] == "9 s" and re.search(r"tokens/s; blueprint \d+ s; mean of the last 1", rows["measured"])
    assert page.count("<dt>multiplier</dt>") == page.count("<dt>model</dt>") == 1
    base, final = re.findall(r"base score (\d+) of 100.*?>(\d+)\.\d = \d+\.\d × 0.5<", page)[0]
    assert abs(float(base) / 2 - float(final)) <= 1


def test_the_status_page_draws_an_hour_and_says_why_requests_got_no_answer(server: Running) -> None:
    server.ask()
    server.ask("busy")
    server.ask(key=STRANGER)
    server.miner.metrics.minutes.appendleft(Minute(0, answered=1))  # long ago
    page = server.get("/").text
    assert re.search("1 answer in the last hour; 0.. s on average.*; 2 requests refused or not answered", page)
    assert page.count("<rect") == 3  # mean and slowest of this minute; what got no answer
    assert "not registered on this subnet" in page and "it would have been late" in page


@pytest.mark.parametrize(
    ("accepted", "tag"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-Hans"),
        ("fr, zh-TW;q=0.5, en;q=0.4", "zh-Hans"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("zh;q=0, de", "en"),
        ("zh;q=many,,;", "en"),
        ("", "en"),
    ],
)
def test_the_status_page_speaks_the_browsers_language(server: Running, accepted: str, tag: str) -> None:
    page = server.get("/", **{"accept-language": accepted})
    assert f'<html lang="{tag}">' in page.text and page.headers["vary"] == "accept-language"


def test_the_status_page_in_chinese_leaves_names_and_reasons_alone_in_english(server: Running) -> None:
    model = {"model": "smollm2-135m", "file": "a.gguf", "quantization": "Q4_1", "multiplier": "0.5"}
    model |= {"context": "4096 tokens, 4 slot(s), f16 keys and values", "placed": "20 of 30 layers on the GPU"}
    model |= {"predicted": "9 tokens/s; blueprint 10 s, story_arc 39 s; expected reward 0.45"}
    chain = {"state": "connected", "subnet": "'StoryFi dev'", "height": "7", "snapshot's age": "3 s"}
    server.miner.facts = lambda: {"Model": model, "Chain": chain, "Miner": {"uid": "not registered", "network": "dev"}}
    server.ask()
    server.ask("busy")
    server.ask(key=STRANGER)
    server.ask(key=DENIED)
    page = server.get("/", **{"accept-language": "zh"}).text
    shown = unescape(re.sub("<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))
    names = ["storyfi-lite", MINER.ss58_address, VALIDATOR.ss58_address[:8], STRANGER.ss58_address, DENIED.ss58_address]
    names += [
        "smollm2-135m",
        "local_model",
        "scripted",
        "a.gguf",
        "StoryFi dev",
        "Busy",
        "unregistered",
        "denied",
        "on the deny list",
    ]
    for name in [*names, "not registered on this subnet", "--deny", "token", "uid", "incentive", "GPU"]:
        shown = shown.replace(name, "")
    assert not re.findall("[A-Za-z]{4,}", shown)


def test_the_chinese_texts_are_those_of_the_page() -> None:
    modules = ("miner/status.py", "miner/run.py", "opening/local.py", "wire/http_status.py")
    sources = "".join((ROOT / "storyfi_lite" / name).read_text(encoding="utf-8") for name in modules)
    whole = re.sub(r'"\n\s*"', "", sources)  # strings over several lines
    assert not [text for text in CHINESE.texts if text not in whole]
    assert {*MEANING.values()} <= {*CHINESE.texts}


def test_a_page_for_strangers_has_no_addresses_and_no_errors_words(server: Running) -> None:
    server.miner.facts = lambda: {"Chain": {"state": "connected", "detail": "wss://x: cannot reach /home/me"}}
    server.ask(key=STRANGER)
    assert "/home/me" in server.get("/").text and STRANGER.ss58_address in server.get("/").text
    server.miner.open_operator_pages = True
    page = server.get("/").text
    assert not any(secret in page for secret in ("/home/me", STRANGER.ss58_address, "127.0.0.1", "scripted"))
    assert "unregistered" in page


IN_THE_BROWSER = """<script>onload = () => parent.postMessage("SEEN" + JSON.stringify({
    overflow_px: document.documentElement.scrollWidth - document.documentElement.clientWidth, title: document.title,
    fetched: performance.getEntriesByType("resource").length, answers: document.querySelectorAll("td span.good").length,
    lit: getComputedStyle(document.querySelector(".state")).backgroundColor !== "rgba(0, 0, 0, 0)"}) + "END", "*")</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
@pytest.mark.parametrize("width_px", [390, 1200])
def test_a_browser_shows_the_status_page_whole(server: Running, tmp_path: Path, width_px: int) -> None:
    server.ask()
    body = story()
    server.post(body, {**signed(body), "X-Bittensor-Hotkey": "<script>document.title = 'taken over'</script>"})
    page = tmp_path / "page.html"
    frame = escape(server.get("/").text + IN_THE_BROWSER)  # Chromium's own window is never narrower than 500 px
    hear = "<script>onmessage = said => document.body.append(said.data)</script>"
    page.write_text(f'{hear}<iframe srcdoc="{frame}" style="width:{width_px}px"></iframe>', encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    flags += ["--window-size=1280,900", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(["chromium", *flags], capture_output=True, timeout=120, check=True).stdout.decode()
    seen = json.loads(re.findall(r"SEEN(.*?)END", dom)[-1])
    assert seen == {"overflow_px": 0, "title": "storyfi-lite: live", "fetched": 0, "answers": 1, "lit": True}


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"x-forwarded-for": "10.0.0.1"}])
@pytest.mark.parametrize("path", ["/", "/metrics"])
def test_operator_pages_are_for_the_operator(server: Running, path: str, headers: dict[str, str]) -> None:
    assert server.get(path).status_code == 200
    is_refusal(server.get(path, **headers), 404)
    server.miner.open_operator_pages = True
    assert server.get(path, **headers).status_code == 200


def test_a_flood_of_refusals_does_not_flood_the_log(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "storyfi_lite")
    for _ in range(40):
        server.ask(key=STRANGER)
    lines = [record for record in caplog.records if "refused" in record.message]
    assert len(lines) == 5
    assert lines[0].facts["hotkey"] == STRANGER.ss58_address  # type: ignore[attr-defined]
    assert refused(server, "unregistered") == 40


# --- a stop ---------------------------------------------------------------------------------------


def test_a_stop_finishes_what_runs_and_refuses_the_rest(server: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.ask, "sleep:0.6")
        until(lambda: server.loader.futures)
        assert server.server.finish()
        late = server.ask()
        is_refusal(late, 503)
        assert "retry-after" in late.headers
        assert server.get("/health").status_code == 503
        assert waiting.result().status_code == 200
    until(lambda: server.server.should_exit)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    process, url = start(tmp_path)
    body = story("hang")
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as caller:
        head = "".join(f"{name}: {value}\r\n" for name, value in signed(body).items())
        caller.sendall(f"POST /story HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode())
        caller.sendall(body)
        until(lambda: "storyfi_jobs_running 1.0" in httpx.get(url + "/metrics", trust_env=False).text)
        for _ in range(2):  # a wrapper's echo is not a second signal
            process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2 * stopping.ONE_SIGNAL_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert process.stdout is not None
    process.stdout.close()


def is_up(url: str) -> bool:
    try:
        return httpx.get(url + "/health", trust_env=False, verify=False).status_code == 200
    except httpx.TransportError:
        return False


def start(state_dir: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.miner_server", str(state_dir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    until(lambda: is_up(url), 20)
    return process, url


def post(url: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(url + "/story", content=body, headers=headers, trust_env=False, verify=False, timeout=20)


def test_sigterm_finishes_the_answer_in_hand_and_kill_9_forgets_no_nonce(tmp_path: Path) -> None:
    process, url = start(tmp_path)
    body = story()
    headers = signed(body)
    assert post(url, body, headers).status_code == 200
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    process, url = start(tmp_path)
    assert post(url, body, headers).status_code == 401
    answers: list[httpx.Response] = []
    slow = story("sleep:0.8")
    asking = threading.Thread(target=lambda: answers.append(post(url, slow, signed(slow))))
    asking.start()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    asking.join()
    assert answers[0].status_code == 200
    assert process.wait(10) == 143
    assert process.stdout is not None
    process.stdout.close()


def test_a_taken_port_names_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Unavailable, match=r"--axon\.port"):
        lifecycle.bind("127.0.0.1", taken.getsockname()[1])


def test_an_address_that_is_not_ours_names_the_option() -> None:
    for host in ("192.0.2.1", "2001:db8::1", "no such host"):
        with pytest.raises(Unavailable, match=r"--axon\.ip ADDRESS"):
            lifecycle.bind(host, 0)


def test_a_wrong_address_and_a_taken_port_are_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyfi_lite.miner.run.open_wallet", lambda *_: pytest.fail("went on"))
    mine = ["mine", "--network", "dev"]
    told = CliRunner().invoke(cli, [*mine, "--axon.ip", "no such host"])
    assert isinstance(told.exception, Unavailable) and "--axon.ip ADDRESS" in str(told.exception)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = CliRunner().invoke(cli, [*mine, "--axon.port", str(taken.getsockname()[1])])
    assert isinstance(told.exception, Unavailable) and "another with --axon.port" in str(told.exception)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(
    ("listened", "reached", "refused"),
    [("::", ["127.0.0.1", "::1"], []), ("::1", ["::1"], ["127.0.0.1"]), ("0.0.0.0", ["127.0.0.1"], ["::1"])],
)
def test_two_colons_mean_ipv4_and_ipv6(listened: str, reached: list[str], refused: list[str]) -> None:
    with lifecycle.bind(listened, 0) as listener:
        port = listener.getsockname()[1]
        for host in reached:
            socket.create_connection((host, port), 5).close()
        for host in refused:
            with pytest.raises(OSError):
                socket.create_connection((host, port), 5)


def test_a_caller_from_this_machine_on_a_socket_of_both_families_sees_the_page(tmp_path: Path) -> None:
    app = make_miner(tmp_path)
    scope = {"type": "http", "headers": [(b"host", b"127.0.0.1:8091")], "client": ("::ffff:127.0.0.1", 5)}
    app._operator_only(Request(scope))
    for stranger in ("::ffff:192.0.2.7", "2001:db8::7"):
        with pytest.raises(HTTPException):
            app._operator_only(Request({**scope, "client": (stranger, 5)}))
    assert isinstance(app.gate.nonces, SqliteNonceStore)
    app.gate.nonces.close()


def test_an_announcement_that_fails_stops_the_miner(tmp_path: Path) -> None:
    async def announce() -> None:
        raise ConfigError("the address is private: give --axon.external_ip")

    miner = make_miner(tmp_path)
    with pytest.raises(ConfigError, match="external_ip"):
        asyncio.run(lifecycle.serve(miner, "127.0.0.1", 0, announce))
    assert isinstance(miner.gate.nonces, SqliteNonceStore)
    miner.gate.nonces.close()


def test_a_miner_that_can_write_no_more_ends_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor sees an exit; nobody sees a miner that answers 503 for days."""
    monkeypatch.setattr(lifecycle, "WATCH_S", 0.01)
    miner = make_miner(tmp_path)
    miner.loader.alive = False  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="nothing here can write stories any more: "):
        asyncio.run(lifecycle.serve(miner, "127.0.0.1", 0))
    assert isinstance(miner.gate.nonces, SqliteNonceStore)
    miner.gate.nonces.close()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom storyfi_lite.cli.mine import command\n"
        "assert CliRunner().invoke(command, ['--help']).exit_code == 0\n"
        "heavy = {'bittensor', 'llama_cpp', 'openai', 'google.generativeai', 'llguidance', 'uvicorn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- parts ----------------------------------------------------------------------------------------


def test_nonces_stay_bounded_and_what_is_forgotten_stays_refused(tmp_path: Path) -> None:
    now_ns = 10**18
    store = SqliteNonceStore(tmp_path / "n", 60, max_per_hotkey=10, now_ns=lambda: now_ns)
    assert all(store.check_and_store("a", now_ns + number) for number in range(25))
    assert store._db.execute("SELECT count(*) FROM seen").fetchone() == (10,)
    assert not any(store.check_and_store("a", now_ns + number) for number in range(25))
    assert store.check_and_store("b", now_ns)  # another hotkey's flood is not mine
    assert store.check_and_store("a", now_ns + 100)
    store.close()


def test_a_clock_set_back_opens_no_gap(tmp_path: Path) -> None:
    clock = [10**18]
    store = SqliteNonceStore(tmp_path / "n", 60, now_ns=lambda: clock[0])
    old = clock[0]
    assert store.check_and_store("a", old)
    clock[0] += 120 * 10**9
    assert store.check_and_store("a", clock[0])  # and the old one is pruned
    clock[0] = old
    assert not store.check_and_store("a", old)
    store.close()


def test_a_broken_nonce_store_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "n").write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match="--state-dir"):
        SqliteNonceStore(tmp_path / "n", 60)


def test_a_rate_refills() -> None:
    now_s = [0.0]
    limit = RateLimit(6, clock=lambda: now_s[0])  # one in 10 s, two at once
    limit.take("a")
    limit.take("a")
    with pytest.raises(Refused) as refusal:
        limit.take("a")
    assert refusal.value.retry_after_s == pytest.approx(10)
    now_s[0] = 10.1
    limit.take("a")


class FakeNvml:
    """NVML with one card, at the seam below which there is only a driver."""

    @staticmethod
    def nvmlDeviceGetCount() -> int:
        return 1

    @staticmethod
    def nvmlDeviceGetHandleByIndex(index: int) -> int:
        return index

    @staticmethod
    def nvmlDeviceGetName(handle: int) -> str:
        return "NVIDIA GeForce RTX 4090"

    @staticmethod
    def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=7 * 2**30, total=24 * 2**30)

    @staticmethod
    def nvmlDeviceGetTemperature(handle: int, sensor: int) -> int:
        return 61

    @staticmethod
    def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=93)


def test_gpu_series(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector(FakeNvml))
    text = generate_latest(registry).decode()
    assert 'storyfi_gpu_temperature_celsius{gpu="0",name="NVIDIA GeForce RTX 4090"} 61.0' in text
    assert 'storyfi_gpu_memory_used_bytes{gpu="0",name="NVIDIA GeForce RTX 4090"} 7.516192768e+09' in text
    assert 'storyfi_gpu_busy_ratio{gpu="0",name="NVIDIA GeForce RTX 4090"} 0.93' in text


def test_the_scripted_loader_speaks_the_seam() -> None:
    from storyfi_lite.loaders.base import Loader

    loader: Loader = ScriptedLoader()
    assert loader.health().alive
