"""Asks a model file's own tokenizer how many tokens a character takes. Reads the vocabulary alone, no weights."""

from __future__ import annotations

from pathlib import Path

from storyfi_lite.placement.lengths import LANGUAGES, TokensAChar, sample


def tokens_a_char(path: Path) -> TokensAChar | None:
    """Count on the samples of lengths.json. None without llama.cpp, or for a file that it cannot read."""
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
