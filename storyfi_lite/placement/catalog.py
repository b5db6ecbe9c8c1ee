"""Looks up what is known of model files: their headers, and how much of each is still to be fetched."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from storyfi_lite.errors import LiteError
from storyfi_lite.models.gguf import Header, read_local
from storyfi_lite.models.hub import read_remote
from storyfi_lite.models.registry import GGUFFile, ModelSpec
from storyfi_lite.models.store import Store
from storyfi_lite.placement.lengths import LANGUAGES, TokensAChar, sample

log = logging.getLogger(__name__)


class Catalog:
    """Knows no file: for planning a machine that is only described."""

    def header(self, spec: ModelSpec, file: GGUFFile) -> Header | None:
        """Return the file's header; None if it is not known: then the registry's figures are used."""
        return None

    def tokens_a_char(self, spec: ModelSpec, file: GGUFFile) -> TokensAChar | None:
        """Return what the file's own tokenizer makes of text; None if the file is not here: then the table is used."""
        return None

    def missing_bytes(self, spec: ModelSpec, file: GGUFFile) -> int:
        return file.size_bytes


class StoreCatalog(Catalog):
    """Reads the headers of this machine's files, each once. `remote` holds headers that were read from the hub."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._local = cache(lambda path: read_local(path))
        self._tokens = cache(tokens_a_char)
        self.remote: dict[tuple[str, str], Header] = {}

    def header(self, spec: ModelSpec, file: GGUFFile) -> Header | None:
        """Return the file's header if it is known. Raises BadInput for a file that is here and damaged."""
        if self._store.is_complete(spec, file):
            return self._local(self._store.path(spec, file))
        return self.remote.get((spec.key, file.quant))

    def tokens_a_char(self, spec: ModelSpec, file: GGUFFile) -> TokensAChar | None:
        return self._tokens(self._store.path(spec, file)) if self._store.is_complete(spec, file) else None

    def missing_bytes(self, spec: ModelSpec, file: GGUFFile) -> int:
        return self._store.missing_bytes(spec, file)

    def ask_hub(self, spec: ModelSpec, file: GGUFFile) -> bool:
        """Read the header of a missing file from the hub, by ranges. Returns False, and logs it, if the hub cannot be asked."""
        if file.hub is None or self.header(spec, file) is not None:
            return False
        try:
            self.remote[spec.key, file.quant] = read_remote(file)
        except LiteError as error:
            log.info("the header of %s %s stays unread: %s", spec.key, file.quant, error)
            return False
        return True


def tokens_a_char(path: Path) -> TokensAChar | None:
    """Ask a file's own tokenizer, on the samples of lengths.json, how many tokens a character takes; no weight is read. None
    without llama.cpp, or for a file that it cannot read."""
    try:
        import llama_cpp

        from storyfi_lite.engine.vocabulary import Vocabulary
        from storyfi_lite.machine import devices
    except (ImportError, RuntimeError):
        return None
    devices.ggml()  # its log goes to ours
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        return None
    try:
        vocabulary = Vocabulary(llama_cpp.llama_model_get_vocab(model))
        texts = {language: sample(language) for language in LANGUAGES}
        return {language: len(vocabulary.tokenize(text, special=False)) / len(text) for language, text in texts.items()}
    finally:
        llama_cpp.llama_model_free(model)
