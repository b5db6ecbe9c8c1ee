"""Describes a model that the user makes known under a name of their own, by its files' headers. Fetches and writes nothing."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from storyfi_lite.errors import BadInput
from storyfi_lite.models import hub
from storyfi_lite.models.digest import file_sha256
from storyfi_lite.models.gguf import Header, architecture, read_local, split_parts
from storyfi_lite.models.listing import UNKNOWN_QUANT, quant_of
from storyfi_lite.models.names import parse
from storyfi_lite.models.registry import SHIPPED, GGUFFile, ModelSpec, Part, Registry, load_registry, unlisted_model
from storyfi_lite.models.resolve import licence_of, pinned, spec_of


def describe(key: str, sources: tuple[str, ...], registry: Registry) -> tuple[ModelSpec, list[str]]:
    """Return the model, and in words what its header says. Raises BadInput, or what the hub's questions raise."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", key):
        raise BadInput(f"{key!r} is no name: small letters, digits, and . _ - after the first")
    if load_registry(SHIPPED).get(key) is not None:
        raise BadInput(f"{key} is a shipped model's name, and claims it: choose another")
    names = [parse(source) for source in sources]
    if len(names) == 1 and names[0].repo:
        name = names[0]
        if name.quant or name.file:
            raise BadInput(
                f"give the repository alone, {name.repo_and_revision}: each of its quantizations is made known"
            )
        if (known := pinned(name, registry)) and known.key != key:
            raise BadInput(f"{name.repo_and_revision} is known as {known.key}")
        spec, header = spec_of(name, hub.look_up(name.repo or "", name.revision), key)
    elif all(name.path for name in names):
        spec, header = _of_files(key, [name.path for name in names if name.path])
    else:
        raise BadInput("a model comes from one repository, OWNER/REPO[@REVISION], or from the paths of files")
    old = registry.get(key)
    others = {name.casefold() for one in registry.local if one is not old for name in one.names}
    if taken := next((name for name in spec.names if name.casefold() in others), None):
        raise BadInput(f"{taken} is here already: storyfi-lite models {taken}")
    arch, template = spec.architecture, header.metadata.get("tokenizer.chat_template")
    chat = f"of {len(template):,} characters" if isinstance(template, str) else "none: it cannot be asked"
    return spec, [
        f"architecture {arch.name}, {arch.block_count} layers, {arch.context_length:,} tokens of context",
        f"vocabulary {header.metadata.get('tokenizer.ggml.model', 'unknown')}, {arch.vocab_size:,} tokens",
        f"chat template {chat}",
        f"licence {spec.licence}",
        f"files {', '.join(file.quant for file in spec.files)}",
    ]


def _of_files(key: str, paths: list[Path]) -> tuple[ModelSpec, Header]:
    files: dict[str, GGUFFile] = {}
    headers = []
    for path in paths:
        if not path.is_file():
            raise BadInput(f"there is no file {path}")
        header = read_local(path)
        headers.append(header)
        file = _own_file(path.resolve(), header)
        if file.quant in files:
            raise BadInput(f"{path.name} and {files[file.quant].parts[0].path} are both {file.quant}: add one of them")
        files[file.quant] = file
    first = architecture(headers[0], paths[0].name)
    for path, header in zip(paths, headers, strict=True):
        other = architecture(header, path.name)
        if (other.name, other.block_count, other.vocab_size) != (first.name, first.block_count, first.vocab_size):
            raise BadInput(f"{path.name} is of another model than {paths[0].name}: add it under another name")
    in_order = tuple(sorted(files.values(), key=lambda file: file.size_bytes))
    return unlisted_model(key, key, licence_of(headers[0]), first, in_order), headers[0]


def _own_file(path: Path, header: Header) -> GGUFFile:
    if not str(path).isprintable() or not path.name.endswith(".gguf"):
        raise BadInput(
            f"{path.name!a}: a registry holds names of text that end in .gguf; rename it, or give --model.path"
        )
    parts = tuple(
        Part(path=part.name, size_bytes=part.stat().st_size, exact=True, sha256=file_sha256(part))
        for part in split_parts(path)
    )
    quant = quant_of(path.name)
    if quant == UNKNOWN_QUANT:  # the type that most of its bytes have
        sizes: Counter[str] = Counter()
        for tensor in header.tensors:
            sizes[tensor.type_name] += tensor.size_bytes
        quant = sizes.most_common(1)[0][0] if sizes else quant
    return GGUFFile(quant=quant, parts=parts, hub=None, directory=str(path.parent))
