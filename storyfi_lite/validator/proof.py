"""Proof of model: does this file, under this seed, write these tokens? One prefill, one verdict (docs/proof.md).

What it shows: that the answer came from the claimed file, this request's seed, prompt and grammar. What it cannot show:
on which machine it ran, or that a miner without the file did not have it written by one who has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from storyfi_lite import files
from storyfi_lite.errors import BadInput, GrammarError
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator.verify import same_answer, sampling

if TYPE_CHECKING:
    from storyfi_lite.engine.model import Context, Model
    from storyfi_lite.engine.replay import GivenAnswer, Replay, Replayer
    from storyfi_lite.engine.settings import EngineSettings

Status = Literal["proven", "refuted", "inconclusive"]

MIN_POSITIONS = 150  # a single token weighs too much in fewer (docs/proof.md); the shortest blueprints have some 180
PROVEN_Z, REFUTED_Z = 3.1, 4.5  # standard deviations above the honest mean: 1 in 1,000 and 1 in 300,000 if normal
FAR_Z = 30.0  # refutes short answers too: the farthest of 1,601 short honest texts lay at 8.4, a pasted one at hundreds
ELSEWHERE_NATS = (
    0.015  # another machine's kernels: an honest AVX2 answer was 0.036 off on AVX-512, 0.013 above all of its own
)
SHORTEST_ANSWER_TOKENS = 128  # of those replayed together: a batch has no room for more
MOVED_BY = "XDG_CONFIG_HOME=DIRECTORY"
_CALIBRATIONS = Path(__file__).with_name("calibrations.yaml")


@dataclass(frozen=True)
class Calibration:
    """Honest answers of one file, replayed: the mean margin of a position in nats, its spread within answers, and the
    spread of answers' means beyond that."""

    model_sha256: str
    mean: float
    within_sd: float
    between_sd: float
    answers: int
    positions: int
    refuted: int  # of the answers, each judged by the limits of all others
    made_with: str

    def limit(self, positions: int, z: float) -> float:
        """The mean margin that an honest answer with so many free positions exceeds with probability P(Z > z)."""
        return self.mean + z * math.sqrt(self.between_sd**2 + self.within_sd**2 / positions)

    def proven_to(self, positions: int) -> float:
        return self.limit(positions, PROVEN_Z)

    def refuted_above(self, positions: int) -> float:
        """With room for an honest answer that was written on another kind of machine than the calibration's."""
        return self.limit(positions, FAR_Z if positions < MIN_POSITIONS else REFUTED_Z) + ELSEWHERE_NATS


# Of no file in particular: the widest honest figures seen so far. See docs/proof.md.
UNCALIBRATED = Calibration("", 0.011, 0.081, 0.004, 0, 0, 0, "defaults")


@dataclass(frozen=True)
class Verdict:
    """What a replay says of an answer, or several replays of a miner (reward.standing). `reason` is for people. Margins in
    nats; `limits` are those for proven and refuted at this number of positions. `model`: the registry's key of the file that
    was replayed, which whoever replayed it knows; never the claimed name."""

    status: Status
    reason: str = ""
    mean_margin: float = 0.0
    match_rate: float = 0.0
    positions: int = 0
    limits: tuple[float, float] = (0.0, 0.0)
    calibrated: bool = False
    model: str = ""


NO_PROOF = Verdict("inconclusive", "the answer carries no proof: tokens, text and header are needed")


def judge(replay: Replay, calibration: Calibration) -> Verdict:
    """The verdict on one replay. Pure. Too few positions never prove, and refute only what is far from all honest texts."""
    if replay.refuted:
        return Verdict("refuted", f"the claimed rule cannot write these tokens: {replay.refuted}")
    count, mean = len(replay.margins), replay.mean_margin
    if not count:
        return Verdict("inconclusive", "no free positions")
    short = count < MIN_POSITIONS
    proven_to, refuted_above = calibration.proven_to(count), calibration.refuted_above(count)
    if mean > refuted_above:
        status: Status = "refuted"
    else:
        status = "proven" if mean <= proven_to and not short else "inconclusive"
    reason = f"mean margin {mean:.4f} nats; honest up to {proven_to:.4f}, refuted above {refuted_above:.4f}"
    if short:
        reason += f"; {count} free positions, and a proof needs {MIN_POSITIONS}"
    return Verdict(
        status, reason, mean, replay.match_rate, count, (proven_to, refuted_above), bool(calibration.model_sha256)
    )


