"""Reads `models.yaml`, and the user's own laid over it, as typed, frozen objects. A wrong key or value is refused with its file,
line and name. Writing the user's own: own_registry.py.

It knows neither hardware nor network; the validator's reward policy decides what a multiplier pays.
"""

from __future__ import annotations

import difflib
import json
import os
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from storyfi_lite.errors import BadInput, RegistryError
from storyfi_lite.models.yaml_lines import line_of, read_yaml

_PACKAGED = Path(__file__).parents[1] / "models.yaml"  # in an installed wheel
SHIPPED = _PACKAGED if _PACKAGED.exists() else Path(__file__).parents[2] / "models.yaml"
API_MULTIPLIER = 0.5  # the subnet's, for every model behind an API
UNLISTED_MULTIPLIER = 1.0  # the subnet's, for a local model that its table does not know
_SHA256 = r"^[0-9a-f]{64}$"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class HubSource(_Entry):
    """Names a repository on the hub. `revision`: a commit's full 40 digits, as the hub asks for, or `main` if none is known."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^([0-9a-f]{40}|main)$")


class PackageSource(_Entry):
    """Names a Python package whose wheel carries the file at `path`."""

    name: str
    version: str
    path: str


class Part(_Entry):
    """Describes one file to fetch. `exact` false: `size_bytes` was computed, good for planning only."""

    path: str = Field(pattern=r"^[^/\\][^\\]*\.gguf$")
    size_bytes: int = Field(gt=0)
    exact: bool
    sha256: str | None = Field(default=None, pattern=_SHA256)


class Architecture(_Entry):
    """Holds figures of the GGUF header, under llama.cpp's names, for planning before any file is there."""

    name: str
    block_count: int = Field(gt=0)
    embedding_length: int = Field(gt=0)
    feed_forward_length: int = Field(gt=0)
    attention_head_count: int = Field(gt=0)
    attention_head_count_kv: int = Field(gt=0)
    key_length: int = Field(gt=0)
    value_length: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    context_length: int = Field(gt=0)
    expert_count: int = Field(default=0, ge=0)
    expert_used_count: int = Field(default=0, ge=0)
    expert_feed_forward_length: int = Field(default=0, ge=0)  # 0: feed_forward_length
    sliding_window: int | None = None
    tied_output_embedding: bool
    kv_heads_by_layer: tuple[int, ...] = ()  # where they differ; attention_head_count_kv is the largest

    def kv_heads(self, layer: int) -> int:
        return self.kv_heads_by_layer[layer] if self.kv_heads_by_layer else self.attention_head_count_kv


class GGUFFile(_Entry):
    """Describes one quantization of a model: one part, or the parts of a gguf-split. It comes from `hub` if given, else from
    `package`; or it lies in the user's `directory`, where nothing is fetched or deleted. A file that a user points at on the
    command line has none of them."""

    quant: str
    parts: tuple[Part, ...] = Field(min_length=1)
    hub: HubSource | None
    package: PackageSource | None = None
    directory: str | None = None

    @model_validator(mode="after")
    def _a_package_carries_one_file(self) -> GGUFFile:
        if self.package and len(self.parts) > 1:
            raise ValueError("a package carries one file, not parts")
        return self

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


class ModelSpec(_Entry):
    key: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")  # names the directory of its files
    repository: str
    aliases: tuple[str, ...] = ()
    tier: Literal[1, 2, 3, "cpu", "own"]
    multiplier: float = Field(gt=0)
    licence: str
    architecture: Architecture
    chat_template: str | None = None
    files: tuple[GGUFFile, ...] = Field(min_length=1)

    @property
    def names(self) -> tuple[str, ...]:
        """Return everything that this model may be called."""
        return tuple(dict.fromkeys((self.key, *self.aliases, self.repository)))

    @model_validator(mode="after")
    def _files_do_not_collide(self) -> ModelSpec:
        seen: set[str] = set()
        for name in (Path(part.path).name for file in self.files for part in file.parts):
            if name in seen:
                raise ValueError(f"two of its files are named {name}; they are stored in one directory")
            seen.add(name)
        return self

    def file(self, quant: str) -> GGUFFile:
        """Return the file of this quantization. Raises BadInput with the quantizations that there are."""
        for file in self.files:
            if file.quant.casefold() == quant.casefold():
                return file
        raise BadInput(f"{self.key} has no {quant}; there are {', '.join(file.quant for file in self.files)}")


