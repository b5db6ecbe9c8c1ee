"""Turns a chat model's text into a checked answer in canonical spelling, and JSON Schema into vendors' smaller dialects.

Nothing is guessed: text around the JSON is a fault, except a code fence around all of it and a thought in
<think> tags before it. This module knows no vendor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from storyfi_lite.errors import BadInput
from storyfi_lite.grammar import Constraint
from storyfi_lite.grammar.check import MAX_TEXT_BYTES, parse_json
from storyfi_lite.grammar.schema import dump
from storyfi_lite.validator.readable import is_cut_off

_THOUGHT = re.compile(r"\A<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"\A```[a-zA-Z]*[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL)


def read_answer(text: str, constraint: Constraint) -> tuple[str | None, tuple[str, ...]]:
    """Check an answer: the task's rules, and that long texts end where a sentence ends. Returns the canonical text and no
    problems, or None and the problems in words."""
    text = _THOUGHT.sub("", text.lstrip("\ufeff").strip(), count=1).strip()
    fenced = _FENCE.match(text)
    raw = (fenced.group(1) if fenced else text).encode(errors="surrogatepass")
    if not raw:
        return None, ("the answer is empty",)
    if len(raw) > MAX_TEXT_BYTES:
        return None, (f"the answer has {len(raw):,} bytes",)
    try:
        data = parse_json(raw)
    except BadInput as error:
        return None, (f"the answer must be one JSON object and nothing around it: {error}",)
    canonical = dump(in_order(constraint.json_schema, data))
    if constraint.check(canonical).valid:
        cut = tuple(f"{path} stops inside a sentence: …{text[-30:]}" for path, text in _texts(data) if is_cut_off(text))
        return (None, cut) if cut else (canonical, ())
    return None, constraint.check(canonical, strict=True).problems or ("the answer breaks the task's rules",)


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}[{index}]")


def in_order(schema: Any, value: Any) -> Any:
    """Sort the keys of a value's objects in the schema's order; keys that the schema does not know come last."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, dict):
        known = schema.get("properties", {})
        keys = [key for key in known if key in value] + [key for key in value if key not in known]
        return {key: in_order(known.get(key), value[key]) for key in keys}
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        rest = first[-1] if first else schema.get("items")
        return [in_order(first[index] if index < len(first) else rest, item) for index, item in enumerate(value)]
    return value


def simple_schema(schema: dict[str, Any], unions: bool) -> dict[str, Any]:
    """Rewrite a JSON Schema without what vendors lack (`const`, `prefixItems`, lengths of strings): lengths and the order of
    fixed values become descriptions. Without `unions`, objects with different keys become one object, in which only the keys
    that all of them have are required."""
    if "const" in schema:
        return _fixed([schema["const"]])
    if schema["type"] == "string":
        return {"type": "string", "description": f"{schema['minLength']} to {schema['maxLength']} characters"}
    if schema["type"] == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        counts = {"minItems": schema["minItems"], "maxItems": schema["maxItems"]}
        return {"type": "array", "items": _merged(items, unions), **counts}
    return _object({key: simple_schema(item, unions) for key, item in schema["properties"].items()})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _merged(schemas: list[dict[str, Any]], unions: bool) -> dict[str, Any]:
    """Merge the schemas of a list's places into one for all its items."""
    if all(one == schemas[0] for one in schemas):
        return simple_schema(schemas[0], unions)
    if all("const" in one for one in schemas):
        return _fixed([one["const"] for one in schemas])
    if not all("properties" in one for one in schemas):
        return (
            {"anyOf": [simple_schema(one, unions) for one in schemas]} if unions else simple_schema(schemas[0], unions)
        )
    keys = list(dict.fromkeys(key for one in schemas for key in one["properties"]))
    shared = [key for key in keys if all(key in one["properties"] for one in schemas)]
    if unions and shared != keys:
        return {"anyOf": [simple_schema(one, unions) for one in schemas]}
    column = {key: [one["properties"][key] for one in schemas if key in one["properties"]] for key in keys}
    return {**_object({key: _merged(column[key], unions) for key in keys}), "required": shared}


def _fixed(values: list[Any]) -> dict[str, Any]:
    """Write the schema of a place, or of a list's places, with fixed values."""
    distinct = list(dict.fromkeys(dump(value) for value in values))
    description = "exactly " + ", then ".join(distinct)
    first = values[0]
    if isinstance(first, str):
        return {"type": "string", "enum": list(dict.fromkeys(values)), "description": description}
    if isinstance(first, list):
        return {"type": "array", "items": {"type": "integer"}, "description": description}
    return {"type": "integer" if isinstance(first, int) else "number", "description": description}
