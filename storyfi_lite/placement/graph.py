"""llama.cpp's compute buffers."""

from __future__ import annotations

from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.registry import Architecture


def compute_bytes(arch: Architecture, settings: EngineSettings, devices: tuple[int, ...], n_gpus: int) -> list[int]:
    """For each GPU, and last for the host."""
    tokens = min(settings.n_ubatch, settings.n_batch)
    hidden, cells = arch.embedding_length * tokens * 4, -(-settings.n_ctx // 256) * 256
    feed = 3 * arch.feed_forward_length * tokens * 4 * max(arch.expert_used_count, 1) + 2 * hidden
    attention = 4 * hidden
    mask = cells * tokens * (2 if settings.flash_attn else 4)
    if not settings.flash_attn:
        attention += cells * tokens * arch.attention_head_count * 4
    logits = 2 * hidden + arch.vocab_size * tokens * 4
    result = []
    for device in [*range(n_gpus), -1]:
        layers = device in devices[:-1]
        peaks = [hidden]
        if layers:
            peaks += [mask + feed, mask + attention]
        if devices[-1] == device:
            peaks.append(logits)
        result.append(max(peaks) if layers or devices[-1] == device or device == -1 else 0)
    return result
