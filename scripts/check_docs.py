#!/usr/bin/env python3
"""Checks that README and docs speak of what exists (commands and their options, files, links, generated tables), and that a page
in Chinese has the headings, tables, commands and figures of its English one.

    scripts/check_docs.py            says what is wrong; exit code 1 if anything is
    scripts/check_docs.py --write    writes the generated tables anew

Runs no command: tests/test_documented.py does. A command that no test can run says what it needs, of NEEDS: a block behind its
language (```bash network, wallet), a line at the end of its comment (# …; needs network), a sentence in <!-- needs network -->.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from storyfi_lite.machine.cards import bandwidth_of
from storyfi_lite.machine.gpus import Gpu
from storyfi_lite.machine.hardware import Hardware

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^\s*|`)storyfi-lite ([a-z][^`\n]*)")
FILE = re.compile(r"`((?:storyfi_lite|scripts|tests|docs)/[\w./-]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
TABLE = re.compile(r"(<!-- (\w+): made by scripts/check_docs\.py --write -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SCRIPT = re.compile(r"(scripts/\w+(?:\.\w+)?) ([^`#;&|,\n]+)")
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`storyfi-lite ([^`\n]+)`")
FIGURE = re.compile(r"\d[\d.,]*\d|\d")
MARK = re.compile(r"(?:needs|需要) ([a-z, ]+)$")
NEEDS = {"network", "gpu", "wallet", "key"}


@dataclass(frozen=True)
class Documented:
    """Holds a command that a page tells people to type, without its comment; for a block of Python, the block."""

    where: str
    text: str
    needs: frozenset[str]
    language: str = "bash"


def documented(page: Path) -> Iterator[Documented]:
    """Find the page's commands: the lines of its blocks of shell, and what stands in backquotes and has arguments."""
    text = page.read_text(encoding="utf-8")

    def where(at: int) -> str:
        return f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, at) + 1}"

    for block in FENCE.finditer(text):
        language, marks, body = block[1], frozenset(re.findall(r"\w+", block[2])), block[3]
        if language == "python":
            yield Documented(where(block.start(3)), body, marks, language)
        at = block.start(3)
        for line in body.splitlines(keepends=True) if language == "bash" else ():
            command, _, comment = line.partition(" # ")
            said = MARK.search(comment.strip())
            needs = marks.union(said[1].split(", ") if said else ())
            if command.strip() and not command.startswith("#"):
                yield Documented(where(at), command.strip(), needs, language)
            at += len(line)
    for inline in INLINE.finditer(text):
        if len(inline[1].split()) > 1 and not wrong_use(inline[1]) and resolved(inline[1])[1]:
            said = re.search(r"<!-- needs ([a-z, ]+) -->", text[inline.end() : text.find("\n", inline.end())])
            needs = frozenset(said[1].split(", ") if said else ())
            yield Documented(where(inline.start()), f"storyfi-lite {inline[1]}", needs)


