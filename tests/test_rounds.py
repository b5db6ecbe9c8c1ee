"""The validator's loop: what is drawn, who is asked and checked, what a round pays, what a restart finds again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from storyfi_lite.chain.types import MetagraphSnapshot, Neuron, WriteResult
from storyfi_lite.errors import BadInput, Busy, ConfigError, LiteError, Unavailable
from storyfi_lite.models.registry import ModelSpec, load_registry
from storyfi_lite.models.store import Store
from storyfi_lite.options import ChainOptions
from storyfi_lite.protocol.messages import parse_request, parse_response
from storyfi_lite.protocol.seed import challenge_seed
from storyfi_lite.rounds.audit import Auditor, Candidate, KnownFile, choose, known_files
from storyfi_lite.rounds.loop import ValidateOptions, _Loop
from storyfi_lite.rounds.query import Reply, Target, ask, client, query
from storyfi_lite.rounds.questions import STAGES, Question, Story, draw, made_up
from storyfi_lite.rounds.round import RoundReport, RoundRules, judge_round
from storyfi_lite.rounds.state import Outcome, Standing, State
from storyfi_lite.validator import CopyIndex, Evidence, Prover, Verdict, fingerprint, load_policy
from tests.answers import ASKED, CHINESE, ENGLISH, as_bytes, blueprint_request, header
from tests.miner_server import MINER, VALIDATOR, make_miner, running

REGISTRY, POLICY = load_registry(), load_policy()
RULES = RoundRules(REGISTRY, POLICY, VALIDATOR.ss58_address, proofs=8, files={"a" * 64})
WALLET: Any = SimpleNamespace(hotkey=VALIDATOR, coldkey=VALIDATOR, coldkeypub=VALIDATOR)
QUESTION = Question(blueprint_request(), Story(ASKED[0][0]))


# --- draw ----------------------------------------------------------------------------------------------------------


def stories_of_all_lengths() -> list[Story]:
    stages = {stage: {"title": stage} for stage in STAGES[:3]}
    return [Story("a heist", dict(list(stages.items())[:count]), count) for count in range(1, 4)]


def test_tasks_are_drawn_by_the_networks_shares() -> None:
    dice, stories = random.Random(1), stories_of_all_lengths()
    tasks = Counter(draw(dice, stories).request.task_type for _ in range(4000))
    shares = {task: round(count / 4000, 2) for task, count in tasks.items()}
    assert shares == pytest.approx(
        {"blueprint": 0.40, "characters": 0.25, "story_arc": 0.25, "chapters": 0.10}, abs=0.02
    )


def test_a_later_task_carries_the_real_earlier_stages_of_one_story() -> None:
    dice = random.Random(2)
    for _ in range(200):
        question = draw(dice, stories_of_all_lengths())
        request = question.request
        needed = STAGES[: STAGES.index(request.task_type)]
        assert [stage for stage in STAGES[:3] if getattr(request, stage) is not None] == list(needed)
        assert all(getattr(request, stage) == question.story.stages[stage] for stage in needed)
        assert (request.chapter_ids is None) == (request.task_type != "chapters")


def test_without_a_story_far_enough_the_stage_before_is_asked() -> None:
    dice = random.Random(3)
    assert {draw(dice, []).request.task_type for _ in range(50)} == {"blueprint"}
    begun = [Story("a heist", {"blueprint": {"title": "x"}}, 1)]
    assert {draw(dice, begun).request.task_type for _ in range(100)} == {"blueprint", "characters"}


def test_inputs_are_the_operators_or_made_up_in_two_languages() -> None:
    dice = random.Random(4)
    assert {draw(dice, [], ["one", "two"]).request.user_input for _ in range(50)} == {"one", "two"}
    texts = {made_up(dice) for _ in range(500)}
    assert len(texts) > 450 and {text.isascii() for text in texts} == {True, False}


# --- query ---------------------------------------------------------------------------------------------------------


def test_our_own_miner_is_asked_over_btauth(tmp_path: Path) -> None:
    with running(make_miner(tmp_path)) as miner:
        reply = ask(WALLET, MINER.ss58_address, ("127.0.0.1", miner.port), blueprint_request())
        seed = challenge_seed(VALIDATOR.ss58_address, MINER.ss58_address, str(reply.nonce_ns), "blueprint", ASKED[0][0])
        assert (reply.wire, miner.loader.jobs[0].seed) == ("btauth", seed)
        assert parse_response(reply.body).output_data["title"] == "灯塔与海"
        with pytest.raises(Busy):
            ask(WALLET, MINER.ss58_address, ("127.0.0.1", miner.port), blueprint_request("busy"))


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Starts a server that does with its one connection what it is told; gives its port."""
    listeners: list[socket.socket] = []

    def start(serve: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                with contextlib.suppress(OSError):  # the validator hung up
                    serve(connection)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65_536):
                        pass  # a connection closed with unread bytes is reset, and what it answered is lost

        threading.Thread(target=run, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


def trickle(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 1_000_000)


@pytest.mark.parametrize(
    ("serve", "says"),
    [
        (trickle, "no answer within 0.5 s"),
        (flood, "more than 4,000,000 bytes"),
        (
            lambda connection: connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n"),
            "HTTP 302",
        ),
        (lambda connection: connection.sendall(b"what?\r\n\r\n"), "RemoteProtocolError"),
        (lambda connection: None, "no answer"),
    ],
)
def test_a_hostile_miner_costs_bounded_time_and_memory(
    raw_server: Callable[[Callable[[socket.socket], None]], int], serve: Callable[[socket.socket], None], says: str
) -> None:
    with pytest.raises(Unavailable, match=says):
        ask(WALLET, MINER.ss58_address, ("127.0.0.1", raw_server(serve)), blueprint_request(), timeout_s=0.5)


@pytest.mark.parametrize(
    ("before", "spoken", "served", "wire"),
    [
        ("", "/StoryGenerationSynapse", ["/StoryGenerationSynapse"], "dendrite-3.2.1"),
        ("", "/story", ["/StoryGenerationSynapse", "/story"], "btauth"),
        ("btauth", "/story", ["/story"], "btauth"),
        ("dendrite", "/StoryGenerationSynapse", ["/StoryGenerationSynapse"], "dendrite"),
        ("dendrite", "/story", ["/StoryGenerationSynapse", "/story"], "btauth"),  # it was brought up to date
    ],
)
def test_the_wire_that_a_miner_spoke_last_comes_first_and_all_the_time_counts(
    before: str, spoken: str, served: list[str], wire: str
) -> None:
    paths, encodings = [], []

    class Miner(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            paths.append(self.path)
            encodings.append(self.headers["accept-encoding"])
            time.sleep(0.2)
            self.send_response(200 if self.path == spoken else 404)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None: ...

    async def once(timeout_s: float) -> Reply:
        target = Target(MINER.ss58_address, ("127.0.0.1", server.server_port), before)
        async with client() as connection:
            return await query(connection, WALLET, target, blueprint_request(), timeout_s)

    with ThreadingHTTPServer(("127.0.0.1", 0), Miner) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reply = asyncio.run(once(20))
        assert (paths, reply.wire, set(encodings)) == (served, wire, {"identity"})
        assert reply.elapsed_s >= 0.2 * len(served)
        with pytest.raises(Unavailable, match=r"no answer within 0\.1 s"):
            asyncio.run(once(0.1))
        server.shutdown()


# --- audit ---------------------------------------------------------------------------------------------------------


def some(hotkey: str, gain: float, statuses: Sequence[Any] = (), model: str = "llama-3-70b") -> Candidate:
    response = parse_response(as_bytes(ENGLISH, tokens=[1], proof=header(QUESTION.request), model_name=model))
    return Candidate(hotkey, QUESTION.request, response, 7, gain, Evidence(model, tuple(statuses)))


def test_the_budget_favours_high_claims_new_miners_and_those_refuted_before() -> None:
    known = ["proven"] * 5
    candidates = [
        some("high claim, new", 1.0), some("high claim, known", 1.0, known), some("low claim, known", 0.1, known),
        some("refuted once", 0.1, [*known, "refuted"]),
    ]  # fmt: skip
    dice = random.Random(5)
    drawn = Counter(one.hotkey for _ in range(2000) for one in choose(candidates, 1, POLICY, dice))
    order = [hotkey for hotkey, _ in drawn.most_common()]
    assert order == ["high claim, new", "high claim, known", "refuted once", "low claim, known"]
    assert len(choose(candidates, 3, POLICY, dice)) == 3 and choose(candidates, 0, POLICY, dice) == []


def listed(model: str, quant: str, path: Path) -> KnownFile:
    spec = REGISTRY.find(model)
    assert isinstance(spec, ModelSpec)
    return KnownFile("a" * 64, path, spec, spec.file(quant))


def opened_never(file: KnownFile) -> Prover:
    raise AssertionError("no replay was needed")


def validate_options(chain: ChainOptions, **changes: Any) -> ValidateOptions:
    one_round: dict[str, Any] = {
        "rounds": 1, "interval_s": 0.0, "timeout_s": 5.0, "proofs": 0, "model_paths": (), "n_threads": 1,
        "policy_path": None, "inputs_path": None, "dry_run": False, "state_dir": None,
    }  # fmt: skip
    return ValidateOptions(chain=chain, **(one_round | changes))


def test_a_header_that_names_another_models_file_is_refuted_without_a_replay(tmp_path: Path) -> None:
    file = listed("smollm2-135m", "Q4_1", tmp_path / "never-opened")
    verdict = Auditor({file.sha256: file}, REGISTRY, opened_never).prove([some("5F", 1.0)])["5F"]
    assert (verdict.status, verdict.model) == ("refuted", "llama-3-70b")
    assert "names a file of smollm2-135m" in verdict.reason


def test_a_file_that_is_not_here_or_cannot_be_loaded_refutes_nobody(tmp_path: Path) -> None:
    report, outcome = play({"old": reply(**GOOD)}, {"old": TRUSTED}, rules=replace(RULES, files=()), old="proven")
    assert (rows(report)["old"].multiplier, rows(report)["old"].proof) == (
        0.5,
        "no proof",
    )  # nor keeps it a standing alive
    assert outcome.standings["old"].evidence == TRUSTED.evidence
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    file = listed("llama-3-70b", "Q4_K_M", broken)
    auditor = Auditor({file.sha256: file}, REGISTRY, lambda file: Prover(file.path))
    assert auditor.prove([some("5F", 1.0)]) == {}


def test_a_refuted_answer_names_the_file_that_wrote_it(tmp_path: Path) -> None:
    """Each file is opened once, one of another vocabulary not at all, and no file for a miner that was refuted often before."""
    opened = []

    class Of:
        def __init__(self, file: KnownFile) -> None:
            self._file = file
            opened.append(file.file.quant)

        def prove_all(self, asked: Any) -> Iterator[tuple[int, Verdict]]:
            for at in range(len(asked)):
                assert asked[at][1].proof.model_sha256 == self._file.sha256
                wrote = self._file.file.quant in ("Q4_K_M", "Q5_K_M")
                evidence = {"Q4_K_M": 20.0, "Q5_K_M": 9.0}.get(self._file.file.quant, -40.0)
                yield at, Verdict("proven" if wrote else "refuted", "weighed", evidence, positions=160)

        def close(self) -> None:
            pass

    files = {
        sha256: replace(listed(model, quant, tmp_path), sha256=sha256)
        for sha256, model, quant in (
            ("a" * 64, "llama-3-70b", "Q8_0"), ("b" * 64, "llama-3-70b", "Q4_K_M"), ("c" * 64, "llama-3-70b", "Q5_K_M"),
            ("d" * 64, "mistral-7b", "Q4_K_M"),
        )
    }  # fmt: skip
    auditor = Auditor(files, REGISTRY, lambda file: cast(Prover, Of(file)))
    found = auditor.prove([some("new", 1.0), some("old", 1.0, ["refuted"] * 2)])
    assert opened == ["Q8_0", "Q4_K_M", "Q5_K_M"]
    assert found["new"].status == "refuted" and found["new"].written_by == found["new"].model == "llama-3-70b"
    assert found["new"].reason == "written by Q4_K_M of the same model; weighed" and not found["old"].written_by


def test_closing_waits_for_the_replay_in_hand_and_starts_no_other() -> None:
    """Ctrl-C must not free a file's memory under a replay that reads it."""
    file = listed("llama-3-70b", "Q4_K_M", Path("never-opened"))
    begun, go_on, proven = threading.Event(), threading.Event(), []

    class Slow:
        def prove_all(self, asked: Any) -> Iterator[tuple[int, Verdict]]:
            for at in range(len(asked)):
                begun.set()
                assert go_on.wait(20)
                proven.append(at)
                yield at, Verdict("proven")

        def close(self) -> None:
            assert proven

    auditor = Auditor({file.sha256: file}, REGISTRY, lambda file: cast(Prover, Slow()))
    proving = threading.Thread(target=auditor.prove, args=([some("a", 1.0), some("b", 1.0)],))
    proving.start()
    assert begun.wait(20)
    closing = threading.Thread(target=auditor.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive() and not proven
    go_on.set()
    closing.join(20)
    proving.join(20)
    assert proven == [0]


def test_files_to_replay_with_are_the_registrys(small_model_path: Path, tmp_path: Path) -> None:
    files = known_files(REGISTRY, Store(tmp_path), [small_model_path])
    assert [(file.spec.key, file.file.quant) for file in files.values()] == [("smollm2-135m", "Q4_1")]
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=r"no file of models\.yaml"):
        known_files(REGISTRY, Store(tmp_path), [other])


# --- a round -------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"tokens": [1, 2], "proof": header(QUESTION.request), "model_name": "llama-3-70b"}


def reply(data: Any = ENGLISH, elapsed_s: float = 10.0, **changes: Any) -> Reply:
    return Reply(as_bytes(data, **changes), elapsed_s, 1)


def verdicts(**statuses: Any) -> Callable[[Sequence[Candidate]], Mapping[str, Verdict]]:
    """Replays that end as told, for those who are drawn."""

    def prove(drawn: Sequence[Candidate]) -> Mapping[str, Verdict]:
        return {
            one.hotkey: Verdict(statuses[one.hotkey], "as told", model="llama-3-70b")
            for one in drawn
            if one.hotkey in statuses
        }

    return prove


def play(
    replies: Mapping[str, Reply | str],
    standings: Mapping[str, Standing] | None = None,
    index: CopyIndex | None = None,
    rules: RoundRules = RULES,
    **statuses: Any,
) -> tuple[RoundReport, Outcome]:
    return judge_round(
        1, QUESTION, replies, standings or {}, index or CopyIndex(), rules, verdicts(**statuses), random.Random(6)
    )


def rows(report: RoundReport) -> dict[str, Any]:
    return {row.hotkey: row for row in report.rows}


TRUSTED = Standing(50.0, Evidence("llama-3-70b", ("proven",) * 3))


def test_a_proven_miner_is_paid_its_models_figure_a_new_one_half() -> None:
    report, outcome = play({"old": reply(**GOOD)}, {"old": TRUSTED}, old="proven")
    row = rows(report)["old"]
    assert (row.multiplier, row.proof) == (1.5, "proven") and row.base > 90
    assert row.average == pytest.approx(50 + 0.2 * (row.base * 1.5 - 50))
    assert outcome.standings["old"].evidence.statuses == ("proven",) * 4
    report, outcome = play({"new": reply(**GOOD)}, new="proven")
    assert rows(report)["new"].multiplier == 0.5  # one proof is not three
    assert "not proven yet: this answer is, 3 of its answers" in rows(report)["new"].paid_for
    assert outcome.standings["new"].evidence.statuses == ("proven",)


def test_a_trusted_miner_is_not_paid_for_an_answer_that_cannot_be_replayed() -> None:
    report, _ = play({"old": reply(model_name="llama-3-70b")}, {"old": TRUSTED})
    assert (rows(report)["old"].multiplier, rows(report)["old"].proof) == (0.5, "no proof")


def test_an_answer_that_a_replay_does_not_prove_is_not_paid_as_proven() -> None:
    report, outcome = play({"old": reply(**GOOD)}, {"old": TRUSTED}, old="inconclusive")
    assert rows(report)["old"].multiplier == 0.5
    assert outcome.standings["old"].evidence == TRUSTED.evidence


def test_the_log_has_the_missions_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        report, _ = play({"5F3sa2TJAWMq": reply()})
    base = report.rows[0].base
    assert f"Miner 5F3sa2TJ: Base={base:.1f}, Multiplier=0.50x, Final={base / 2:.1f}" in caplog.text


def test_refutations_pay_less_at_once_and_nothing_when_there_are_two() -> None:
    report, outcome = play({"old": reply(**GOOD)}, {"old": TRUSTED}, old="refuted")
    assert rows(report)["old"].multiplier == 0.5 and "as told" in rows(report)["old"].problem
    report, outcome = play({"old": reply(**GOOD)}, outcome.standings, old="refuted")
    assert (rows(report)["old"].multiplier, rows(report)["old"].final) == (0.0, 0.0)


def test_who_does_not_answer_or_answers_nonsense_gets_nothing_and_keeps_its_evidence() -> None:
    standings = {"gone": TRUSTED, "junk": TRUSTED}
    report, outcome = play({"gone": "no answer (ConnectError)", "junk": Reply(b"\xff{", 1.0, 1)}, standings)
    assert [row.final for row in report.rows] == [0.0, 0.0]
    assert all(standing.average == pytest.approx(40.0) for standing in outcome.standings.values())
    assert all(standing.evidence == TRUSTED.evidence for standing in outcome.standings.values())
    assert outcome.story is None and not outcome.fingerprints


def test_of_two_alike_the_first_is_paid_unless_a_proof_names_the_writer() -> None:
    report, _ = play({"first": reply(), "second": reply()})
    assert rows(report)["first"].base > 0 and rows(report)["second"].base == 0
    report, _ = play({"thief": reply(), "writer": reply(**GOOD)}, writer="proven")
    assert rows(report)["thief"].base == 0 and rows(report)["writer"].base > 0
    assert "near-copy" in rows(report)["thief"].problem


def test_an_answer_given_in_an_earlier_round_earns_nothing() -> None:
    old = fingerprint(QUESTION.request, ENGLISH, "somebody")
    report, _ = play({"late": reply(), "fresh": reply(CHINESE)}, index=CopyIndex([old]))
    assert rows(report)["late"].base == 0 and rows(report)["fresh"].base > 0


def test_no_more_answers_are_replayed_than_the_budget_has() -> None:
    replies = {f"m{at}": reply(data, **GOOD) for at, (_, data) in enumerate(ASKED)}
    report, _ = play(replies, rules=replace(RULES, proofs=2), **cast(Any, dict.fromkeys(replies, "proven")))
    assert Counter(row.proof for row in report.rows) == {"proven": 2, "not drawn": 2}


def test_the_best_valid_answer_carries_the_story_on() -> None:
    _, outcome = play({"slow": reply(CHINESE, 50.0), "quick": reply(ENGLISH, 5.0), "bad": reply({"title": "x"})})
    assert outcome.story == Story(ASKED[0][0], {"blueprint": ENGLISH})


def test_the_rounds_record_is_json_with_every_miner() -> None:
    report, outcome = play({"a": reply(), "b": "no answer"})
    record = json.loads(outcome.report)
    assert [row["hotkey"] for row in record["rows"]] == ["a", "b"] and record["task"] == "blueprint"
    assert record == json.loads(report.to_json())


def test_a_dry_run_with_nobody_to_ask_says_what_to_start() -> None:
    options = validate_options(ChainOptions(netuid=108, network="dev", wallet="v", hotkey="d"), dry_run=True)
    session: Any = SimpleNamespace(snapshot=MetagraphSnapshot(1000, 0.0, ()))
    loop = _Loop(options, WALLET, session, State(None), Auditor({}, REGISTRY, opened_never), RULES, [])
    with pytest.raises(Unavailable, match=r"(?s)no miner on dev.*storyfi-lite mine --network dev "):
        asyncio.run(loop.run(lambda report: None))


def test_a_miner_that_withdraws_does_not_keep_its_weight(tmp_path: Path) -> None:
    """Also weights: a state that saw a higher block than the chain has is another chain's, and does not stop them."""
    options = validate_options(ChainOptions(netuid=92, network="dev", wallet="v", hotkey="d"))
    state, sent = State(None), []
    state.save(Outcome({"gone": Standing(100.0), "deregistered": Standing(100.0)}, [], None, "{}"))
    state.weights_set(6_500_000)

    async def set_weights(shares: dict[int, float]) -> WriteResult:
        sent.append(shares)
        return WriteResult(True, "ok", "", "set", 1, None)

    with running(make_miner(tmp_path)) as miner:
        neurons = [
            Neuron(0, "gone", 0.0, False, None, 0.0),
            Neuron(1, MINER.ss58_address, 0.0, False, ("127.0.0.1", miner.port), 0.0),
            Neuron(2, VALIDATOR.ss58_address, 9.0, True, None, 0.0),
        ]
        session: Any = SimpleNamespace(snapshot=MetagraphSnapshot(1000, 0.0, tuple(neurons)), set_weights=set_weights)
        loop = _Loop(options, WALLET, session, state, Auditor({}, REGISTRY, opened_never), replace(RULES, files=()), [])
        shown: list[RoundReport] = []
        asyncio.run(loop.run(shown.append))
    row = rows(shown[0])["gone"]
    assert (row.final, row.average, row.problem) == (0.0, 80.0, "no endpoint")
    assert state.standings()["deregistered"].average == 100.0 and VALIDATOR.ss58_address not in rows(shown[0])
    assert set(sent[0]) == {0, 1} and state.weights_block == 1


# --- state ---------------------------------------------------------------------------------------------------------


def outcome(number: int, story: Story | None = None) -> Outcome:
    standing = Standing(float(number), Evidence("yi-34b", ("proven", "refuted")), "dendrite")
    print = fingerprint(QUESTION.request, ENGLISH, "5F")
    return Outcome({"5F": standing}, [print], story, json.dumps({"number": number}))


def test_a_restart_finds_everything_again(tmp_path: Path) -> None:
    state = State(tmp_path / "v.sqlite")
    state.save(outcome(1, Story("a heist", {"blueprint": CHINESE})))
    begun = state.stories()[0]
    state.save(outcome(2, replace(begun, stages={**begun.stages, "characters": {"characters": []}})))
    state.weights_set(1234)
    state.close()
    again = State(tmp_path / "v.sqlite")
    assert again.standings() == {"5F": Standing(2.0, Evidence("yi-34b", ("proven", "refuted")), "dendrite")}
    assert [story.stages for story in again.stories()] == [{"blueprint": CHINESE, "characters": {"characters": []}}]
    assert (again.rounds, again.weights_block) == (2, 1234)
    index = CopyIndex(again.fingerprints())
    report, _ = play({"late": reply()}, index=index)
    assert len(index) == 2 and rows(report)["late"].base == 0
    again.close()


def test_a_round_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    state = State(tmp_path / "v.sqlite")
    state.save(outcome(1))
    with pytest.raises(sqlite3.Error):
        state.save(replace(outcome(2), report=None))  # type: ignore[arg-type]
    assert (state.rounds, state.standings()["5F"].average) == (1, 1.0)
    assert len(list(state.fingerprints())) == 1
    state.close()


def test_two_validators_cannot_share_a_state(tmp_path: Path) -> None:
    state = State(tmp_path / "v.sqlite")
    with pytest.raises(ConfigError, match="another validator"):
        State(tmp_path / "v.sqlite")
    state.close()
    State(tmp_path / "v.sqlite").close()


@pytest.mark.parametrize("content", [b"not a database at all", b""])
def test_a_file_that_is_no_state_is_refused_or_new(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.sqlite"
    path.write_bytes(content)
    if content:
        with pytest.raises(ConfigError):
            State(path)
        assert path.read_bytes() == content
    else:
        State(path).close()


def test_a_dry_run_reads_everything_and_keeps_nothing(tmp_path: Path) -> None:
    state = State(tmp_path / "v.sqlite")
    state.save(outcome(1))
    copy = state.copy()
    copy.save(outcome(2))
    assert (copy.rounds, state.rounds) == (2, 1)
    copy.close()
    state.close()


_SAVER = """
import sys
from pathlib import Path
from storyfi_lite.rounds.state import State
from tests.test_rounds import outcome
state, number = State(Path(sys.argv[1])), 0
print("ready", flush=True)
while True:
    number = state.rounds + 1
    state.save(outcome(number))
"""


def test_kill_9_loses_no_whole_round_and_keeps_no_half_one(tmp_path: Path) -> None:
    path, rounds = tmp_path / "v.sqlite", 0
    for wait_s in (0.05, 0.13, 0.02):
        with subprocess.Popen([sys.executable, "-c", _SAVER, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(wait_s)
            os.kill(process.pid, signal.SIGKILL)
        state = State(path)
        assert state.rounds >= rounds
        rounds = state.rounds
        if rounds:
            assert state.standings()["5F"].average == rounds == len(list(state.fingerprints()))
        state.close()
    assert rounds > 0


# --- from the command line -----------------------------------------------------------------------------------------


def test_validate_says_what_is_wrong_before_it_asks_anybody(tmp_path: Path) -> None:
    from storyfi_lite.rounds.loop import run

    (tmp_path / "empty").write_text("\n")
    chain = ChainOptions(netuid=108, network=f"dev:{tmp_path}", wallet="validator", hotkey="default")
    options = validate_options(chain, inputs_path=tmp_path / "empty", state_dir=tmp_path)
    with pytest.raises(BadInput, match="one a line"):
        run(options, lambda report: None)
    with pytest.raises(LiteError, match="btcli wallet create"):
        elsewhere = replace(chain, network="nowhere", wallet_path=tmp_path / "wallets")
        run(replace(options, chain=elsewhere, inputs_path=None), lambda report: None)


def test_the_request_that_is_sent_is_one_that_a_miner_takes() -> None:
    """Also with the stages of real answers: what the draw makes is what the edge accepts."""
    for story in stories_of_all_lengths():
        request = draw(random.Random(7), [story]).request
        assert parse_request(request.model_dump_json(exclude_none=True).encode()) == request
