"""Defines the interface between the miner and whatever writes stories: `Loader`, `Job`, `Answer`, `ModelClaim`.

A loader turns one job into one answer on its own threads; callers hold a Future. Nothing here knows HTTP or the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from storyfi_lite.errors import Unavailable
from storyfi_lite.loaders.meter import Usage
from storyfi_lite.protocol.messages import MinerMode, ModelInfo, ProofHeader, StoryRequest


class NotAgain(Unavailable):
    """Says that a loader may have been paid for nothing, or has nothing left to give today. It is not asked again for this
    story; the next one in the fallback order is."""


@dataclass(frozen=True)
class ModelClaim:
    """Says what this miner runs: always the model that was loaded, never the one that was asked for."""

    miner_mode: MinerMode
    model_name: str  # registry key, or the file's own name for an unlisted GGUF
    model_info: ModelInfo
    gpu_memory_gb: float
    multiplier: float  # what the reward table gives for this claim

    @property
    def writer(self) -> str:
        """Say for the operator what writes: "local model", or which API."""
        return "local model" if self.miner_mode == "LocalModelLoader" else f"{self.model_info.provider} API"


@dataclass(frozen=True)
class Written:
    """Says what has just been written of an answer: one token's text, in piece `number` of `count`, from 1; a character that
    is not whole yet comes with a later token. `ends`: the piece is done."""

    name: str  # of the piece, in the story's language
    number: int
    count: int
    text: str
    ends: bool


@dataclass(frozen=True)
class Job:
    """Holds one admitted request. Cancel it through its Future."""

    request: StoryRequest
    seed: int  # unsigned 64-bit, already decided by the service
    deadline_s: float  # on time.monotonic()'s clock
    priority: float = 0.0  # higher first: the caller's stake
    temperature: float | None = None  # None: the loader's default
    aim_s: float | None = None  # a loader that can shorten an answer, whole and valid, ends it within so many seconds
    on_text: Callable[[Written], None] | None = None  # on the loader's thread; an API has nothing to say before its end


@dataclass(frozen=True)
class Answer:
    """Holds a whole answer: `text` passed the task's grammar check. `proof` only where a local file wrote it."""

    text: str
    claim: ModelClaim  # at the time of this answer: a fallback changes it
    generation_time_s: float
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[int, ...] | None = None
    proof: ProofHeader | None = None
    first_token_s: float | None = None  # from submit, the wait in the queue included; None where nobody sees it


@dataclass(frozen=True)
class LoaderHealth:
    alive: bool
    detail: str  # for the operator
    running: int = 0
    queued: int = 0
    usage: Usage | None = None  # what an API was used for today


class Loader(Protocol):
    """Writes stories. `submit` never blocks: it raises Busy at once if the job cannot be queued or cannot meet its deadline.
    The Future ends with an Answer, or with a LiteError; cancelling it frees the job's slot within one step."""

    @property
    def claim(self) -> ModelClaim: ...

    def submit(self, job: Job) -> Future[Answer]: ...

    def health(self) -> LoaderHealth: ...

    def close(self) -> None:
        """Finish what runs, refuse what waits. Idempotent."""
