"""Answers from a GGUF file on this machine: task -> script -> engine -> checked answer with its proof header."""

from __future__ import annotations

import codecs
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

from storyfi_lite import files, tasks
from storyfi_lite.engine.engine import Engine, EngineJob, Generation
from storyfi_lite.engine.model import ENGINE_NAME, Context, Feed
from storyfi_lite.engine.rule import thought_length
from storyfi_lite.engine.settings import SAMPLER, EngineSettings, SamplingParams
from storyfi_lite.errors import BadInput, EngineError, LiteError
from storyfi_lite.futures import follow, settle
from storyfi_lite.grammar import Constraint
from storyfi_lite.grammar.prose import Prose
from storyfi_lite.grammar.script import Script, one_turn
from storyfi_lite.loaders import forecast
from storyfi_lite.loaders.base import Answer, Job, LoaderHealth, ModelClaim, Written
from storyfi_lite.loaders.forecast import EXAMPLES, Promises
from storyfi_lite.models.digest import file_sha256
from storyfi_lite.placement import lengths, queue
from storyfi_lite.placement.lengths import Work
from storyfi_lite.protocol.messages import ModelInfo, ProofHeader, StoryRequest

log = logging.getLogger(__name__)

_KEPT_IN = "lengths.json"  # how long each file's answers are, learnt from them
_WARM_UP_S = 600.0
# A few words in each language, about twenty tokens, and steps that tell what several answers and many cells cost: so many, or so
# many seconds; so many cells, or as many as are read in twice so many seconds.
_WORDS = {"English": Prose(60, 100), "Chinese": Prose(20, 35)}
_LEAST_STEPS, _MOST_STEPS, _STEPS_S = 8, 16, 0.25
_FEW_CELLS, _MANY_CELLS, _CELLS_S = 32, 512, 2.5


@dataclass(frozen=True)
class LocalModel:
    """Says which file, and what may be said of it. `name` is the registry's key, or the file's own name for an unlisted GGUF."""

    path: Path
    name: str
    quantization: str
    provider: str  # repository, or "unlisted"
    multiplier: float
    chat_template: str | None = None


