"""Writes a schema as Lark for llguidance, as GBNF for stock llama.cpp, and as JSON Schema.

Lark and GBNF accept exactly the same bytes. JSON Schema accepts more: it cannot fix key order or
white space.
"""

from __future__ import annotations

import re
from typing import Any

from storyfi_lite.grammar.schema import FORBIDDEN, Array, Const, Node, Open, Text, Tuple, dump, pieces

# llama.cpp refuses, or silently unbounds, a repetition above 2000 and counts repetition × rule size; blocks of this
# many characters, named once and repeated, stay far below.
GBNF_BLOCK_CHARS = 100
# No characters, and no UTF-8: a class that holds them would let llama.cpp write the bytes ED A0 80 to ED BF BF.
SURROGATES = (0xD800, 0xDFFF)


# --- llguidance ------------------------------------------------------------------------------------------------


def to_lark(schema: Node) -> str:
    """Write Lark for llguidance. Each text is one terminal with its quotes, so that no two tokens of the lexer overlap."""
    terminals: dict[str, str] = {}  # regular expression -> name
    rules: dict[str, str] = {}  # body -> name

    def row(node: Node) -> str:
        out = []
        for piece in pieces(node):
            if isinstance(piece, str):
                out.append(dump(piece))
            elif isinstance(piece, Text):
                out.append(terminals.setdefault(_text_regex(piece), f"TEXT_{len(terminals) + 1}"))
            else:
                out.append(array(piece))
        return " ".join(out)

    def array(node: Array) -> str:
        return rules.setdefault(_repeat(row(node.item), node), f"array_{len(rules) + 1}")

    start = f"start: {row(schema)}"
    arrays = [f"{name}: {body}" for body, name in rules.items()]
    texts = [f"{name}: /{regex}/" for regex, name in terminals.items()]
    return "\n".join([start, *arrays, *texts]) + "\n"


def _repeat(item: str, node: Array) -> str:
    """Write `[item,item(,item(,item)?)?]` with literals quoted: the same text serves Lark and GBNF."""
    tail = ""
    for _ in range(node.max_items - node.min_items):
        tail = f'("," {item} {tail})?'.replace(" )", ")")
    fixed = ' "," '.join([item] * node.min_items)
    return f'"[" {fixed} {tail} "]"'.replace("  ", " ")


def _rust_class(body: str) -> str:
    return re.sub(r"\\u([0-9a-f]{4})", r"\\u{\1}", body)


def _text_regex(text: Text) -> str:
    char = rf'[^"\\{_rust_class(FORBIDDEN)}]|\\["\\{"n" if text.newlines else ""}]'
    first = rf'[^ "\\{_rust_class(FORBIDDEN)}]|\\["\\]'
    return rf'"({first})({char}){{{text.min_chars - 1},{text.max_chars - 1}}}"'


# --- GBNF ------------------------------------------------------------------------------------------------------


def to_gbnf(schema: Node) -> str:
    """Write GBNF for stock llama.cpp tools (`--grammar-file`)."""
    rules: dict[str, str] = {}
    arrays: dict[str, str] = {}  # body -> name

    def row(node: Node) -> str:
        return " ".join(one(piece) for piece in pieces(node))

    def one(piece: str | Text | Array) -> str:
        if isinstance(piece, str):
            return '"' + piece.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if isinstance(piece, Text):
            return _gbnf_text(piece, rules)
        return arrays.setdefault(_repeat(row(piece.item), piece), f"array-{len(arrays) + 1}")

    root = row(schema)
    rules.update({name: body for body, name in arrays.items()})
    lines = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in rules.items())]
    return "\n".join(lines) + "\n"


