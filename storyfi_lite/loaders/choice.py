"""Which model this machine runs: a name or file that the user gave, else the placement's answer, else an API."""

from __future__ import annotations

from storyfi_lite.errors import BadInput
from storyfi_lite.registry import ApiModel, GGUFFile, ModelSpec, Registry
from storyfi_lite.store import Store


def choose_file(registry: Registry, store: Store, model: str | None, quant: str | None) -> tuple[ModelSpec, GGUFFile]:
    """The file to fetch or load. Without a quantization: the finest that is here, else the first of Q4_K_M, Q4_1, any."""
    spec = registry.find(model or "smollm2-135m")
    if isinstance(spec, ApiModel):
        raise BadInput(f"{spec.key} is an API model; there is nothing to fetch")
    if quant:
        return spec, spec.file(quant)
    here = [file for file in spec.files if store.is_complete(spec, file)]
    if here:
        return spec, here[-1]
    return spec, next((f for q in ("Q4_1", "Q4_K_M") for f in spec.files if f.quant == q), spec.files[-1])
