"""Writes the user's own models.yaml: adds and takes out a model, and leaves every other line as the user wrote it.

registry.py says where the file is, and reads it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml

from storyfi_lite import files
from storyfi_lite.models.registry import ModelSpec, load_registry, own_registry
from storyfi_lite.models.yaml_lines import pairs, read_yaml

MOVED_BY = "STORYFI_LITE_REGISTRY=FILE"
HEAD = "# Models of your own, laid over the shipped models.yaml, which explains the keys. Upgrades never touch this file.\n"


def keep(spec: ModelSpec) -> Path:
    """Write a model, in the place of one with its key. Returns the file. Raises RegistryError for a file that is broken already,
    or ConfigError if it cannot be written."""
    return _rewrite(spec.key, as_data(spec))


def forget(key: str) -> Path:
    """Take a model out. Raises what `keep` raises."""
    return _rewrite(key, None)


def as_data(spec: ModelSpec) -> dict[str, Any]:
    """Spell a model as models.yaml does, in its short form."""
    hubs = {file.hub for file in spec.files}
    common = hubs.pop() if len(hubs) == 1 else None
    data = spec.model_dump(mode="json", exclude_defaults=True, exclude={"key", "files"})
    if common:
        data["hub"] = common.model_dump()
    data["files"] = {}
    for file in spec.files:
        where = file.model_dump(exclude_none=True, exclude={"quant", "parts"} | ({"hub"} if common else set()))
        parts = [part.model_dump(exclude_none=True) for part in file.parts]
        data["files"][file.quant] = {**(parts[0] if len(parts) == 1 else {"parts": parts}), **where}
    return data


def _rewrite(key: str, model: dict[str, Any] | None) -> Path:
    path = own_registry()
    with files.writing(path, MOVED_BY), ExitStack() as held:
        path.parent.mkdir(parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        held.callback(os.close, directory)
        fcntl.flock(directory, fcntl.LOCK_EX)  # one process at a time changes the file
        load_registry()  # a file that is broken already is left to its owner
        root, data = read_yaml(path) if path.exists() else (None, None)
        text = path.read_text(encoding="utf-8") if path.exists() else HEAD
        wanted = {"local": {}} | (data or {})
        wanted["local"] = {name: one for name, one in (wanted["local"] or {}).items() if name != key}
        if model is not None:
            wanted["local"][key] = model
        block = "" if model is None else yaml.safe_dump({key: model}, **_STYLE)
        edited = _edit(text, root, key, block)
        if not _says(edited, wanted):  # written in a way that lines do not tell
            edited = yaml.safe_dump(wanted, **_STYLE)
        files.write_text(path, edited, MOVED_BY)
    return path


_STYLE: dict[str, Any] = {"default_flow_style": None, "sort_keys": False, "allow_unicode": True, "width": 140}


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return bool({**found, "local": found["local"] or {}} == wanted)


def _edit(text: str, root: yaml.Node | None, key: str, block: str) -> str:
    """Put `block` at the end of the mapping `local`, and take out the lines of `key` if it is there."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    local = next(((name, node) for name, node in pairs(root) if name.value == "local"), None) if root else None
    if local is None:
        return "".join([*lines, "local:\n", indent(block, "  ")])
    name, node = local
    models = pairs(node)
    at = _last_line(models[-1][1]) if models else name.start_mark.line
    lines.insert(at + 1, indent(block, " " * (models[0][0].start_mark.column if models else 2)))
    for one, value in models:
        if one.value == key:
            del lines[one.start_mark.line : _last_line(value) + 1]
    return "".join(lines)


def _last_line(node: yaml.Node) -> int:
    """Return the last line that a node stands on; a block's own end mark lies behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.line
