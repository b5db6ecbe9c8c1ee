"""Turns what a user calls a model into a model of the registry, or a path. A repository that the registry does not know is looked
up on the hub: once, because `keep` pins what was found, under that name, in the user's own registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from storyfi_lite.errors import BadInput
from storyfi_lite.models import hub, own_registry
from storyfi_lite.models.gguf import Header, architecture
from storyfi_lite.models.listing import kind_of
from storyfi_lite.models.names import ModelName, parse
from storyfi_lite.models.registry import ApiModel, GGUFFile, ModelSpec, Registry, unlisted_model
from storyfi_lite.options import ModelOptions

MAX_LICENCE_CHARS = 60


@dataclass(frozen=True)
class Resolved:
    """Holds options whose `name` is a key of `registry`. `fresh`: the model, if the hub was asked for it just now; `others`: what
    else lies in its repository, as (path, what it is)."""

    options: ModelOptions
    registry: Registry
    fresh: ModelSpec | None = None
    others: tuple[tuple[str, str], ...] = ()

    def keep(self) -> None:
        """Pin what the hub said, so that the same name means the same commit from now on."""
        if self.fresh is not None:
            own_registry.keep(self.fresh)


def resolve(options: ModelOptions, registry: Registry) -> Resolved:
    """Find what the options name. Raises BadInput for an unknown name, or what hub.look_up and hub.read_remote raise."""
    if options.name is None:
        return Resolved(options, registry)
    name = parse(options.name)
    if name.path:
        if not name.path.is_file():
            raise BadInput(f"there is no file {name.path}")
        if options.quant:
            raise BadInput(f"--quant {options.quant} does not go with the file {name.path}")
        return Resolved(replace(options, name=None, path=name.path), registry)
    if name.quant and options.quant and name.quant.casefold() != options.quant.casefold():
        raise BadInput(f"{options.name} and --quant {options.quant}: name one quantization")
    name = replace(name, quant=name.quant or options.quant)
    spec = pinned(name, registry)
    if spec is not None:
        return Resolved(_with_names(options, spec, name), registry)
    if name.key:
        return Resolved(replace(options, name=registry.find(name.key).key), registry)  # an API model, or an error
    repository = hub.look_up(name.repo or "", name.revision)
    fresh = _from_hub(name, repository, registry)
    return Resolved(_with_names(options, fresh, name), registry.with_model(fresh), fresh, repository.listing.others)


def _with_names(options: ModelOptions, spec: ModelSpec, name: ModelName) -> ModelOptions:
    return replace(options, name=spec.key, quant=named_file(spec, name).quant if name.file else name.quant)


def find(text: str, registry: Registry) -> ModelSpec | ApiModel | Path:
    """Find what `resolve` would, without asking the hub. Raises BadInput for a name that was never pulled."""
    name = parse(text)
    if name.path:
        return name.path
    spec = pinned(name, registry)
    if spec is None and name.repo:
        raise BadInput(f"{text} was never pulled here\n  storyfi-lite pull {text}")
    return spec or registry.find(name.key or text)


def pinned(name: ModelName, registry: Registry) -> ModelSpec | None:
    """Return the local model that the registry has under this name; None if it has none, or not this file of it. A shipped model
    whose files these are goes first: it may be paid more."""
    holders = [spec for spec in registry.local if (name.revision or "@" not in spec.repository) and _holds(spec, name)]
    shipped = next((spec for spec in holders if spec.tier != "own"), None)
    found = registry.get(name.key or name.repo_and_revision)
    if isinstance(found, ModelSpec) and shipped is None:
        return found
    return shipped or next(iter(holders), None)


def _holds(spec: ModelSpec, name: ModelName) -> bool:
    """Return whether a model's files come from the named repository, at the named revision, and the named one is among them."""
    there = [file for file in spec.files if file.hub and file.hub.repo.casefold() == (name.repo or "").casefold()]
    if name.revision:
        there = [file for file in there if file.hub and file.hub.revision == name.revision]
    if name.quant:
        return any(file.quant.casefold() == name.quant.casefold() for file in there)
    return any(name.file in (None, *(part.path for part in file.parts)) for file in there)


def named_file(spec: ModelSpec, name: ModelName) -> GGUFFile:
    """Return the file that holds the path `name.file`. Raises BadInput."""
    for file in spec.files:
        if name.file in [part.path for part in file.parts]:
            return file
    if what := kind_of(name.file or ""):
        raise BadInput(f"{name.file} is {what}, no model")
    there = ", ".join(file.parts[0].path for file in spec.files)
    raise BadInput(f"{name.repo_and_revision} has no model file {name.file}; there are {there}")


def _from_hub(name: ModelName, repository: hub.Repository, registry: Registry) -> ModelSpec:
    listing, quant = repository.listing, name.quant
    for path, what in listing.others:
        if path == name.file:
            raise BadInput(f"{path} is {what}, no model")
    file = next((file for file in listing.files if quant and file.quant.casefold() == quant.casefold()), None)
    if quant and listing.files and file is None:
        raise BadInput(f"{name.repo} has no {quant}; there are {', '.join(file.quant for file in listing.files)}")
    return spec_of(name, repository, free_key(name, repository.commit, registry), file)[0]


def spec_of(
    name: ModelName, repository: hub.Repository, key: str, file: GGUFFile | None = None
) -> tuple[ModelSpec, Header]:
    """Describe a repository as a model, by the header of `file`, by default its smallest. Raises what hub.read_remote raises."""
    if not repository.listing.files:
        others = "; ".join(f"{path} is {what}" for path, what in repository.listing.others)
        raise BadInput(
            f"{name.repo} has no GGUF file of a model{': ' + others if others else ''}\n"
            f"  search the hub for {PurePosixPath(name.repo or '').name} GGUF: others may have converted it"
        )
    file = file or repository.listing.files[0]
    header = hub.read_remote(file)
    licence, figures = licence_of(header, repository.licence), architecture(header, file.parts[0].path)
    return unlisted_model(key, name.repo_and_revision, licence, figures, repository.listing.files), header


def licence_of(header: Header, otherwise: str = "unknown") -> str:
    """Return the licence that the header names, where its page on the hub names none."""
    told = header.metadata.get("general.license")
    words = told if otherwise == "unknown" and isinstance(told, str) else otherwise
    return re.sub(r"[^ -~]", "?", words)[:MAX_LICENCE_CHARS]


def free_key(name: ModelName, commit: str, registry: Registry) -> str:
    """Choose a key that no model has, shipped ones above all: a claim under their names would be another model's."""
    owner, _, title = (name.repo or "").lower().partition("/")
    title = re.sub(r"[._-]gguf$", "", title) + (f"-{commit[:8]}" if name.revision else "")
    full = re.sub(r"[^a-z0-9._-]", "-", f"{owner}-{title}")
    return title if registry.get(title) is None else full if registry.get(full) is None else f"{full}-{commit[:8]}"
