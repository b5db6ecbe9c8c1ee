"""Turns an admitted request into a response: derives the seed, gives the loader a job, and waits up to the deadline.

It knows neither HTTP nor the chain. The loader writes the story on threads of its own; if the caller hangs up, the job is
cancelled at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from storyfi_lite import __version__
from storyfi_lite.errors import DeadlineExceeded, EngineError, Unavailable
from storyfi_lite.loaders.base import Answer, Job, Loader
from storyfi_lite.miner.admission import Admitted
from storyfi_lite.protocol.limits import AIM_S, DEADLINE_S
from storyfi_lite.protocol.messages import StoryResponse
from storyfi_lite.protocol.seed import challenge_seed

GRACE_S = 2.0  # a loader that keeps deadlines never needs it


class CallerGone(Exception):
    """Says that the caller hung up, so there is nobody to answer."""


@dataclass(frozen=True)
class StoryService:
    """Answers admitted requests with one loader."""

    loader: Loader
    self_hotkey_ss58: str
    deadline_s: float = DEADLINE_S

    async def answer(
        self, admitted: Admitted, arrived_s: float, hung_up: Callable[[], Coroutine[Any, Any, None]]
    ) -> tuple[Answer, StoryResponse]:
        """Answer one request. Raises what the loader raises, DeadlineExceeded, or CallerGone if `hung_up()` ends first.

        `arrived_s`: when the request's headers were there, by time.monotonic().
        """
        request, claim = admitted.request, admitted.claim
        sender, nonce = claim.hotkey_ss58, str(claim.nonce_ns)
        seed = request.seed
        if seed is None:
            seed = challenge_seed(sender, self.self_hotkey_ss58, nonce, request.task_type, request.user_input)
        deadline_s = arrived_s + self.deadline_s
        job = Job(request, seed, deadline_s, admitted.caller.stake_tao, aim_s=AIM_S)
        # Cancelling the wrapper cancels the loader's Future, which frees the slot.
        pending = asyncio.wrap_future(self.loader.submit(job))
        watcher = asyncio.ensure_future(hung_up())
        try:
            timeout_s = deadline_s + GRACE_S - time.monotonic()
            ends: set[asyncio.Future[Any]] = {pending, watcher}
            await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if pending.cancelled():
                raise Unavailable("the loader dropped the job; see its log lines above")
            if pending.done():
                return pending.result(), to_response(pending.result())
            if watcher.done():
                raise CallerGone
            raise DeadlineExceeded(f"no answer after {self.deadline_s:g} s")
        finally:
            watcher.cancel()
            pending.cancel()


def to_response(answer: Answer) -> StoryResponse:
    """Build the response. Raises EngineError if the loader's text is, against its promise, no JSON object."""
    try:
        data = json.loads(answer.text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise EngineError("the loader's answer is not a JSON object")
    claim = answer.claim
    return StoryResponse(
        output_data=data,
        generation_time=round(answer.generation_time_s, 3),
        miner_version=f"storyfi-lite {__version__}",
        model_info=claim.model_info,
        miner_mode=claim.miner_mode,
        model_name=claim.model_name,
        gpu_memory_gb=claim.gpu_memory_gb,
        output_text=answer.text,
        tokens=None if answer.tokens is None else list(answer.tokens),
        proof=answer.proof,
    )