def problems(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{page.relative_to(ROOT)}:{number}"
        for match in COMMAND.finditer(line):
            wrong = wrong_use(match[1])
            if wrong:
                yield f"{where}: storyfi-lite {match[1].strip()}: {wrong}"
        for match in SCRIPT.finditer(line):
            for flag in re.findall(r"(?<!\S)--[\w-]+", match[2]):
                if (ROOT / match[1]).exists() and flag not in (ROOT / match[1]).read_text(encoding="utf-8"):
                    yield f"{where}: {match[1]} knows no {flag}"
        for match in FILE.finditer(line):
            if not (ROOT / match[1]).exists():
                yield f"{where}: there is no {match[1]}"
        for match in LINK.finditer(line):
            if not (page.parent / match[1]).exists():
                yield f"{where}: the link to {match[1]} leads nowhere"
    for command in documented(page):
        for unknown in command.needs - NEEDS:
            yield f"{command.where}: {unknown!r} is not one of {', '.join(sorted(NEEDS))}"
        if not command.needs and command.language == "bash" and not command.text.startswith("storyfi-lite "):
            yield f"{command.where}: no test runs {command.text!r}; say what it needs: {', '.join(sorted(NEEDS))}"
    for match in TABLE.finditer(text):
        if match[3] != TABLES[match[2]]():
            yield f"{page.relative_to(ROOT)}: the table {match[2]} is not what the code says now; --write mends it"


def untranslated(page: Path) -> Iterator[str]:
    """Say what a page in Chinese has otherwise than its English one, and which English pages it links that exist in Chinese."""
    english = page.with_name(page.name.replace(".zh.md", ".md"))
    name, texts = page.relative_to(ROOT), [one.read_text(encoding="utf-8") for one in (english, page)]
    for what, pattern in (("headings", r"^#+(?= )"), ("tables", r"^\|(?=.*\|$)"), ("blocks", r"^```.*")):
        ours, theirs = (re.findall(pattern, text, re.MULTILINE) for text in texts)
        if ours != theirs:
            yield f"{name}: its {what} are not those of {english.name}: {len(theirs)} lines, not {len(ours)}, or in another order"
    commands = [[(re.sub('".*?"', "…", it.text), it.needs) for it in documented(one)] for one in (english, page)]
    for command, _ in (one for one in commands[0] if one not in commands[1]):
        yield f"{name}: it lacks {command!r} of {english.name}, or marks it otherwise"
    for command, _ in (one for one in commands[1] if one not in commands[0]):
        yield f"{name}: {command!r} is not in {english.name}"
    said = [Counter(FIGURE.findall(in_thousands(text))) for text in texts]
    for figure in (said[0] - said[1]) + Counter(set(said[1]) - set(said[0])):
        yield f"{name}: {figure} stands {said[1][figure]} times, {said[0][figure]} times in {english.name}"
    for link in LINK.findall(texts[1]):
        chinese = page.parent / link.replace(".md", ".zh.md")
        if link.endswith(".md") and link != english.name and not link.endswith(".zh.md") and chinese.exists():
            yield f"{name}: the link to {link} could lead to {chinese.name}"


def in_thousands(text: str) -> str:
    """Write 4.9 万 as 49k."""
    return re.sub(r"(\d+(?:\.\d+)?) 万", lambda match: f"{float(match[1]) * 10:g}k", text)


def resolved(words: str) -> tuple[click.Command, list[str]]:
    """Return the command, or the one of a group, and its arguments. Raises click.UsageError or ValueError."""
    from storyfi_lite.cli import cli

    command: click.Command = cli
    arguments = shlex.split(re.split(r"\s(?:#|\||&&|>|2>|←|→)|\s{3,}|;", words)[0])
    while isinstance(command, click.Group) and arguments and (command is not cli or arguments[0][0] != "-"):
        _, found, arguments = command.resolve_command(click.Context(cli), arguments)
        assert found is not None  # or it would have raised
        command = found
    return command, arguments


def wrong_use(words: str) -> str:
    """What click says of the command's name and options; "" if it knows them. Values and files are not looked at."""
    try:
        command, arguments = resolved(words)
        command.make_parser(click.Context(command)).parse_args(arguments)
    except click.UsageError as error:
        return error.format_message()
    except ValueError as error:
        return str(error)
    return ""


# a card of each size; the original subnet's thresholds, in GB
CARDS = {"6": ("RTX 2060",), "8": ("RTX 4060",), "12": ("RTX 3060",), "16": ("RTX 4080",), "24": ("RTX 3090",), "48": ("L40S",),
         "80": ("H100",), "2 x 24": ("RTX 3090", "RTX 3090")}  # fmt: skip
ORIGINAL = ((70, "llama-3-70b"), (45, "mixtral-8x7b"), (16, "llama-3-8b"), (8, "phi-3-medium"), (0, "API"))


def described(size: str, names: tuple[str, ...]) -> Hardware:
    """A machine with these cards: all of their memory but 300 MiB free, 64 GB of RAM read at 40 GB/s."""
    gb = int(size.split()[-1])
    gpus = tuple(
        Gpu(name, gb << 30, (gb << 30) - (300 << 20), bandwidth_of(name, gb << 30), index=at)
        for at, name in enumerate(names)
    )
    return Hardware(gpus, 64 << 30, 62 << 30, 8, 10**12, cpu_bandwidth_gb_s=40.0)


def cards() -> str:
    """What `place` says of well-known cards. Beside it what Ollama serves of llama-3-8b by its published defaults: one answer at a
    time, 4,096 tokens of context on a card below 24 GiB (more is no use to this model's 8,192), 1 GiB of the card kept free; it leaves the
    choice of model and file to the user."""
    from storyfi_lite.models.registry import SHIPPED, load_registry
    from storyfi_lite.options import ModelOptions
    from storyfi_lite.placement.catalog import Catalog
    from storyfi_lite.placement.plan import place

    heads = ("GPU memory, GB", "card", "model", "file", "where", "at once", "p95 of all tasks, s", "multiplier", "expected reward",
             "the original subnet's choice", "llama-3-8b Q4_K_M in Ollama")  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    registry = load_registry(SHIPPED)
    for size, names in CARDS.items():
        gb, machine = int(size.split()[-1]) * len(names), described(size, names)
        original = next(model for least, model in ORIGINAL if gb >= least)
        best = place(registry, machine, ModelOptions(), Catalog())
        earns, layout = best.earnings, best.settings
        p95 = "late" if earns.p95_s == float("inf") else f"{earns.p95_s:.0f}"
        cells = [size, names[0], best.spec.key, best.file.quant, f"{best.where}, {layout.kv_type} KV", str(layout.n_slots), p95,
                 f"{best.spec.multiplier:g}", f"{earns.reward:.2f}", original, f"{ollama(machine):.2f}"]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def ollama(machine: Hardware) -> float:
    from storyfi_lite.engine.settings import EngineSettings
    from storyfi_lite.models.registry import SHIPPED, ModelSpec, load_registry
    from storyfi_lite.options import ModelOptions
    from storyfi_lite.placement.fit import Fitter
    from storyfi_lite.placement.plan import place_file

    spec = load_registry(SHIPPED).find("llama-3-8b")
    assert isinstance(spec, ModelSpec)
    kept = tuple(replace(gpu, free_bytes=gpu.free_bytes - (1 << 30)) for gpu in machine.gpus)
    smaller, options = replace(machine, gpus=kept), ModelOptions(kv_type="f16", n_ctx=4096)
    placed = place_file(spec, spec.file("Q4_K_M"), smaller, options, None)
    one = Fitter(placed.arch, placed.loads, smaller, "f16").most(EngineSettings())
    assert one is not None
    return placed.at(one, smaller).earnings.reward


TABLES = {"cards": cards}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="write the generated tables anew")
    if options.parse_args().write:
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            page.write_text(TABLE.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], text), encoding="utf-8")
        return
    found = [problem for page in PAGES for problem in problems(page)]
    found += [problem for page in PAGES if page.name.endswith(".zh.md") for problem in untranslated(page)]
    print("\n".join(found), file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