def unlisted_model(
    key: str, repository: str, licence: str, architecture: Architecture, files: tuple[GGUFFile, ...]
) -> ModelSpec:
    """Describe a model that the subnet's table does not know: what such a model is paid, in a tier of the user's own."""
    of_the_subnet: dict[str, Any] = {"tier": "own", "multiplier": UNLISTED_MULTIPLIER}
    return ModelSpec(
        key=key, repository=repository, licence=licence, architecture=architecture, files=files, **of_the_subnet
    )


class ApiModel(_Entry):
    """Describes a vendor's model. `ends`: the day on which the vendor switches it off; `successor`: the vendor's replacement."""

    key: str
    provider: Literal["gemini", "openai"]
    tier: Literal[4] = 4
    multiplier: float = Field(default=API_MULTIPLIER, gt=0)
    ends: date | None = None
    successor: str | None = None

    @model_validator(mode="after")
    def _an_end_has_a_successor(self) -> ApiModel:
        if (self.ends is None) != (self.successor is None):
            raise ValueError(f"{self.key} needs both ends and successor, or neither")
        return self

    @property
    def end(self) -> str:
        """Say, for an operator, when the model ends; empty if no end is known."""
        return f"its vendor ends it on {self.ends} and names {self.successor} in its place" if self.ends else ""


class Registry(_Entry):
    local: tuple[ModelSpec, ...]
    api: tuple[ApiModel, ...]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Registry:
        api = [model.key for model in self.api]
        seen: set[str] = set()
        for name in [name for spec in self.local for name in spec.names] + api:
            if name.casefold() in seen:
                raise ValueError(f"the name {name} stands for two models")
            seen.add(name.casefold())
        return self

    @model_validator(mode="after")
    def _api_models_have_heirs(self) -> Registry:
        for model in self.api:
            if model.successor is not None and model.successor not in [one.key for one in self.api]:
                raise ValueError(f"{model.successor}, the successor of {model.key}, is no API model of this file")
            if all(one.ends for one in self.api if one.provider == model.provider):
                raise ValueError(f"no model of {model.provider} is without an end: one must be its default")
        return self

    @cached_property
    def _by_name(self) -> dict[str, ModelSpec | ApiModel]:
        found: dict[str, ModelSpec | ApiModel] = {model.key.casefold(): model for model in self.api}
        return found | {name.casefold(): spec for spec in self.local for name in spec.names}

    def get(self, name: str) -> ModelSpec | ApiModel | None:
        """Find a model by key, alias or repository, in any case; None if there is no such model."""
        return self._by_name.get(name.casefold())

    def find(self, name: str) -> ModelSpec | ApiModel:
        """Find a model as `get` does. Raises BadInput with the nearest names if there is no such model."""
        model = self.get(name)
        if model is None:
            near = difflib.get_close_matches(name.casefold(), self._by_name, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self.keys)}"
            raise BadInput(f"no model is named {name!r}; {hint}")
        return model

    def with_model(self, spec: ModelSpec) -> Registry:
        """Return this registry with one more model, or with another in the place of the one of that key."""
        return Registry(local=(*(one for one in self.local if one.key != spec.key), spec), api=self.api)

    def default_api(self, provider: str) -> ApiModel:
        """Return the provider's first model that has no end."""
        return next(model for model in self.api if model.provider == provider and model.ends is None)

    @property
    def keys(self) -> tuple[str, ...]:
        return (*(spec.key for spec in self.local), *(model.key for model in self.api))


