"""The next smaller thing to try when a load fails for memory although it should have fitted: another program was faster.

One rung at a time: one slot, quantized keys and values, fewer layers on the GPU, a shorter context (never below what the
tasks need), then a coarser file of the same model that is here. Never another model: the claim must stay true.
"""

from __future__ import annotations

from dataclasses import replace

from storyfi_lite.hardware import Hardware
from storyfi_lite.placement.fit import KV_TYPES
from storyfi_lite.placement.plan import MIN_CONTEXT, QUANT_BITS, Placement, Wish, place_file
from storyfi_lite.placement.shelf import Shelf

LAYERS_A_STEP = 0.1  # of all layers


def step_down(placement: Placement, hardware: Hardware, shelf: Shelf) -> tuple[Placement, str] | None:
    """The next rung and what changed, in words; None at the bottom."""
    settings = placement.settings
    if settings.n_slots > 1:
        return _with(placement, "one request at a time", n_slots=1)
    if settings.kv_type != KV_TYPES[-1]:
        kv = KV_TYPES[KV_TYPES.index(settings.kv_type) + 1]
        return _with(placement, f"keys and values as {kv}", kv_type=kv)
    if settings.n_gpu_layers > 0:
        on_gpu = min(settings.n_gpu_layers, placement.n_layers)
        fewer = max(0, on_gpu - max(1, round(placement.n_layers * LAYERS_A_STEP)))
        return _with(placement, f"{fewer} of {placement.n_layers} layers on the GPU", n_gpu_layers=fewer)
    if settings.n_ctx > MIN_CONTEXT:
        return _with(placement, f"{MIN_CONTEXT} tokens of context", n_ctx=MIN_CONTEXT)
    return _coarser(placement, hardware, shelf)


def _with(placement: Placement, words: str, **changes: object) -> tuple[Placement, str]:
    return replace(placement, settings=replace(placement.settings, **changes)), words  # type: ignore[arg-type]


def _coarser(placement: Placement, hardware: Hardware, shelf: Shelf) -> tuple[Placement, str] | None:
    spec, bits = placement.spec, QUANT_BITS.get(placement.file.quant, 99.0)
    wish = Wish(n_ctx=placement.settings.n_ctx, n_threads=placement.settings.n_threads)
    for file in sorted(spec.files, key=lambda file: -QUANT_BITS.get(file.quant, 0.0)):
        if QUANT_BITS.get(file.quant, 99.0) < bits and not shelf.missing_bytes(spec, file):
            smaller = place_file(spec, file, hardware, wish, shelf.header(spec, file))
            if isinstance(smaller, Placement):
                return smaller, f"the coarser file {file.quant}"
    return None
