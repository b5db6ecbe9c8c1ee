"""Chooses the next smaller layout after a load ran out of memory, because another program took it or the plan was wrong.

One step at a time: one slot; of a file that is replayed from the disk fewer batches in step, a narrower batch; quantized keys and
values, a mixture's experts to RAM, fewer layers on the GPU, a shorter context (never below what the tasks need), then a coarser file of the same model that is here. Never another model: the claim must stay true.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.errors import DoesNotFit
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.listing import bits
from storyfi_lite.options import ModelOptions
from storyfi_lite.placement.catalog import Catalog
from storyfi_lite.placement.fit import MAPPED_BATCHES, kv_types
from storyfi_lite.placement.plan import MIN_CONTEXT, Placement, place_file

LAYERS_A_STEP = 0.1  # of all layers


def step_down(
    placement: Placement, options: ModelOptions, hardware: Hardware, catalog: Catalog
) -> tuple[Placement, str] | None:
    """Return the next smaller placement and, in words, what changed; None if there is none."""
    if changed := _next(placement, options):
        settings, words = changed
        return placement.at(settings, hardware), words
    spec, now = placement.spec, bits(placement.file.quant, 99.0)
    options = replace(options, n_ctx=placement.settings.n_ctx)
    for file in sorted(spec.files, key=lambda file: -bits(file.quant, 0.0)):
        named = options.quant or options.path
        if not named and bits(file.quant, 99.0) < now and not catalog.missing_bytes(spec, file):
            with suppress(DoesNotFit):
                smaller = place_file(spec, file, hardware, options, catalog.header(spec, file))
                return smaller, f"the coarser file {file.quant}"
    return None


def _next(placement: Placement, options: ModelOptions) -> tuple[EngineSettings, str] | None:
    settings, blocks = placement.settings, placement.arch.block_count
    step = max(1, round(blocks * LAYERS_A_STEP))
    if settings.n_slots > 1:
        return replace(settings, n_slots=1), "one request at a time"
    if settings.n_contexts > 1:
        return replace(settings, n_contexts=settings.n_contexts // 2), "half as many batches in step"
    if settings.mapped and settings.n_batch > MAPPED_BATCHES[-1]:
        width = next(width for width in MAPPED_BATCHES if width < settings.n_batch)
        return replace(settings, n_batch=width, n_ubatch=width), f"batches of {width} tokens"
    kinds = kv_types(placement.arch)
    if options.kv_type is None and settings.kv_type != kinds[-1]:
        kv = kinds[kinds.index(settings.kv_type) + 1]
        return replace(settings, kv_type=kv), f"keys and values as {kv}"
    if settings.n_gpu_layers > 0 and placement.arch.expert_count and settings.experts_in_ram < blocks:
        experts = min(blocks, settings.experts_in_ram + step)
        return replace(settings, experts_in_ram=experts), f"the experts of {experts} layers in RAM"
    if settings.n_gpu_layers > 0:
        fewer = max(0, placement.n_on_gpu - step)
        return replace(settings, n_gpu_layers=fewer), f"{fewer} of {placement.n_layers} layers on the GPU"
    if settings.n_ctx > MIN_CONTEXT:
        return replace(settings, n_ctx=MIN_CONTEXT), f"{MIN_CONTEXT} tokens of context"
    return None