def own_registry() -> Path:
    """Return where the user's own models.yaml is, or will be: $STORYFI_LITE_REGISTRY, else in the user's configuration."""
    named = os.environ.get("STORYFI_LITE_REGISTRY")
    return Path(named).expanduser() if named else Path(platformdirs.user_config_dir("storyfi-lite")) / "models.yaml"


def load_registry(given: Path | None = None) -> Registry:
    """Read a file; by default the shipped models.yaml, with the user's own laid over it: a key that stands in both is the user's.
    Raises RegistryError with the line that is wrong."""
    if given is not None:
        return _read(given)
    shipped, path = _read(SHIPPED), own_registry()
    if not os.path.exists(path):
        return shipped
    root, _ = read_yaml(path)
    own = _read(path, is_own=True)
    replaced = set(own.keys)
    local = tuple(spec for spec in shipped.local if spec.key not in replaced)
    api = tuple(model for model in shipped.api if model.key not in replaced)
    taken = {name.casefold() for spec in local for name in spec.names} | {model.key.casefold() for model in api}
    for number, spec in enumerate(own.local):
        for name in spec.names:
            if name.casefold() in taken:
                where = f"{path}, line {line_of(root, ('local', number))}"
                raise RegistryError(f"{where}: the name {name} is a shipped model's; give {spec.key} another")
    try:
        return Registry(local=(*local, *own.local), api=(*api, *own.api))
    except ValidationError as error:
        raise RegistryError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _read(path: Path, is_own: bool = False) -> Registry:
    root, data = read_yaml(path)
    if is_own and (data is None or isinstance(data, dict)):
        data = {"local": {}, "api": {}} | {key: value or {} for key, value in (data or {}).items()}
    try:
        registry = Registry.model_validate_json(_as_json(data, path))
    except ValidationError as error:
        # a misspelled key also makes the right one missing: name the one that stands in the file
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        name = ".".join(str(part) for part in first["loc"] if not isinstance(part, int)) or "models.yaml"
        unknown = first["type"] == "extra_forbidden"
        wrong = " is not a key of models.yaml" if unknown else f": {first['msg'].removeprefix('Value error, ')}"
        raise RegistryError(f"{path}, line {line_of(root, first['loc'])}: {name}{wrong}") from None
    for number, spec in enumerate(registry.local):
        for at, file in enumerate(spec.files):
            if not (file.hub or file.package or file.directory):
                line = line_of(root, ("local", number, "files", at))
                raise RegistryError(f"{path}, line {line}: {file.quant} has neither a hub nor a package to come from")
    return registry


def _as_json(data: Any, path: Path) -> str:
    """Spell out the file's short form: keys become fields, a file without parts has one part, a model's hub becomes its files'."""
    if not isinstance(data, dict) or not isinstance(data.get("local"), dict) or not isinstance(data.get("api"), dict):
        raise RegistryError(f"{path}, line 1: it must hold the two mappings `local` and `api`")
    local = {key: _spelled_model(key, model) for key, model in data["local"].items()}
    api = {key: {"key": key, **model} if isinstance(model, dict) else model for key, model in data["api"].items()}
    rest = {key: value for key, value in data.items() if key not in ("local", "api")}
    return json.dumps({"local": list(local.values()), "api": list(api.values()), **rest})


def _spelled_model(key: str, model: Any) -> Any:
    if not isinstance(model, dict):
        return model
    model = {"key": key, **model}
    hub = model.pop("hub", None)
    if isinstance(model.get("files"), dict):
        model["files"] = [_spelled_file(quant, file, hub) for quant, file in model["files"].items()]
    return model


def _spelled_file(quant: str, file: Any, hub: Any) -> Any:
    if not isinstance(file, dict):
        return file
    own = {key: file[key] for key in ("hub", "package", "directory", "parts") if key in file}
    rest = {key: value for key, value in file.items() if key not in own}
    hub = None if "directory" in own else hub
    return {"quant": quant, "hub": hub, **({"parts": [rest]} if "parts" not in own else rest), **own}
