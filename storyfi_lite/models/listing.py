"""Tells what the files of a repository are, by their names and sizes: quantizations, their order, split sets, and what is no model.
Asks nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from storyfi_lite.errors import BadInput
from storyfi_lite.models.registry import GGUFFile, HubSource, Part

UNKNOWN_QUANT = "unknown"
# bits a weight, of the layers (llama-quantize's own table)
QUANT_BITS = {"IQ1_S": 1.6, "TQ1_0": 1.7, "IQ1_M": 1.8, "IQ2_XXS": 2.1, "TQ2_0": 2.1, "IQ2_XS": 2.3, "IQ2_S": 2.5, "Q2_K": 2.6,
              "IQ2_M": 2.7, "IQ3_XXS": 3.1, "IQ3_XS": 3.3, "IQ3_S": 3.4, "Q3_K_S": 3.5, "IQ3_M": 3.7, "Q3_K": 3.9, "Q3_K_M": 3.9,
              "Q3_K_L": 4.2, "MXFP4": 4.3, "IQ4_XS": 4.3, "IQ4_NL": 4.5, "NVFP4": 4.5, "Q4_0": 4.5, "Q4_K_S": 4.6, "Q4_K": 4.8,
              "Q4_K_M": 4.8, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_K_S": 5.5, "Q5_K": 5.7, "Q5_K_M": 5.7, "Q5_1": 6.0, "Q6_K": 6.6, "Q8_0": 8.5,
              "Q8_K": 8.6, "F16": 16.0, "BF16": 16.0, "F32": 32.0}  # fmt: skip
_QUANT = re.compile(
    r"(?<![A-Z0-9])(?:UD-)?(?:I?Q\d_(?:K(?:_(?:XXS|XS|S|M|L|XL))?|XXS|XS|S|M|L|XL|NL|\d(?:_\d_\d)?)"
    r"|TQ\d_0|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32|FP16|FP32)(?![A-Z0-9])"
)
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_NO_MODEL = (
    (re.compile(r"mmproj"), "an image encoder (mmproj)"),
    (re.compile(r"imatrix"), "an importance matrix"),
    (re.compile(r"(?<![a-z])(lora|adapter)(?![a-z])"), "a LoRA adapter"),
    (re.compile(r"^ggml-vocab"), "a vocabulary without a model"),
    (re.compile(r"\.gguf[._-](part|split|\d)"), "a piece of a file that was cut by hand"),
)


@dataclass(frozen=True)
class HubFile:
    """Describes a file as the hub lists it. `sha256`: of its Git LFS metadata; None for a small file that is in Git itself."""

    path: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """Holds a repository's quantizations, coarse to fine, and what else lies there, as (path, what it is)."""

    files: tuple[GGUFFile, ...]
    others: tuple[tuple[str, str], ...]


def quant_of(path: str) -> str:
    """Return the quantization that a file's name tells, or else its directory's; `UNKNOWN_QUANT` if neither does."""
    for name in reversed(PurePosixPath(path.upper()).parts):
        if found := _QUANT.findall(name):
            return str(found[-1])
    return UNKNOWN_QUANT


def finer_than(minimum: str, file: GGUFFile) -> bool:
    """Return whether the file is at least as fine as the quantization `minimum`. Raises BadInput if that is not known."""
    if minimum.upper() not in QUANT_BITS:
        raise BadInput(f"no quantization is named {minimum!r}; there are {', '.join(QUANT_BITS)}")
    return bits(file.quant, 99.0) >= QUANT_BITS[minimum.upper()]


def bits(quant: str, unknown: float) -> float:
    """Return a quantization's bits a weight; of a variant, such as UD-Q4_K_XL, those of what it varies."""
    plain = quant.upper().removeprefix("UD-")
    known = [name for name in QUANT_BITS if plain.startswith(name)]
    return QUANT_BITS[max(known, key=len)] if known else unknown


def kind_of(path: str) -> str:
    """Return what a file is that is no model, by its name; "" if it may be one."""
    name = PurePosixPath(path).name.lower()
    return next((what for pattern, what in _NO_MODEL if pattern.search(name)), "")


def read_listing(found: Iterable[HubFile], source: HubSource) -> Listing:
    """Sort a repository's files into quantizations and the rest. A file whose name, in the store's one directory, is another's
    already, is among the rest; so is a split set that lacks a part."""
    files: dict[str, GGUFFile] = {}
    others: list[tuple[str, str]] = []
    stored: set[str] = set()
    sets: dict[str, list[HubFile]] = {}
    for one in sorted(found, key=lambda one: one.path):
        if not one.path.isprintable() or "\\" in one.path or ".." in PurePosixPath(one.path).parts:
            continue  # no converter names a file so, and a terminal obeys what it prints
        if what := kind_of(one.path):
            others.append((one.path, what))
        elif one.path.endswith(".gguf"):
            match = _SPLIT.fullmatch(one.path)
            sets.setdefault(f"{match[1]}-of-{match[3]}" if match else one.path, []).append(one)
    for name, parts in sets.items():
        names = {PurePosixPath(part.path).name for part in parts}
        match = _SPLIT.fullmatch(parts[0].path)
        if match and len(parts) != int(match[3]):
            others.append((parts[0].path, f"a set of {int(match[3])} parts that lacks {int(match[3]) - len(parts)}"))
        elif stored & names or not all(part.size_bytes for part in parts):
            others.append(
                (parts[0].path, "a file of a name that stands for another here" if stored & names else "empty")
            )
        else:
            stored |= names
            quant = quant_of(parts[0].path)
            label = PurePosixPath(name).stem if quant in files else quant
            pieces = tuple(
                Part(path=part.path, size_bytes=part.size_bytes, exact=True, sha256=part.sha256) for part in parts
            )
            files[label] = GGUFFile(quant=label, parts=pieces, hub=source)
    return Listing(tuple(sorted(files.values(), key=lambda file: file.size_bytes)), tuple(others))
