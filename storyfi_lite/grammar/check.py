"""Checks untrusted text against a task's schema and reports, in words, what holds and what does not. Bad input never raises.

`valid` says that the task's rules hold. `canonical` says more: the bytes are those that the grammar itself writes, which a proof
needs. JSON from elsewhere may be valid with other white space, key order or escapes. Needs neither llama.cpp nor llguidance.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.export import text_pattern
from storyfi_lite.grammar.schema import FORBIDDEN, Array, Const, Node, Object, Open, Text, Tuple, dump

MAX_TEXT_BYTES = 1_000_000  # twelve chapters of 3,000 four-byte characters are 144,000
MAX_PROBLEMS = 20
MAX_OPEN_CHARS = 4_000  # of an object whose keys the writer chooses: it goes into the next task's prompt
MAX_NUMBER_CHARS = 40
MAX_DEPTH = 200  # lists and objects inside each other; an answer of ours has 6
MAX_VALUES = 100_000  # lists and objects, and commas: Python needs seconds for millions; token ids are 65,536 at most

# Line feeds and tabs are no harm in a value, though the grammar writes few of them.
_HIDDEN = re.compile("[" + FORBIDDEN.replace(r"\u0000-\u001f", r"\u0000-\u0008\u000b\u000c\u000e-\u001f") + "]")

# An answer is valid without these: they say what can be proven of it, and what a reader does not see.
REMARKS = ("canonical", "proof", "visible")

Rules = Callable[[Any], Iterable[str]]


@dataclass(frozen=True)
class Check:
    """Says whether one thing that was checked is right."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """Holds all checks of one text. `data` is the parsed object if the text is a JSON object, valid or not."""

    checks: tuple[Check, ...]
    data: dict[str, Any] | None = None

    @property
    def valid(self) -> bool:
        return not self.problems

    @property
    def canonical(self) -> bool:
        """Return whether the text is valid and its bytes are those that the grammar writes."""
        return self.valid and all(check.ok for check in self.checks if check.name == "canonical")

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(check.detail for check in self.checks if not check.ok and check.name not in REMARKS)


def check_text(text: str | bytes, schema: Object, written: Object, rules: Rules) -> Report:
    """Parse the text as strict JSON and check the object against `schema`, its `rules`, and `written`, which is what the grammar
    writes (schema.as_written)."""
    try:
        raw = text if isinstance(text, bytes) else text.encode()
        data = parse_json(_bounded(raw))
    except UnicodeEncodeError:
        return _not_json("the text holds a lone surrogate, which no UTF-8 can say")
    except BadInput as error:
        return _not_json(str(error))
    return _report(data, raw, schema, written, rules)


def check_data(data: Any, schema: Object, written: Object, rules: Rules) -> Report:
    """Check, as `check_text` does, an object that came without its text, by its canonical spelling."""
    try:
        raw = _bounded(dump(data).encode())
    except BadInput as error:
        return _not_json(str(error))
    except (ValueError, TypeError, RecursionError) as error:
        return _not_json(f"the object has no JSON spelling: {error}"[:200])
    return _report(data, raw, schema, written, rules)


def _not_json(why: str) -> Report:
    return Report((Check("json", False, why),))


def _bounded(raw: bytes) -> bytes:
    if len(raw) > MAX_TEXT_BYTES:
        raise BadInput(f"{len(raw):,} bytes: an answer has at most {MAX_TEXT_BYTES:,}")
    return raw


def _report(data: Any, raw: bytes, schema: Object, written: Object, rules: Rules) -> Report:
    checks = [Check("json", True, f"one JSON value, {len(raw):,} bytes, no key twice")]
    problems = list(islice(_problems(schema, data, ""), MAX_PROBLEMS))
    checks += [Check("schema", False, problem) for problem in problems]
    if not problems:
        checks.append(Check("schema", True, "every field is there, of the right kind and length"))
        broken = list(islice(rules(data), MAX_PROBLEMS))
        checks += [Check("rules", False, problem) for problem in broken]
        if not broken:
            checks.append(Check("rules", True, "the fields agree with each other"))
    canonical = not any(_problems(written, data, "")) and dump(_as_spelled(written, data)).encode() == raw
    spelling = "exactly the bytes that the grammar writes"
    if not canonical:
        spelling = "not the grammar's spelling (white space, key order, escapes): valid or not, it cannot be proven"
    checks.append(Check("canonical", canonical, spelling))
    return Report(tuple(checks), data if isinstance(data, dict) else None)


def _as_spelled(node: Node, value: Any) -> Any:
    """Return, for a value that fits `node`, what the grammar writes; None for a text with characters that it never writes."""
    if isinstance(node, Text):
        return value if re.fullmatch(text_pattern(node), value) else None
    if isinstance(node, Object):
        return {key: _as_spelled(item, value[key]) for key, item in node.fields}
    if isinstance(node, Array | Tuple):
        return [_as_spelled(item, one) for item, one in zip(_items(node, value), value, strict=True)]
    return node.plain if isinstance(node, Const) else value


# --- reading ---------------------------------------------------------------------------------------------------


def parse_json(raw: bytes) -> Any:
    """Parse strict JSON: one value, nothing after it, no key twice, no NaN or Infinity, no lone surrogate, and bounds on numbers'
    length, nesting and the number of values. Raises BadInput. The caller bounds the size."""
    if raw.count(b"[") + raw.count(b"{") > MAX_VALUES or raw.count(b",") > MAX_VALUES:
        raise BadInput(f"more than {MAX_VALUES:,} values")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8: a bad byte at offset {error.start:,}") from None
    try:
        data = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_int, parse_float=_float)
        dump(_shallow(data)).encode()
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos:,}") from None
    except UnicodeEncodeError:
        raise BadInput("an escape spells a lone surrogate, which is no character") from None
    except RecursionError:
        raise BadInput("nested too deeply to be a story") from None
    return data


def _shallow(data: Any) -> Any:
    level = [data]
    for _ in range(MAX_DEPTH):
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        if not inside:
            return data
        level = list(chain.from_iterable(inside))
    raise RecursionError


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise BadInput(f"a key stands twice in one object: {repeated!r:.60}")
    return data


def _constant(name: str) -> Any:
    raise BadInput(f"{name} is not JSON")


def _int(digits: str) -> int:
    if len(digits) > MAX_NUMBER_CHARS:
        raise BadInput(f"a number of {len(digits):,} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits) if len(digits) <= MAX_NUMBER_CHARS else math.inf
    if not math.isfinite(value):
        raise BadInput(f"the number {digits:.40} is out of range")
    return value


# --- the task's rules ------------------------------------------------------------------------------------------


_KINDS: dict[type, Any] = {Text: str, Object: dict, Open: dict, Array: list, Tuple: list}
_KIND_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


def _problems(node: Node, value: Any, path: str) -> Iterator[str]:
    where, kind = path or "the answer", _KINDS.get(type(node), object)
    if not isinstance(value, kind):
        yield f"{where} is {_KIND_NAMES.get(type(value), 'a number')}, not {_KIND_NAMES[kind]}"
    elif isinstance(node, Text):
        yield from _text_problems(node, value, where)
    elif isinstance(node, Const):
        yield from _const_problems(node, value, where)
    elif isinstance(node, Object):
        yield from _object_problems(node, value, path)
    elif isinstance(node, Open):
        yield from _open_problems(node, value, where)
    else:
        yield from _list_problems(node, value, path, where)


def _text_problems(node: Text, value: str, where: str) -> Iterator[str]:
    if not node.accept[0] <= len(value) <= node.accept[1]:
        yield f"{where} has {len(value):,} characters, {_bounds(*node.accept)}"
    elif not value.strip():
        yield f"{where} is blank"
    elif _HIDDEN.search(value):
        yield f"{where} holds a control or bidirectional-override character"


def _const_problems(node: Const, value: Any, where: str) -> Iterator[str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if node.accept:
        low, high = node.accept
        if not number or not low <= value <= high:
            yield f"{where} is {value!r:.40}, not a number from {low:g} to {high:g}"
        return
    if type(value) is not type(node.plain) or value != node.plain:
        yield f"{where} is {value!r:.60}, not {node.plain!r}"


def _object_problems(node: Object, value: dict[str, Any], path: str) -> Iterator[str]:
    prefix = f"{path}." if path else ""
    for key, item in node.fields:
        if key in value:
            yield from _problems(item, value[key], f"{prefix}{key}")
        elif key not in node.optional:
            yield f"{prefix}{key} is missing"
    known = {key for key, _ in node.fields}.union(node.optional)
    yield from (f"{prefix}{key:.40} is not a field of this task" for key in value if key not in known)


def _open_problems(node: Open, value: dict[str, Any], where: str) -> Iterator[str]:
    if len(value) < node.min_entries:
        yield f"{where} has {len(value)} entries, at least {node.min_entries} are asked for"
    size = len(dump(value))
    if size > MAX_OPEN_CHARS:
        yield f"{where} has {size:,} characters, at most {MAX_OPEN_CHARS:,} are read"
        return
    for key, item in value.items():
        if node.keys and key not in node.keys:
            yield f"{where}.{key:.40} is not one of {', '.join(node.keys)}"
        if isinstance(item, str) and not item.strip():
            yield f"{where}.{key:.40} is blank"
        if _HIDDEN.search(key) or (isinstance(item, str) and _HIDDEN.search(item)):
            yield f"{where}.{key!r:.40} holds a control or bidirectional-override character"


def _list_problems(node: Array | Tuple, value: list[Any], path: str, where: str) -> Iterator[str]:
    low, high = node.accept or (len(node.items), len(node.items))
    if not low <= len(value) <= high:
        yield f"{where} has {len(value):,} items, {_bounds(low, high)}"
    else:
        for index, (item, one) in enumerate(zip(_items(node, value), value, strict=False)):
            yield from _problems(item, one, f"{path}[{index}]")


def _items(node: Array | Tuple, value: list[Any]) -> Iterator[Node]:
    """Yield the node that each item of `value` has to fit; items with fixed ids may come in any order."""
    if isinstance(node, Array):
        yield from (node.item for _ in value)
        return
    left = [*node.items, *node.items[-1:] * (len(value) - len(node.items))]
    for one in value:
        item = left[0]
        if node.any_order and isinstance(one, dict) and "id" in one:
            wanted = ("id", Const(one["id"]))
            item = next((item for item in left if isinstance(item, Object) and wanted in item.fields), item)
        left.remove(item)
        yield item


def _bounds(low: int, high: int) -> str:
    return f"not {low}" if low == high else f"not {low:,} to {high:,}"
