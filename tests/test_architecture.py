"""What is said of the code is true: docs/architecture.md names every room, and no room imports from one below its line; a module
that a docstring or comment names is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "storyfi_lite"
OF_OTHERS = {"bittensor/metagraph.py", "chat_template_utils.py"}  # the second is of transformers
FACES = {"__init__.py", "__main__.py"}  # of the package itself: a version, and the command line


def lines_of_rooms() -> dict[str, int]:
    """Return each room, `files.py` or `miner/`, with its line in the list."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \|", page.partition("## The rooms")[2], re.MULTILINE)
    return {room: line for line, row in enumerate(rows) for room in re.findall(r"`([\w./]+)`", row)}


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of this package that a file imports, at its head, inside functions and for type checking alike."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith(PACKAGE))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_the_list_names_every_room() -> None:
    there = {f"{path.name}/" for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in (ROOT / PACKAGE).glob("*.py")} - FACES
    assert set(lines_of_rooms()) == there


def test_no_room_imports_from_below_its_line() -> None:
    lines = lines_of_rooms()
    upward = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        first = path.relative_to(ROOT / PACKAGE).parts[0]
        own = first if first in lines else f"{first}/"
        for module in imported(path) if first not in FACES else ():
            name = module.split(".")[1]
            room = f"{name}.py" if f"{name}.py" in lines else f"{name}/"
            if lines.get(room, -1) > lines[own] or {own, room} == {"miner/", "rounds/"}:
                upward.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not upward, "\n".join(upward)


def test_every_module_that_a_docstring_or_comment_names_is_there() -> None:
    there = {
        f"/{path.relative_to(ROOT)}" for place in (PACKAGE, "scripts", "tests") for path in (ROOT / place).rglob("*.py")
    }
    gone = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        for name in re.findall(r"(?<![\w/.-])[\w/]+\.py\b", path.read_text(encoding="utf-8")):
            if name not in OF_OTHERS and not any(one.endswith(f"/{name}") for one in there):
                gone.append(f"{path.relative_to(ROOT)} names {name}")
    assert not gone, "\n".join(gone)
