"""Binds llama.cpp: a model file that it loaded, one context on it, one batch at a time, and no more.

Not thread-safe: whoever makes a Context keeps it on one thread. Knows nothing of grammars, jobs or texts.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from storyfi_lite.engine import in_step
from storyfi_lite.engine.prompt import ChatTemplate
from storyfi_lite.engine.read_ahead import ReadAhead
from storyfi_lite.engine.sampler import Floats
from storyfi_lite.engine.settings import KV_TYPE_IDS, EngineSettings
from storyfi_lite.engine.vocabulary import Vocabulary
from storyfi_lite.errors import BadInput, DoesNotFit, EngineError, LiteError
from storyfi_lite.machine import devices, limits, selftest
from storyfi_lite.models.gguf import products, read_local
from storyfi_lite.options import KVType

ENGINE_NAME = f"llama-cpp-python {llama_cpp.__version__}"
_FLASH_ATTN = {True: 1, False: 0}  # llama_flash_attn_type: disabled 0, enabled 1
_LOAD_MODE_NONE, _LOAD_MODE_MMAP = 0, 1  # llama_load_mode of llama.h


class Model:
    """Holds the weights and the vocabulary. Raises BadInput for a file that is no whole GGUF, DoesNotFit without memory for it,
    ConfigError if llama.cpp's build computes wrong on this machine.

    `dry_run`: takes no memory for weights, KV cache and computing, and can compute nothing (dry_run.py)."""

    def __init__(
        self, path: Path, settings: EngineSettings, chat_template: str | None = None, *, dry_run: bool = False
    ) -> None:
        if not dry_run:
            _require_sound(path, settings)
        devices.ggml()
        _check_magic(path)
        self.path = path
        self._keep: list[object] = []  # ctypes arrays that llama.cpp points into
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = settings.n_gpu_layers
        if settings.mapped:
            params.load_mode, params.use_extra_bufts = _LOAD_MODE_MMAP, False
        if dry_run:
            params.no_alloc, params.load_mode = True, _LOAD_MODE_NONE  # with a map of the file it would abort
        self._choose_gpus(params, settings)
        if settings.experts_in_ram:
            params.tensor_buft_overrides = self._expert_overrides(settings.experts_in_ram)
        devices.complaints.clear()
        self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise _load_error(path)
        if llama_cpp.llama_model_has_encoder(self.handle) or llama_cpp.llama_model_is_diffusion(self.handle):
            raise BadInput(f"{path.name} does not write a text from its beginning on; take another model")
        self.n_vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))
        self._chat_template = chat_template
        if not dry_run:
            _ = self.vocabulary  # or it would be refused later

    def _choose_gpus(self, params: Any, settings: EngineSettings) -> None:
        present = devices.gpus()
        used = settings.used_gpus(len(present))
        handles = (ctypes.c_void_p * (len(used) + 1))(*(present[number].handle for number in used))  # ends with a null
        self._gpus = [present[number] for number in used]
        params.devices = ctypes.cast(handles, ctypes.c_void_p)
        self._keep.append(handles)
        if settings.tensor_split:
            shares = (ctypes.c_float * llama_cpp.llama_max_devices())(
                *(settings.tensor_split[number] for number in used)
            )
            params.tensor_split = shares
            self._keep.append(shares)

    def _expert_overrides(self, layers: int) -> ctypes.c_void_p:
        """Keeps the experts of the first `layers` layers in RAM, as llama.cpp's --n-cpu-moe does."""

        class Override(ctypes.Structure):
            _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))

        buffers = devices.cpu().buffer_type()
        rows = (Override * (layers + 1))()
        for layer in range(layers):
            rows[layer] = Override(rf"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps".encode(), buffers)
        self._keep.append(rows)
        return ctypes.cast(rows, ctypes.c_void_p)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the tokens' bytes; to read a quarter of a million takes most of a second, and a dry run needs none."""
        return Vocabulary(llama_cpp.llama_model_get_vocab(self.handle))

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Return the registry's chat template; else the file's, or of several named ones the first that works. Raises BadInput
        if there is none."""
        sources = [self._chat_template] if self._chat_template else map(self.metadata, self._template_keys())
        failures: list[BadInput] = []
        for source in sources:
            try:
                return ChatTemplate(source, self.vocabulary.special_text("bos"), self.vocabulary.special_text("eos"))
            except BadInput as error:
                failures.append(error)
        if failures:
            raise failures[0]
        raise BadInput(f"{self.path.name} carries no chat template; choose an instruction-tuned GGUF")

    def _template_keys(self) -> list[str]:
        """Return the keys of the chat templates in the file: the unnamed one first, the one for tools last."""
        buffer = ctypes.create_string_buffer(256)
        keys = []
        for index in range(llama_cpp.llama_model_meta_count(self.handle)):
            llama_cpp.llama_model_meta_key_by_index(self.handle, index, buffer, len(buffer))
            if re.fullmatch(rb"tokenizer\.chat_template(\..+)?", buffer.value):
                keys.append(buffer.value.decode(errors="replace"))
        return sorted(
            keys, key=lambda key: (key.endswith(".tool_use"), not key.endswith(("_template", ".default")), key)
        )

    def check_cache(self, kv_type: KVType, n_cells: int) -> None:
        """Raise DoesNotFit where a layer's keys are beyond what a GPU computes with in one piece: llama.cpp would end the process."""
        kind, model = self.metadata("general.architecture"), self.handle
        each = llama_cpp.llama_model_n_embd(model) // max(1, llama_cpp.llama_model_n_head(model))
        lengths = (int(self.metadata(f"{kind}.attention.{name}_length") or each) for name in ("key", "value"))
        columns = max(lengths) * llama_cpp.llama_model_n_head_kv(model)
        columns += -columns % 32  # whole blocks
        for gpu in self._gpus:
            if not gpu.can_compute(KV_TYPE_IDS[kv_type], columns, n_cells):
                raise DoesNotFit(
                    f"one layer's keys of {n_cells} tokens are more than {gpu.description} takes in one piece"
                )

    @property
    def n_layers(self) -> int:
        """Count the layers without the output layer."""
        return int(llama_cpp.llama_model_n_layer(self.handle))

    def metadata(self, key: str) -> str:
        """Return a metadata value as text; empty if the file has none."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, size)
            if length < size:
                return buffer.value.decode(errors="replace") if length >= 0 else ""
            size = length + 1

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None


def _require_sound(path: Path, settings: EngineSettings) -> None:
    if settings.n_gpu_layers:
        selftest.require("gpu", products(read_local(path)))
    else:
        selftest.require("cpu")


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise BadInput(f"{path} is not a GGUF file")


def _load_error(path: Path) -> LiteError:
    """Make the error from what llama.cpp logged: memory, or the file."""
    why = "; ".join(devices.complaints) or "no reason given"
    if re.search(r"alloc|out of memory|buffer", why, re.IGNORECASE):
        return DoesNotFit(f"{path.name} does not fit into memory: {why}")
    if unknown := re.search(r"unknown model architecture: '[^']*'", why):
        return BadInput(f"llama.cpp here does not know how {path.name} is built ({unknown[0]}); take another model")
    return BadInput(
        f"llama.cpp could not load {path.name}; the file is damaged or of an unknown kind, fetch it again: {why}"
    )


@dataclass
class Feed:
    """Holds tokens for one sequence in the next batch, from position `start`; `rows` are the indexes in `tokens` whose logits
    are wanted, in rising order. `shared_by`: so many sequences, from `sequence` on, get the tokens, computed once."""

    sequence: int
    start: int
    tokens: list[int]
    rows: list[int]
    shared_by: int = 1


class Context:
    """Holds one llama context: a KV cache of `n_slots` sequences with `n_ctx` cells each. With `n_sequences`: so many sequences have all
    cells together, and may share tokens. `n_outputs`: of so many of a batch's tokens logits are wanted at most; 0: of all.
    `after_layer` is called once a layer is computed, of weights that stay in their file."""

    def __init__(
        self,
        model: Model,
        settings: EngineSettings,
        n_sequences: int = 0,
        n_outputs: int = 0,
        after_layer: Callable[[], None] | None = None,
    ) -> None:
        if model.metadata("general.architecture") == "phi3" and settings.kv_type != "f16" and settings.n_slots > 1:
            # llama.cpp aborts the whole process here: its graph outgrows its own limit (seen in 0.3.36)
            raise BadInput("phi3 with a quantized KV cache runs in one slot only; use f16, or one slot")
        params = llama_cpp.llama_context_default_params()
        threads = settings.n_threads or limits.cores()
        self.n_cells = params.n_ctx = settings.n_ctx * settings.n_slots
        self.n_sequences = n_sequences or 1
        model.check_cache(settings.kv_type, -(-self.n_cells // 256) * 256)
        params.n_seq_max = n_sequences or settings.n_slots
        self.n_batch = max(settings.n_batch, settings.n_slots)  # a token for each sequence at least
        params.n_batch, params.n_ubatch = self.n_batch, min(settings.n_ubatch, self.n_batch)
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPE_IDS[settings.kv_type]
        params.flash_attn_type = _FLASH_ATTN[settings.flash_attn]
        params.n_outputs_max = n_outputs
        params.kv_unified = bool(n_sequences)  # else a cache per sequence: no attention over the neighbours' cells
        params.no_perf = True
        self._vocabulary_size = model.n_vocabulary
        self._after_layer, self._zeros_bytes = after_layer, 0
        self._handles = ExitStack()
        self._read_ahead = None
        if settings.mapped:
            # llama.cpp counts the output as a layer, and puts it there first
            on_host = model.n_layers + 1 - settings.n_gpu_layers
            self._read_ahead = ReadAhead(model.path, max(0, min(on_host, model.n_layers)), self._layer_is_done)
            self._handles.callback(self._read_ahead.close)
            params.cb_eval = self._read_ahead.callback
        self.handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            self._handles.close()
            raise DoesNotFit("llama.cpp could not make a context: not enough memory for the KV cache")
        self._handles.callback(llama_cpp.llama_free, self.handle)
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self._make_batch(self.n_batch, params.n_seq_max)

    def _make_batch(self, size: int, n_sequences: int) -> None:
        """Make the batch's arrays, ours and reused, so that a step fills them by slices instead of item by item."""
        self._token = np.zeros(size, dtype=np.int32)
        self._pos = np.zeros(size, dtype=np.int32)
        self._sequences = np.arange(n_sequences, dtype=np.int32)
        self._first = np.zeros(size, dtype=np.uintp)  # a token's sequences: where they begin in that list, and how many
        self._count = np.ones(size, dtype=np.int32)
        self._wanted = np.zeros(size, dtype=np.int8)
        pointer = ctypes.POINTER(ctypes.c_int32)
        batch: Any = llama_cpp.llama_batch()  # its fields are pointers, which ctypes' types do not say
        batch.token = self._token.ctypes.data_as(pointer)
        batch.pos = self._pos.ctypes.data_as(pointer)
        batch.n_seq_id = self._count.ctypes.data_as(pointer)
        batch.seq_id = ctypes.cast(self._first.ctypes.data, ctypes.POINTER(pointer))
        batch.logits = self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self._batch = batch

    def decode(self, feeds: list[Feed]) -> list[list[Floats]]:
        """Run one llama_decode over all feeds, at most n_batch tokens together. Returns for each feed the logits of its rows: float32
        views of (vocabulary,), valid and free to be changed until the next decode. Raises EngineError."""
        at = 0
        wanted: list[list[int]] = []
        for feed in feeds:
            end = at + len(feed.tokens)
            self._token[at:end] = feed.tokens
            self._pos[at:end] = np.arange(feed.start, feed.start + len(feed.tokens))
            self._first[at:end] = self._sequences.ctypes.data + self._sequences.itemsize * feed.sequence
            self._count[at:end] = feed.shared_by
            self._wanted[at:end] = 0
            rows = [at + row for row in feed.rows]
            self._wanted[rows] = 1
            wanted.append(rows)
            at = end
        self._batch.n_tokens = at
        self._zeros_bytes = 4 * self._vocabulary_size * sum(map(len, wanted))
        if self._read_ahead:
            self._read_ahead.start()
        code = llama_cpp.llama_decode(self.handle, self._batch)
        if code != 0:
            raise EngineError(f"llama_decode failed with code {code} on {at} tokens of {len(feeds)} sequences")
        return self._logits(wanted)

    def _logits(self, wanted: list[list[int]]) -> list[list[Floats]]:
        """Return the logits of the wanted rows, which llama.cpp keeps one after the other, in the batch's order."""
        count = sum(map(len, wanted))
        if not count:
            return [[] for _ in wanted]
        pointer = llama_cpp.llama_get_logits(self.handle)
        if not pointer:
            raise EngineError("llama.cpp returned no logits")
        rows = iter(np.ctypeslib.as_array(pointer, (count, self._vocabulary_size)))
        return [list(islice(rows, len(of_feed))) for of_feed in wanted]

    def _layer_is_done(self) -> None:
        if self._after_layer:
            if self._zeros_bytes:
                in_step.give_back(llama_cpp.llama_get_logits(self.handle), self._zeros_bytes)
                self._zeros_bytes = 0
            self._after_layer()

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop a sequence's cells from position `start` on. Returns False if this kind of cache cannot be cut there; dropping all
        of it always works."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def copy(self, source: int, target: int) -> None:
        """Makes `target` hold what `source` holds. With a cache per sequence llama.cpp copies only whole sequences, at the
        start of the next decode."""
        self.forget(target)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def close(self) -> None:
        self._handles.close()