class Prover:
    """A file, loaded once, against which any number of answers are proven. Close it, or use it as a context manager.

    Raises BadInput, DoesNotFit or EngineError while loading."""

    def __init__(self, path: Path, settings: EngineSettings | None = None, chat_template: str | None = None) -> None:
        """`settings`: the whole layout of the weights. The context is made anew for each answer's length and KV type."""
        from storyfi_lite.engine.model import Model
        from storyfi_lite.engine.settings import EngineSettings

        self._settings = replace(settings or EngineSettings(), n_slots=1)
        self._path = path
        self.model: Model = Model(path, self._settings, chat_template)
        self._held: tuple[EngineSettings, Context, Replayer] | None = None

    @cached_property
    def sha256(self) -> str:
        from storyfi_lite.models.digest import file_sha256

        return file_sha256(self._path)

    def prove(self, request: StoryRequest, response: StoryResponse, seed: int | None = None) -> Verdict:
        """`request` is what was asked, and `seed` the challenge seed it was bound to (storyfi_lite.protocol.seed), if there is one."""
        return next(self.prove_all([(request, response, seed)]))[1]

    def prove_all(
        self, asked: Sequence[tuple[StoryRequest, StoryResponse, int | None]]
    ) -> Iterator[tuple[int, Verdict]]:
        """Prove answers, as many in one pass over the file as a batch of the layout holds. Takes what `prove` takes; yields each
        one's place in `asked` with its verdict, as soon as it is known. Raises EngineError or DoesNotFit."""
        calibration, places = calibration_of(self.sha256), []
        for at, one in enumerate(asked):
            wrong = self._wrong_claim(*one)
            if wrong:
                yield at, wrong
            else:
                places.append(at)
        for which, replay in self.replay_all([asked[at][:2] for at in places]):
            yield places[which], judge(replay, calibration)

    def replay(self, request: StoryRequest, response: StoryResponse) -> Replay:
        """Prefills our own prompt for the request and the given tokens."""
        return next(self.replay_all([(request, response)]))[1]

    def replay_all(self, asked: Sequence[tuple[StoryRequest, StoryResponse]]) -> Iterator[tuple[int, Replay]]:
        """Replay answers whose claims are not looked at. Yields as `prove_all` does, and raises the same."""
        by_kv_type: dict[Any, list[int]] = {}
        for at, (_, response) in enumerate(asked):
            assert response.proof is not None
            by_kv_type.setdefault(response.proof.kv_type, []).append(at)
        for kv_type, places in by_kv_type.items():
            answers = [self._given(*asked[at]) for at in places]
            longest = max(len(one.fed) for one in answers)
            together = min(sum(len(one.fed) for one in answers), self._settings.n_batch)
            for which, replay in self._replayer(kv_type, max(longest, together)).replay_all(answers):
                yield places[which], replay

    def _given(self, request: StoryRequest, response: StoryResponse) -> GivenAnswer:
        from storyfi_lite.engine.replay import GivenAnswer
        from storyfi_lite.engine.rule import ChoiceRule
        from storyfi_lite.engine.settings import SamplingParams

        header = response.proof
        assert header is not None and response.tokens is not None
        params = SamplingParams(
            seed=header.seed,
            temperature=header.temperature,
            min_p=header.min_p,
            dry_multiplier=header.dry_multiplier,
            dry_base=header.dry_base,
            dry_allowed_length=header.dry_allowed_length,
        )
        constraint = _task(request).constraint_named(request, header.grammar_sha256)
        if constraint is None:
            raise BadInput("the header names no grammar of this task")
        script = _task(request).script(request, constraint)
        conversation = self.model.chat_template.conversation(self.model.vocabulary, script)
        rule = ChoiceRule(self.model.vocabulary, conversation, script, params, header.max_tokens)
        return GivenAnswer(rule, conversation, response.tokens)

    def _replayer(self, kv_type: Any, tokens: int) -> Replayer:
        """On a context of the claimed KV type that holds so many tokens, kept for the next answer; one at a time, or whoever
        is replayed could have us fill our memory with them."""
        from storyfi_lite.engine.model import Context
        from storyfi_lite.engine.replay import Replayer

        if self._held is None or self._held[0].kv_type != kv_type or self._held[0].n_ctx < tokens + 8:
            self._drop_context()
            cells = 1 << max(11, (tokens + 8).bit_length())
            if self._settings.mapped:  # where memory is scarce: as planned, if that is enough
                cells = max(self._settings.n_ctx, tokens + 8)
            settings = replace(self._settings, kv_type=kv_type, n_ctx=cells)
            context = Context(self.model, settings, max(1, settings.n_batch // SHORTEST_ANSWER_TOKENS))
            self._held = (settings, context, Replayer(context))
        return self._held[2]

    def _drop_context(self) -> None:
        if self._held is not None:
            self._held[1].close()
            self._held = None

    def _wrong_claim(self, request: StoryRequest, response: StoryResponse, seed: int | None) -> Verdict | None:
        """What can be told without running the model."""
        from storyfi_lite.engine.rule import answer_of
        from storyfi_lite.engine.settings import KV_TYPE_IDS, SAMPLER, SamplingParams

        header = response.proof
        if header is None or not response.tokens or response.output_text is None:
            return NO_PROOF
        task = _task(request)
        grammar = task.constraint_named(request, header.grammar_sha256) or task.constraint(request)
        script = task.script(request, grammar)
        conversation = self.model.chat_template.conversation(self.model.vocabulary, script)
        claims = {
            "the sampler": (header.sampler, SAMPLER),
            "the file's sha256": (header.model_sha256, self.sha256),
            "the grammar": (header.grammar_sha256, grammar.sha256),
            "the script": (header.prompt_version, script.version),
            "the prompt": (header.prompt_sha256, conversation.sha256),
            "the seed": (header.seed, header.seed if seed is None else seed),
        }
        for name, (claimed, ours) in claims.items():
            if claimed != ours:
                return Verdict("refuted", f"{name} is not the one asked for or claimed: {claimed!s:.80} against {ours}")
        if sampling(header) != sampling(SamplingParams(0)):
            return Verdict("inconclusive", "the sampling parameters are not those that the limits were measured with")
        if header.kv_type not in KV_TYPE_IDS:
            return Verdict("refuted", f"there is no KV cache type {header.kv_type:.20}")
        size = self.model.vocabulary.size
        if any(not 0 <= token < size for token in response.tokens):
            return Verdict("refuted", "a token id is not in the file's vocabulary")
        try:
            spelled = answer_of(script, self.model.vocabulary, response.tokens)
        except GrammarError as error:
            return Verdict("refuted", f"the tokens spell no answer: {error}")
        if spelled != response.output_text:
            return Verdict("refuted", "the tokens do not spell the text")
        if not script.min_tokens_bound <= header.max_tokens or len(response.tokens) > header.max_tokens:
            return Verdict("refuted", "the claimed token budget cannot hold this answer")
        if not same_answer(response):
            return Verdict("refuted", "output_text and output_data differ")
        return None

    def close(self) -> None:
        self._drop_context()
        self.model.close()

    def __enter__(self) -> Prover:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _task(request: StoryRequest) -> Any:
    from storyfi_lite import tasks

    return tasks.get(request.task_type)


def calibration_of(sha256: str, path: Path | None = None) -> Calibration:
    """The file's calibration: the user's own, else the shipped one, else UNCALIBRATED. Raises BadInput for a broken file."""
    for place in (path or user_calibrations(), _CALIBRATIONS):
        if place.exists():
            rows = _read(place)
            if sha256 in rows:
                return Calibration(sha256, **rows[sha256])
    return UNCALIBRATED


def save_calibration(calibration: Calibration, path: Path | None = None) -> Path:
    """Adds it to the user's own calibrations; returns their file. Raises ConfigError or DoesNotFit where it cannot be written."""
    path = path or user_calibrations()
    rows = _read(path) if path.exists() else {}
    fields = {key: value for key, value in vars(calibration).items() if key != "model_sha256"}
    rows[calibration.model_sha256] = fields
    files.write_text(path, yaml.safe_dump(rows, sort_keys=False), MOVED_BY)
    return path


def user_calibrations() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("storyfi-lite")) / "calibrations.yaml"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows = yaml.safe_load(path.read_text()) or {}
    fields = set(Calibration.__dataclass_fields__) - {"model_sha256"}
    if not isinstance(rows, dict) or any(not isinstance(row, dict) or set(row) != fields for row in rows.values()):
        raise BadInput(f"{path} does not hold calibrations; make them with `storyfi-lite calibrate --model.path FILE`")
    return rows


def calibrate(sha256: str, replays: list[Replay], made_with: str) -> Calibration:
    """From replays of honest answers; `refuted` counts those that the limits made from all others would refute. Raises
    BadInput if they are too few to tell a spread."""
    sums = [_Sums.of(replay.margins) for replay in replays if len(replay.margins) >= MIN_POSITIONS]
    if len(sums) < 6:
        raise BadInput(f"{len(sums)} answers with at least {MIN_POSITIONS} free positions; at least 6 are needed")
    whole = _calibration(sha256, sums, made_with)
    total = _Sums.together(sums)
    means = _Sums.of([one.mean for one in sums])
    refuted = 0
    for one in sums:
        others = _limits(total.less(one), means.less(_Sums.of([one.mean])))
        refuted += one.mean > Calibration("", *others, 0, 0, 0, "").refuted_above(one.count)
    return replace(whole, refuted=refuted)


@dataclass(frozen=True)
class _Sums:
    """Of some numbers: how many, their sum, the sum of their squares."""

    count: int
    sum: float
    squares: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> _Sums:
        return cls(len(numbers), math.fsum(numbers), math.fsum(number * number for number in numbers))

    @classmethod
    def together(cls, parts: Sequence[_Sums]) -> _Sums:
        return cls(
            sum(one.count for one in parts),
            math.fsum(one.sum for one in parts),
            math.fsum(one.squares for one in parts),
        )

    def less(self, other: _Sums) -> _Sums:
        return _Sums(self.count - other.count, self.sum - other.sum, self.squares - other.squares)

    @property
    def mean(self) -> float:
        return self.sum / self.count

    @property
    def variance(self) -> float:
        return max(0.0, (self.squares - self.sum * self.mean) / (self.count - 1))


def _calibration(sha256: str, sums: list[_Sums], made_with: str) -> Calibration:
    total, means = _Sums.together(sums), _Sums.of([one.mean for one in sums])
    mean, within, between = (round(one, 6) for one in _limits(total, means))
    return Calibration(sha256, mean, within, between, len(sums), total.count, 0, made_with)


def _limits(positions: _Sums, means: _Sums) -> tuple[float, float, float]:
    """Mean, spread within answers, and the spread of answers' means that the positions' own does not explain."""
    within = positions.variance
    between = max(0.0, means.variance - within * means.count / positions.count)
    return positions.mean, math.sqrt(within), math.sqrt(between)


def rate_bound(found: int, of: int) -> float:
    """Clopper and Pearson's one-sided 95 % upper bound on a rate of which `found` in `of` were seen."""
    low, high = found / of, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        logs = [
            math.log(math.comb(of, k)) + k * math.log(rate) + (of - k) * math.log1p(-rate) for k in range(found + 1)
        ]
        low, high = (rate, high) if math.fsum(map(math.exp, logs)) > 0.05 else (low, rate)
    return high
