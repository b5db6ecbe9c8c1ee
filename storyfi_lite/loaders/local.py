"""Answers from a GGUF file on this machine: task -> prompt and grammar -> engine -> checked answer with its proof header."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from storyfi_lite import tasks
from storyfi_lite.engine.engine import Engine, EngineJob, Generation
from storyfi_lite.engine.model import ENGINE_NAME
from storyfi_lite.engine.prompt import prompt_sha256
from storyfi_lite.engine.settings import SAMPLER, EngineSettings, SamplingParams
from storyfi_lite.errors import EngineError, LiteError
from storyfi_lite.grammar import Constraint
from storyfi_lite.grammar.schema import Object, Text
from storyfi_lite.loaders.base import Answer, Job, LoaderHealth, ModelClaim
from storyfi_lite.models.digest import file_sha256
from storyfi_lite.protocol.messages import ModelInfo, ProofHeader, StoryRequest

log = logging.getLogger(__name__)

_WARM_UP = Object((("title", Text(80, 120)),))
_WARM_UP_S = 600.0


@dataclass(frozen=True)
class LocalModel:
    """Which file, and what may be said of it. `name` is the registry's key, or the file's own name for an unlisted GGUF."""

    path: Path
    name: str
    quantization: str
    provider: str  # repository, or "unlisted"
    multiplier: float
    chat_template: str | None = None


class LocalModelLoader:
    """A Loader (loaders/base.py). Loading raises BadInput, DoesNotFit or EngineError."""

    def __init__(self, model: LocalModel, settings: EngineSettings, gpu_memory_gb: float = 0.0) -> None:
        self._model = model
        self._settings = settings
        self.engine = Engine(model.path, settings, model.chat_template)
        self.sha256 = file_sha256(model.path)  # here, not on the engine's thread: a large file takes minutes once
        self.claim = self._claim(gpu_memory_gb)

    def _claim(self, gpu_memory_gb: float) -> ModelClaim:
        """What was loaded, as the file itself says it."""
        parameters = {
            "quantization": self._model.quantization,
            "size": self.engine.model.metadata("general.size_label"),
            "sha256": self.sha256,
        }
        info = ModelInfo(
            mode="local",
            name=self._model.name,
            version=self._model.quantization,
            provider=self._model.provider,
            parameters=parameters,
        )
        return ModelClaim("LocalModelLoader", self._model.name, info, gpu_memory_gb, self._model.multiplier)

    def warm_up(self) -> None:
        """A short answer to the commonest task, thrown away: its prompt's beginning stays cached in a slot, and the
        engine knows its speed before the first request."""
        request = StoryRequest(task_type="blueprint", user_input="-")
        messages = tasks.get("blueprint").messages(request)
        job = EngineJob(messages, Constraint(_WARM_UP), SamplingParams(0), deadline_s=time.monotonic() + _WARM_UP_S)
        self.engine.submit(job).result()

    def submit(self, job: Job) -> Future[Answer]:
        task = tasks.get(job.request.task_type)
        constraint = task.constraint(job.request)
        sampling = SamplingParams(job.seed)
        if job.temperature is not None:
            sampling = SamplingParams(job.seed, temperature=job.temperature)
        inner = self.engine.submit(
            EngineJob(
                messages=task.messages(job.request),
                constraint=constraint,
                sampling=sampling,
                deadline_s=job.deadline_s,
                max_tokens=job.request.max_tokens,
                priority=job.priority,
                aim_s=job.aim_s,
            )
        )

        def convert(generation: Generation) -> Answer:
            return self._answer(generation, constraint, sampling, task.prompt_version)

        return _then(inner, convert)

    def _answer(
        self, generation: Generation, constraint: Constraint, sampling: SamplingParams, prompt_version: str
    ) -> Answer:
        """Checks what came before it is an answer: correctness never rests on the constraint alone."""
        report = constraint.check(generation.text)
        if not report.canonical:
            raise EngineError(f"the engine wrote an invalid answer: {'; '.join(report.problems[:3])}")
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
            prompt_version=prompt_version,
            prompt_sha256=prompt_sha256(generation.prompt),
            grammar_sha256=constraint.sha256,
            engine=ENGINE_NAME,
        )
        return Answer(
            text=generation.text,
            claim=self.claim,
            generation_time_s=generation.total_s,
            prompt_tokens=len(generation.prompt),
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


def _then(inner: Future[Generation], convert: Callable[[Generation], Answer]) -> Future[Answer]:
    """The inner Future's result, converted; cancelling the outer cancels the inner."""
    outer: Future[Answer] = Future()

    def finished(done: Future[Generation]) -> None:
        if done.cancelled():
            outer.cancel()
        if not outer.set_running_or_notify_cancel():
            return  # the client left
        try:
            outer.set_result(convert(done.result()))
        except LiteError as error:
            outer.set_exception(error)
        except Exception:
            log.exception("an answer could not be made")
            outer.set_exception(EngineError("internal error in one request"))

    inner.add_done_callback(finished)
    outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
    return outer
