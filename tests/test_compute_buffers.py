"""The allocator's replay against what llama.cpp itself reserves, for the registry's models at full size."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.models.registry import Architecture
from storyfi_lite.placement.graph import Largest, compute_bytes
from storyfi_lite.placement.memory import layer_devices

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "compute_buffers.json").read_text())
ROWS: dict[str, list[list[Any]]] = defaultdict(list)
for row in VECTORS["rows"]:
    ROWS[row[0]].append(row)
MIB = 2**20


@pytest.mark.parametrize("model", sorted(ROWS))
def test_every_buffer_is_what_llama_cpp_reserves(model: str) -> None:
    """To the rounding of its log, and 64 KiB: a GPU aligns to 128 bytes, the recorded devices to 64."""
    arch = Architecture(**VECTORS["architectures"][model])
    for _, n_gpus, n_gpu_layers, experts_in_ram, n_ctx, kv_type, reserved_mib in ROWS[model]:
        split = (3.0, 1.0) if n_gpus == 2 else ()
        settings = EngineSettings(
            n_ctx=n_ctx, n_gpu_layers=n_gpu_layers, kv_type=kv_type, tensor_split=split, experts_in_ram=experts_in_ram
        )
        devices = tuple(layer_devices(arch.block_count, n_gpu_layers, split, n_gpus))
        found = compute_bytes(arch, settings, devices, n_gpus, Largest(*VECTORS["largest"][model]))
        assert [mine / MIB for mine in found] == pytest.approx(reserved_mib, abs=0.07), (settings, n_gpus)
