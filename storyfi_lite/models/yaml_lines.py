"""Reads YAML files that people write: as plain data, and as nodes that know their lines, so that a mistake is named with its line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from storyfi_lite.errors import RegistryError


def read_yaml(path: Path) -> tuple[yaml.Node | None, Any]:
    """Read a YAML file as nodes, which know their lines, and as plain data. Raises RegistryError with the line that is wrong."""
    try:
        root = _nodes(path.read_text(encoding="utf-8"))
        return root, _plain(root, path)
    except OSError as error:
        raise RegistryError(f"cannot read {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise RegistryError(f"{path}, line {line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path} is no text that YAML allows: {error}") from None
    except RecursionError:
        raise RegistryError(f"{path} is nested too deeply") from None


def _nodes(text: str) -> yaml.Node | None:
    """Read with libyaml, where PyYAML has it, in a tenth of the time; PyYAML's own parser says better what is wrong."""
    with suppress(AttributeError, yaml.YAMLError):
        return yaml.compose(text, Loader=yaml.CSafeLoader)
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _plain(node: yaml.Node | None, path: Path) -> Any:
    """Turn a YAML node into plain data. A key that stands twice is refused, as the YAML standard asks and PyYAML does not."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RegistryError(f"{path}, line {key.start_mark.line + 1}: a key must be a plain name")
            if key.value in seen:
                raise RegistryError(f"{path}, line {key.start_mark.line + 1}: {key.value} stands twice")
            seen.add(key.value)
        return {key.value: _plain(value, path) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path) for item in node.value]
    if node is None:
        return None
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except ValueError:  # such as a number of thousands of digits, or `!!int x`
        value = ...
    if value is None or isinstance(value, str | int | float):
        return value
    raise RegistryError(f"{path}, line {node.start_mark.line + 1}: {node.value[:40]} must be in quotes, or is no value")


def line_of(root: yaml.Node | None, where: tuple[int | str, ...]) -> int:
    """Return the line of the deepest node on an error's path. Steps that only the spelled-out form has are skipped; the hub that
    a file has from its model is looked up in the model."""
    trail = [root] if root else []  # from the root inwards
    spelled_out = False
    for step in where:
        if isinstance(step, str):
            found = [value for node in reversed(trail) for key, value in pairs(node) if key.value == step]
            spelled_out = not found
            trail += found[:1]
        elif not spelled_out and trail:
            items = trail[-1].value if isinstance(trail[-1], yaml.SequenceNode) else [v for _, v in pairs(trail[-1])]
            trail += items[step : step + 1]
    return trail[-1].start_mark.line + 1 if trail else 1


def pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []
