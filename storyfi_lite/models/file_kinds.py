"""Says what a file is that is no language model: another format, or a GGUF file that goes beside a model.

Each answer is a few words and what to do instead. Knows files by their first bytes and their metadata; reads nothing itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

BEGINNING_BYTES = 512
# first bytes -> what that is, and what to do
_FORMATS = (
    (rb"version https://git-lfs", "it is a Git LFS pointer that stands for one; fetch the file itself: git lfs pull --include {name}"),
    (rb"(?i)\s*<(!doctype|html)", "it is a web page; the file's own address has /resolve/ where the page's has /blob/"),
    (rb"\s*{\s*\"", "it is JSON, perhaps a server's answer in its place; fetch it again"),
    (rb".{8}{\"", "it is a safetensors file; take a GGUF of this model"),
    (rb"PK\x03\x04", "it is a zip archive, perhaps PyTorch's weights; take a GGUF of this model"),
    (rb"\x1f\x8b|\xfd7zXZ|\x28\xb5\x2f\xfd|BZh", "it is compressed; unpack it first"),
    (rb"lmgg|fmgg|tjgg|algg", "it is of GGML, the format before GGUF; take a GGUF of this model"),
)  # fmt: skip
# general.type, or else general.architecture
_COMPANIONS = {
    "adapter": "it is an adapter (LoRA) that changes a model; merge it with llama.cpp's llama-export-lora and give the result",
    "imatrix": "it is an importance matrix, for quantizing a model; give the model's own file",
    "mmproj": "it is a projector (mmproj) that shows pictures to a model; give the model's own file",
    "clip": "it is a projector (mmproj) that shows pictures to a model; give the model's own file",
}
_PIECE = re.compile(r"^(.*)(?:\.part-?\d+(?:of\d+)?|-split-[a-z]+|\.\d{3})$", re.IGNORECASE)


def not_gguf(beginning: bytes, name: str) -> str:
    """Return the end of a sentence, "… is not a GGUF file": what it is instead. `beginning`: the first bytes."""
    for pattern, words in _FORMATS:
        if re.match(pattern, beginning, re.DOTALL):
            return f": {words.format(name=shlex.quote(name))}"
    if piece := _PIECE.match(name):
        whole = shlex.quote(piece[1])
        return f"; if it is a piece of one, join all pieces in their order: cat {whole}?* > {whole}"
    return "; give the path of a .gguf file"


def no_language_model(metadata: Mapping[str, object], n_tensors: int) -> str:
    """Return what a GGUF file is that writes no text, and what to do instead; empty for a language model."""
    kind, architecture = (metadata.get(f"general.{key}") for key in ("type", "architecture"))
    for known in (kind, architecture):
        if isinstance(known, str) and known in _COMPANIONS:
            return _COMPANIONS[known]
    if not isinstance(architecture, str):
        return "it has no general.architecture"
    if not n_tensors:
        return "it has a vocabulary and no weights"
    if metadata.get(f"{architecture}.attention.causal") is False or "bert" in architecture:
        return f"it is of the kind {architecture}, which makes numbers of texts; give a model that writes"
    return ""