def _gbnf_text(text: Text, rules: dict[str, str]) -> str:
    name = f"text-{text.min_chars}-{text.max_chars}" + ("-nl" if text.newlines else "")
    if name not in rules:
        char = "char-nl" if text.newlines else "char"
        rules[name] = f'"\\"" first {_gbnf_span(char, text.min_chars - 1, text.max_chars - 1, rules)} "\\""'
        escapes = "n" if text.newlines else ""
        rules.setdefault("first", "[" + _gbnf_class(' "') + r'] | "\\" ["\\]')
        rules.setdefault(char, "[" + _gbnf_class('"') + rf'] | "\\" ["\\{escapes}]')
    return name


def _gbnf_class(but: str) -> str:
    """Write, as ranges, every character except `but`, a backslash and the forbidden ones. Excluding characters instead would
    fail: before the last byte of a character, llama.cpp refuses it if *any* continuation is excluded, and a dash or quote often
    comes in two tokens."""
    bounds = [(ord(char), ord(char)) for char in but + "\\"] + [SURROGATES]
    for low, high in re.findall(r"\\u([0-9a-f]{4})(?:-\\u([0-9a-f]{4}))?", FORBIDDEN):
        bounds.append((int(low, 16), int(high or low, 16)))
    ranges, start = [], 0
    for low, high in [*sorted(bounds), (0x110000, 0)]:
        if low > start:
            ranges.append(f"\\U{start:08x}-\\U{low - 1:08x}")
        start = high + 1
    return "".join(ranges)


def _gbnf_span(char: str, low: int, high: int, rules: dict[str, str]) -> str:
    """Write `low` to `high` characters: a fixed part in whole blocks, then optional blocks, each up to a block long."""
    parts = []
    blocks, rest = divmod(low, GBNF_BLOCK_CHARS)
    if blocks:
        rules.setdefault(f"{char}-block", f"{char}{{{GBNF_BLOCK_CHARS}}}")
        parts.append(f"{char}-block{{{blocks}}}")
    if rest:
        parts.append(f"{char}{{{rest}}}")
    blocks, rest = divmod(high - low, GBNF_BLOCK_CHARS)
    tail = f"{char}{{0,{rest}}}" if rest else ""
    if blocks:
        # block block? … nested, so that a text has one parse: the next block opens only when the last is full
        rules.setdefault(f"{char}-block", f"{char}{{{GBNF_BLOCK_CHARS}}}")
        partial = f"{char}{{0,{GBNF_BLOCK_CHARS - 1}}}"
        for _ in range(blocks):
            tail = f"({char}-block {tail} | {partial})" if tail else f"({char}-block | {partial})"
    return " ".join([*parts, tail]).strip()


# --- JSON Schema -----------------------------------------------------------------------------------------------


def to_json_schema(schema: Node) -> dict[str, Any]:
    """Write JSON Schema, draft 2020-12."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_json_schema(schema)}


def _json_schema(node: Node) -> dict[str, Any]:
    if isinstance(node, Text):
        bounds = {"minLength": node.min_chars, "maxLength": node.max_chars}
        return {"type": "string", **bounds, "pattern": text_pattern(node)}
    if isinstance(node, Const):
        return {"const": node.plain}
    if isinstance(node, Array):
        counts = {"minItems": node.min_items, "maxItems": node.max_items}
        return {"type": "array", "items": _json_schema(node.item), **counts}
    if isinstance(node, Tuple):
        items = [_json_schema(item) for item in node.items]
        counts = {"minItems": len(items), "maxItems": len(items)}
        return {"type": "array", "prefixItems": items, "items": False, **counts}
    if isinstance(node, Open):
        return _json_schema(node.written)
    return {
        "type": "object",
        "properties": {key: _json_schema(value) for key, value in node.fields},
        "required": [key for key, _ in node.fields],
        "additionalProperties": False,
    }


def text_pattern(text: Text) -> str:
    """Write the regular expression of a text's value, escapes undone. Its first class excludes the line feed, which `$` lets pass."""
    rest = FORBIDDEN.replace(r"\u0000-\u001f", r"\u0000-\u0009\u000b-\u001f") if text.newlines else FORBIDDEN
    return rf"^[^ {FORBIDDEN}][^{rest}]*$"
