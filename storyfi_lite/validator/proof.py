"""Proves which model wrote an answer: whether this file, under this seed, writes these tokens. One prefill, one verdict (docs/proof.md).

What it shows: that the answer came from the claimed file, this request's seed, prompt and grammar. What it cannot show:
on which machine it ran, or that a miner without the file did not have it written by one who has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyfi_lite import tasks
from storyfi_lite.engine.settings import KV_TYPE_IDS, SAMPLER, EngineSettings, SamplingParams
from storyfi_lite.errors import BadInput, GrammarError
from storyfi_lite.models.digest import file_sha256
from storyfi_lite.protocol.messages import StoryRequest, StoryResponse
from storyfi_lite.validator.calibration import calibration_of
from storyfi_lite.validator.verdict import NO_PROOF, Verdict, judge, noise_of
from storyfi_lite.validator.verify import is_same, sampling

if TYPE_CHECKING:
    from storyfi_lite.engine.model import Context, Model
    from storyfi_lite.engine.replay import GivenAnswer, Replay, Replayer, StepReplayer

SHORTEST_ANSWER_TOKENS = 128  # of those replayed together: a context has no cells for more
TWO_WAYS_TOKENS = 512  # of a batch: without flash attention a wide one takes much memory
ENOUGH_POSITIONS = 40  # to tell the noise


class Prover(AbstractContextManager["Prover"]):
    """Holds a file, loaded once, against which any number of answers are proven. Close it, or use it as a context manager.

    Raises BadInput, DoesNotFit or EngineError while loading."""

    def __init__(self, path: Path, settings: EngineSettings | None = None, chat_template: str | None = None) -> None:
        """Load the file. `settings`: the whole layout of the weights. The context is made anew for each answer's length and KV type."""
        from storyfi_lite.engine.model import Model

        self._settings = replace(settings or EngineSettings(), n_slots=1)
        self._path = path
        self.model: Model = Model(path, self._settings, chat_template)
        self._held: tuple[EngineSettings, Context, Replayer] | None = None
        self._noise = 0.0

    @cached_property
    def sha256(self) -> str:
        return file_sha256(self._path)

    @property
    def engine(self) -> str:
        from storyfi_lite.engine.model import ENGINE_NAME

        return ENGINE_NAME

    @property
    def device(self) -> str:
        """Say what computes, in words: margins shift a little from one kind to the next."""
        from storyfi_lite.machine import devices

        gpus = [devices.gpus()[number].description for number in self._settings.used_gpus(len(devices.gpus()))]
        mapped = ["weights from the file"] if self._settings.mapped else []
        return ", ".join([*gpus, devices.cpu().description, *mapped])

    def prove(self, request: StoryRequest, response: StoryResponse, seed: int | None = None) -> Verdict:
        """Prove one answer. `request` is what was asked, and `seed` the challenge seed that it was bound to (protocol/seed.py),
        if there is one."""
        return next(self.prove_all([(request, response, seed)]))[1]

    def prove_all(
        self, asked: Sequence[tuple[StoryRequest, StoryResponse, int | None]]
    ) -> Iterator[tuple[int, Verdict]]:
        """Prove answers, as many in one pass over the file as a batch of the layout holds. Takes what `prove` takes; yields each
        one's place in `asked` with its verdict, as soon as it is known. Raises EngineError or DoesNotFit."""
        places = []
        for at, one in enumerate(asked):
            verdict = self._wrong_claim(*one) or self._by_own_noise(*one[:2])
            if verdict:
                yield at, verdict
            else:
                places.append(at)
        for which, replay in self.replay_all([asked[at][:2] for at in places]):
            yield places[which], judge(replay, self.noise)

    @property
    def noise(self) -> float:
        """Return the file's noise on this machine, in nats (verdict.py): as calibrated, else as shown by the first answer that the file
        proves; 0 where neither is known, and then nothing is decided."""
        if not self._noise and (calibration := calibration_of(self.sha256)):
            self._noise = calibration.noise
        return self._noise

    def _by_own_noise(self, request: StoryRequest, response: StoryResponse) -> Verdict | None:
        """Judge an answer by the noise that it shows itself, while the file's noise is not known, and keep that noise for the next ones
        only if the file proves to have written it. A stranger's gibberish shows twice the noise, and would let a coarser file pass.
        None: the noise is known, or the answer is too short to show it."""
        if self.noise:
            return None
        pair = self.two_ways(request, response)
        if min(len(replay.leads) for replay in pair) < ENOUGH_POSITIONS:
            return None
        shown = noise_of([pair])
        assert response.proof is not None
        verdict = judge(pair[0] if response.proof.kv_type == "f16" else self.replay(request, response), shown)
        if verdict.status == "proven":
            self._noise = shown
        return verdict

    def two_ways(self, request: StoryRequest, response: StoryResponse) -> tuple[Replay, Replay]:
        """Replay an answer by two attention kernels, with keys and values that are not quantized. Raises what `prove_all` does."""
        from storyfi_lite.engine.model import Context
        from storyfi_lite.engine.replay import SPARE_CELLS, Replayer

        assert response.proof is not None
        plain = response.model_copy(update={"proof": response.proof.model_copy(update={"kv_type": "f16"})})
        one = self.replay(request, plain)
        self._drop_context()
        given, narrow = self._given(request, plain), min(self._settings.n_batch, TWO_WAYS_TOKENS)
        cells, flash = len(given.fed) + SPARE_CELLS, not self._settings.flash_attn
        other = replace(self._settings, kv_type="f16", flash_attn=flash, n_batch=narrow, n_ubatch=narrow, n_ctx=cells)
        with closing(Context(self.model, other)) as context:
            return one, next(Replayer(context).replay_all([given]))[1]

    def replay(self, request: StoryRequest, response: StoryResponse) -> Replay:
        """Replay one answer: prefill our own prompt for the request, and the given tokens."""
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
            for which, replay in self._replayer(kv_type, longest).replay_all(answers):
                yield places[which], replay

    def _given(self, request: StoryRequest, response: StoryResponse) -> GivenAnswer:
        from storyfi_lite.engine.replay import GivenAnswer
        from storyfi_lite.engine.rule import ChoiceRule

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
        task = tasks.get(request.task_type)
        constraint = task.constraint_named(request, header.grammar_sha256)
        if constraint is None:
            raise BadInput("the header names no grammar of this task")
        script = task.script(request, constraint).thinking(header.think_tokens)
        conversation = self.model.chat_template.conversation(self.model.vocabulary, script)
        rule = ChoiceRule(self.model.vocabulary, conversation, script, params, header.max_tokens)
        return GivenAnswer(rule, conversation, response.tokens)

    def _replayer(self, kv_type: Any, tokens: int) -> Replayer | StepReplayer:
        """Return what replays on a context of the claimed KV type that holds so many tokens. One such context is kept for the next
        answer; with more, whoever is replayed could have us fill our memory."""
        from storyfi_lite.engine.model import Context
        from storyfi_lite.engine.replay import MAX_TOGETHER, SPARE_CELLS, Replayer, StepReplayer

        if self._settings.mapped:
            return StepReplayer(self.model, replace(self._settings, kv_type=kv_type))
        tokens += SPARE_CELLS
        if self._held is None or self._held[0].kv_type != kv_type or self._held[0].n_ctx < tokens:
            self._drop_context()
            cells = 1 << max(11, tokens.bit_length())
            settings = replace(self._settings, kv_type=kv_type, n_ctx=cells)
            context = Context(self.model, settings, min(MAX_TOGETHER, cells // SHORTEST_ANSWER_TOKENS))
            self._held = (settings, context, Replayer(context))
        return self._held[2]

    def _drop_context(self) -> None:
        if self._held is not None:
            self._held[1].close()
            self._held = None

    def _wrong_claim(self, request: StoryRequest, response: StoryResponse, seed: int | None) -> Verdict | None:
        """Return the verdict that can be told without running the model; None if that takes a replay."""
        from storyfi_lite.engine.rule import answer_of

        header = response.proof
        if header is None or not response.tokens or response.output_text is None:
            return NO_PROOF
        task = tasks.get(request.task_type)
        grammar = task.constraint_named(request, header.grammar_sha256) or task.constraint(request)
        script = task.script(request, grammar).thinking(header.think_tokens)
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
        if not is_same(json.loads(spelled), response.output_data):
            return Verdict("refuted", "output_text and output_data differ")
        return None

    def close(self) -> None:
        self._drop_context()
        self.model.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def claiming(response: StoryResponse, sha256: str) -> StoryResponse:
    """Return the response as if it named another file: if that is proven, that file wrote it, whatever was claimed."""
    assert response.proof is not None
    return response.model_copy(update={"proof": response.proof.model_copy(update={"model_sha256": sha256})})
