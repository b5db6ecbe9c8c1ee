"""What the command line prints is whole at every width: no name cut, no word broken, Chinese in its columns."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

from storyfi_lite.cli import COMMANDS, cli, table
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.check import parse_json
from storyfi_lite.models.registry import load_registry

ROWS = [("gemini-3.5-flash-lite", "4", "gemini API, ends 2026-12-01"), ("灯塔-七", "1", "all layers on the GPU")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    width: int = request.param
    monkeypatch.setattr(table, "Console", lambda **given: Console(force_terminal=True, no_color=True, width=width))
    return width


@pytest.mark.parametrize("terminal", [30, 60, 80, 120], indirect=True)
def test_a_table_cuts_no_name_and_breaks_no_word(terminal: int, capsys: pytest.CaptureFixture[str]) -> None:
    table.print_table(("model", "tier", "on this machine"), ROWS, wrapped="on this machine")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert set(" ".join(map(" ".join, ROWS)).split()) <= set(printed.replace(";", " ").split()) and "…" not in printed
    assert max(map(cell_len, printed.splitlines())) <= terminal


@pytest.mark.parametrize("terminal", [80], indirect=True)
def test_wide_characters_keep_their_columns(terminal: int, capsys: pytest.CaptureFixture[str]) -> None:
    table.print_table(("model", "tier", "on this machine"), ROWS, wrapped="on this machine")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()[1:]
    starts = [cell_len(line[: line.index(text)]) for line, (*_, text) in zip(lines, ROWS, strict=True)]
    assert len(set(starts)) == 1


@pytest.mark.parametrize("width", [60, 80])
def test_help_lists_every_command_with_a_whole_sentence(width: int) -> None:
    printed = CliRunner().invoke(cli, ["--help"], terminal_width=width).output
    assert printed.count("...") == 1  # the usage line's
    assert max(map(len, printed.splitlines())) <= max(width, 70)
    for name in COMMANDS:
        first = cli.get_command(click.Context(cli), name).get_short_help_str(1_000)  # type: ignore[union-attr]
        assert first.endswith(".") and first in " ".join(printed.split())


def test_a_pipe_gets_every_name_whole(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text('{"gpus": [{"name": "RTX 3090", "total_gb": 24}], "ram_gb": 64, "cores": 8}')
    printed = CliRunner().invoke(cli, ["models", "--hardware", str(tmp_path / "machine.json")]).output
    assert all(key in printed for key in load_registry().keys) and "…" not in printed


@pytest.mark.parametrize("broken", ['{"a": "b', '{"a": "b\n"}'])
def test_a_parsers_words_say_at_once(broken: str) -> None:
    with pytest.raises(BadInput, match=r"^not JSON: [^:]*(starting|character) at character \d"):
        parse_json(broken.encode())