class LocalModelLoader:
    """Implements `Loader` (loaders/base.py) with a file on this machine. Loading raises BadInput, DoesNotFit or EngineError; BadInput too for a model that knows no
    thoughts and is given `think_tokens`."""

    def __init__(
        self, model: LocalModel, settings: EngineSettings, gpu_memory_gb: float = 0.0, think_tokens: int | None = None
    ) -> None:
        self._model = model
        self._think_tokens = think_tokens
        self._settings = settings
        self.engine = Engine(model.path, settings, model.chat_template)
        if think_tokens:
            try:
                self.engine.conversation(one_turn("", {}).thinking(think_tokens))
            except BadInput:
                self.engine.close()
                raise
        self.sha256 = file_sha256(model.path)  # here, not on the engine's thread: a large file takes minutes once
        name, quant, size = model.name, model.quantization, self.engine.model.metadata("general.size_label")
        parameters = {"quantization": quant, "size": size, "sha256": self.sha256}  # as the file itself says it
        info = ModelInfo(mode="local", name=name, version=quant, provider=model.provider, parameters=parameters)
        self.claim = ModelClaim("LocalModelLoader", name, info, gpu_memory_gb, model.multiplier)
        self.promises = Promises(settings.n_slots)

    def warm_up(self) -> None:
        """Write a few words for the commonest task in each language, and throw them away: the prompts' beginnings stay cached, and
        the pace is known before the first request. Logs how long each task will take."""
        least, usual = self._llama_pace()
        words, until_s = [], time.monotonic() + _WARM_UP_S
        for language, prose in _WORDS.items():
            asked = StoryRequest(task_type="blueprint", user_input=EXAMPLES[language])
            script = tasks.get("blueprint").script(asked)
            script = one_turn(script.pieces[0].ask, {"setting": prose}, script.system, script.material)
            words.append(self.engine.submit(EngineJob(script, SamplingParams(0), until_s)).result())
        # what is not llama.cpp's, each answer's choice under its grammar, comes again with every answer
        word_s = statistics.mean(_writing_s(done) / (len(done.tokens) - 1) for done in words)
        cells = statistics.mean(len(done.conversation) + len(done.tokens) / 2 for done in words)
        llama = least.times(min(usual, word_s / least.step_of(1, cells)))
        choice_s = max(0.0, word_s - llama.step_of(1, cells))
        steps = queue.Pace(llama.step_s + choice_s, llama.more_s + choice_s, least.prompt_token_s, llama.cell_s)
        vocabulary = self.engine.model.vocabulary
        samples = {language: lengths.sample(language) for language in lengths.LANGUAGES}
        a_char = {key: len(vocabulary.tokenize(text, special=False)) / len(text) for key, text in samples.items()}
        self.promises.pace = forecast.Pace(steps, a_char, self._learnt())
        lines, late = forecast.in_words(self.forecasts())
        log.info("how long an answer takes here, alone: %s", "; ".join(lines))
        figures = {name: float(f"{value:.4g}") for name, value in asdict(steps).items()}
        log.info("measured pace: %s", json.dumps(figures))
        if late:
            log.warning("%s; a faster model: storyfi-lite place --policy fastest", "; ".join(late))

    def _learnt(self) -> dict[str, float]:
        """Return how long this file's answers were in earlier runs; nothing, if what is kept was damaged."""
        kept = files.read_cache(_KEPT_IN).get(self._kept_as)
        if not isinstance(kept, dict) or not all(isinstance(share, float) and share > 0 for share in kept.values()):
            return {}
        return kept

    @property
    def _kept_as(self) -> str:
        """Name what the answers' lengths depend on: the file, and the rules it writes by."""
        return f"{self.sha256} {SAMPLER}"

    def _llama_pace(self) -> tuple[queue.Pace, float]:
        """Measure llama.cpp alone, in a few seconds. The least of several steps are alike whatever else runs, so that differences of
        them hold; returned too is how many times as long the usual step takes."""
        slots = range(self._settings.n_slots)
        with self.engine.borrowed() as context:
            cells = [0 for _ in slots]
            read_s = _read_s(context, 0, cells, _FEW_CELLS)
            while cells[0] < min(_MANY_CELLS, self._settings.n_ctx // 2) and read_s < _CELLS_S:
                read_s += _read_s(context, 0, cells, min(cells[0], context.n_batch))
            prompt_token_s, more_cells = read_s / cells[0], cells[0] - _FEW_CELLS
            for slot in slots[1:]:
                _read_s(context, slot, cells, _FEW_CELLS)
            far, *others = _steps_s(context, (slots[:1], slots[1:2], slots) if len(slots) > 1 else (slots,), cells)
            if not others:
                context.forget(0)
                cells[0] = 0
                _read_s(context, 0, cells, _FEW_CELLS)
                others = _steps_s(context, (slots,), cells)
        near, together = min(others[0]), min(others[-1])
        # fewer cells tell nothing, where a step takes long
        cell_s = max(0.0, min(far) - near) / more_cells if more_cells >= 3 * _FEW_CELLS else 0.0
        few_s = _FEW_CELLS * cell_s
        more_s = max(0.0, (together - min(far)) / (len(slots) - 1) - few_s) if len(slots) > 1 else 0.0
        return queue.Pace(near - few_s, more_s, prompt_token_s, cell_s), statistics.median(others[0]) / near

    def forecasts(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Return, after the warm-up: task -> language -> seconds of a usual answer and of the shortest."""
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for task, language, request in forecast.examples():
            work, pace = self._work(request), self.promises.pace
            if work is not None and pace is not None:
                usual_s, least_s = (pace.queue.alone(work, tokens) for tokens in (work.whole, work.least))
                found.setdefault(task, {})[language] = usual_s, least_s
        return found

    def _work(self, request: StoryRequest) -> Work | None:
        """Count the tokens of this request's answer; None before the warm-up, and where the context has no room for it."""
        if self.promises.pace is None:
            return None
        asked = self.engine.model.vocabulary.tokenize(request.user_input, special=False)
        a_char = self.promises.pace.tokens_a_char_of(request.user_input, len(asked))
        conversation = self.engine.conversation(tasks.get(request.task_type).script(request))
        kind, opening, thought = forecast.kind_of(request), len(conversation.opening), self._think_tokens or 0
        told = lengths.work(kind, {kind.language: a_char})
        of_its_own = max(told.brief, round(told.whole * self.promises.pace.share_of(kind)))
        whole, brief, least = (thought + tokens for tokens in (of_its_own, told.brief, told.least))
        work = Work(opening, len(conversation) - opening, whole, brief, least, told.spread)
        return work.within(self._settings.n_ctx)

    def submit(self, job: Job) -> Future[Answer]:
        task = tasks.get(job.request.task_type)
        decided = self.promises.plan(job, self._work(job.request))
        brief = decided is not None and decided.brief
        constraint = task.constraint(job.request, brief)
        script = task.script(job.request, constraint).thinking(self._think_tokens)
        budget = max(script.min_tokens_bound, decided.most) if decided is not None and brief else job.request.max_tokens
        sampling = SamplingParams(job.seed)
        if job.temperature is not None:
            sampling = SamplingParams(job.seed, temperature=job.temperature)
        teller = self._teller(script, job.on_text) if job.on_text else None
        planned = decided is not None
        aim_s = None if planned else job.aim_s
        inner = self.engine.submit(
            EngineJob(script, sampling, job.deadline_s, budget, job.priority, aim_s, planned, on_tokens=teller)
        )
        at_once = self.promises.keep(inner, decided)

        def convert(generation: Generation) -> Answer:
            report = constraint.check(generation.text)  # correctness never rests on the constraint alone
            if not report.canonical or report.data is None:
                raise EngineError(f"the engine wrote an invalid answer: {'; '.join(report.problems[:3])}")
            if (pace := self.promises.pace) is not None:
                kind, beside = forecast.kind_of(job.request), at_once()
                shorter = brief or job.request.max_tokens is not None
                chars = None if shorter else sum(map(len, script.texts(report.data)))
                thought = thought_length(script, self.engine.model.vocabulary, generation.tokens)
                share = 1 - thought / len(generation.tokens)
                opening = len(generation.conversation.opening)
                bridges = len(generation.conversation) - opening
                read_s = beside * bridges * pace.queue.prompt_token_s  # between turns, all who write wait for it
                written_s = max(1e-6, share * (_writing_s(generation) - read_s))
                cells = opening + (bridges + len(generation.tokens)) / 2
                tokens = len(generation.tokens) - thought
                self.promises.pace = pace.after(tokens, written_s, kind, chars, beside, cells)
                if chars:
                    files.keep(_KEPT_IN, self._kept_as, self.promises.pace.shares)
            return self._answer(generation, constraint, script, sampling)

        return _then(inner, convert)

    def _teller(self, script: Script, tell: Callable[[Written], None]) -> Callable[[Sequence[int]], None]:
        """Return what makes text of the tokens that the engine tells of."""
        vocabulary, names = self.engine.model.vocabulary, [piece.name for piece in script.pieces]
        names = ["thought", *names] if script.think_tokens else names
        decoder, number = codecs.getincrementaldecoder("utf-8")(errors="replace"), 1

        def on_tokens(tokens: Sequence[int]) -> None:
            nonlocal number
            for token in tokens:
                ends = token == vocabulary.end
                text = decoder.decode(vocabulary.writes[token])
                tell(Written(names[number - 1], number, len(names), text, ends))
                number += ends

        return on_tokens

    def _answer(
        self, generation: Generation, constraint: Constraint, script: Script, sampling: SamplingParams
    ) -> Answer:
        proof = ProofHeader(
            sampler=SAMPLER,
            seed=sampling.seed,
            temperature=sampling.temperature,
            min_p=sampling.min_p,
            dry_multiplier=sampling.dry_multiplier,
            dry_base=sampling.dry_base,
            dry_allowed_length=sampling.dry_allowed_length,
            max_tokens=generation.max_tokens,
            model_sha256=self.sha256,
            quantization=self._model.quantization,
            kv_type=self._settings.kv_type,
            prompt_version=script.version,
            prompt_sha256=generation.conversation.sha256,
            grammar_sha256=constraint.sha256,
            engine=ENGINE_NAME,
            think_tokens=self._think_tokens,
        )
        return Answer(
            text=generation.text,
            claim=self.claim,
            generation_time_s=generation.total_s,
            prompt_tokens=len(generation.conversation),
            completion_tokens=len(generation.tokens),
            tokens=generation.tokens,
            proof=proof,
            first_token_s=generation.queued_s + generation.first_token_s,
        )

    def health(self) -> LoaderHealth:
        state = self.engine.health()
        return LoaderHealth(state.alive, state.detail, state.running, state.queued)

    def close(self) -> None:
        self.engine.close()


def _read_s(context: Context, slot: int, cells: list[int], more: int) -> float:
    """Fill so many more of a slot's cells, and return the seconds. `cells`: how many each slot has filled."""
    start_s = time.perf_counter()
    context.decode([Feed(slot, cells[slot], [1] * more, [more - 1])])
    cells[slot] += more
    return time.perf_counter() - start_s


def _steps_s(context: Context, groups: Sequence[Sequence[int]], cells: list[int]) -> list[list[float]]:
    """Return the seconds of steps that write a token into each slot of a group, a few of each group in turn: the machine may be
    slower at times."""
    times: list[list[float]] = [[] for _ in groups]
    most_s = _STEPS_S * len(groups)
    while len(times[0]) < _LEAST_STEPS or (len(times[0]) < _MOST_STEPS and sum(map(sum, times)) < most_s):
        for group, taken in zip(groups, times, strict=True):
            for _ in range(_LEAST_STEPS // 2):  # the first of one kind is longer
                start_s = time.perf_counter()
                context.decode([Feed(slot, cells[slot], [1], [0]) for slot in group])
                taken.append(time.perf_counter() - start_s)
                for slot in group:
                    cells[slot] += 1
    return times


def _writing_s(done: Generation) -> float:
    return max(1e-6, done.total_s - done.queued_s - done.first_token_s)


def _then(inner: Future[Generation], convert: Callable[[Generation], Answer]) -> Future[Answer]:
    """Return a Future of the inner one's result, converted."""
    outer: Future[Answer] = Future()

    def finished(done: Future[Generation]) -> None:
        try:
            settle(outer, convert(done.result()))
        except LiteError as error:
            settle(outer, error)
        except Exception:
            log.exception("an answer could not be made")
            settle(outer, EngineError("internal error in one request"))

    follow(outer, inner, finished)
    return outer
