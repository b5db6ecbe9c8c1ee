"""Says how a model is loaded and how its tokens are chosen. Plain values; llama.cpp is not imported here."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from storyfi_lite.options import KVType

# ggml_type of ggml.h
KV_TYPE_IDS: dict[KVType, int] = {"f16": 1, "q8_0": 8, "q4_0": 2}

SAMPLER = "gumbel-softminp-dry-words/6"


@dataclass(frozen=True)
class EngineSettings:
    """Holds the layout of a model, as the placement filled it in. `n_ctx` is for each slot; `n_threads` 0 takes the physical cores.

    `mapped`: weights on the host are read from the file as they are needed, and neither copied nor repacked, so that the file may
    be larger than the RAM. For replays, which need each weight once a batch; writing reads the whole file for each token.
    `n_contexts`: of these replays, so many batches share one reading (in_step.py), each in a context of its own."""

    n_ctx: int = 4096
    n_slots: int = 1
    n_batch: int = 512
    n_ubatch: int = 512
    n_threads: int = 0
    n_gpu_layers: int = 0
    kv_type: KVType = "f16"
    flash_attn: bool = True
    tensor_split: tuple[float, ...] = ()
    experts_in_ram: int = 0  # the first so many layers keep their experts' tensors in RAM
    mapped: bool = False
    n_contexts: int = 1

    @property
    def logit_rows(self) -> int:
        """Count the tokens of a batch whose logits llama.cpp keeps: one a slot, or of an answer replayed from the file all."""
        return self.n_batch if self.mapped else self.n_slots

    def used_gpus(self, n_gpus: int) -> list[int]:
        """Return which of so many GPUs hold something. The others stay hidden from llama.cpp, which would take memory on each it
        sees: a driver's context, and a copy of the largest matrix to help with prompts."""
        if not self.n_gpu_layers:
            return []
        return [number for number in range(n_gpus) if not self.tensor_split or self.tensor_split[number] > 0]


@dataclass(frozen=True)
class Demand:
    """Holds the bytes that a layout takes on one device, as llama.cpp's log names them. `context_bytes` is the driver's, or on the host
    Python's, outside that log."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    output_bytes: int = 0
    context_bytes: int = 0

    @property
    def buffer_bytes(self) -> int:
        """Return what llama.cpp itself reports."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.output_bytes

    @property
    def total_bytes(self) -> int:
        return self.buffer_bytes + self.context_bytes

    def __add__(self, other: Demand) -> Demand:
        return Demand(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class SamplingParams:
    """Holds the sampling rule's numbers, as they stand in a proof's header. `seed` is unsigned 64-bit; 0 is a seed like any other.

    `min_p`: a token less likely than this share of the most likely allowed one is held down (sampler.py). `dry_*`: the field's
    DRY repetition penalty; a multiplier of 0 switches it off.
    """

    seed: int
    temperature: float = 0.7
    min_p: float = 0.1
    dry_multiplier: float = 1.5
    dry_base: float = 1.75
    dry_allowed_length: int = 2
