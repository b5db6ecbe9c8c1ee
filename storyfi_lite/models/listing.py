"""Tells what the files of a repository are, by their names and sizes: quantizations, split sets, and what is no model. Asks nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from storyfi_lite.models.registry import GGUFFile, HubSource, Part

UNKNOWN_QUANT = "unknown"
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
