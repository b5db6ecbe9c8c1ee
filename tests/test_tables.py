"""What the command line prints is whole at every width: no name cut, no word broken, Chinese in its columns."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

from scripts.check_docs import wrong_use
from storyfi_lite.cli import Notices, cli, main, table
from storyfi_lite.cli.progress import shown_progress
from storyfi_lite.errors import BadInput
from storyfi_lite.grammar.check import parse_json
from storyfi_lite.models.registry import load_registry
from tests.answers import ENGLISH

ROWS = [("gemini-3.5-flash-lite", "4", "gemini API, ends 2026-12-01"), ("灯塔-七", "1", "all layers on the GPU")]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.json"
    path.write_text('{"gpus": [{"name": "RTX 3090", "total_gb": 24}], "ram_gb": 64, "cores": 8}')
    return path


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


@pytest.mark.parametrize("terminal", [30, 60, 80], indirect=True)
def test_a_line_breaks_between_words_by_the_terminals_cells(terminal: int) -> None:
    path = "/home/me/" + "models/" * 12 + "a.gguf"
    line = f"  - 灯塔 守护人 听见 大海 说话 的 故事 in a store on this machine, which has a name: {path} is its path"
    rows = table.reflow(line).splitlines()
    assert " ".join(rows).split() == line.split() and rows[0].startswith("  - ")
    assert all(row.startswith("      ") for row in rows[1:])
    assert all(cell_len(row) <= terminal for row in rows if path not in row)


def _all(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Walk the tree of commands, so that no new one is forgotten."""
    yield names, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            one = command.get_command(click.Context(command), name)
            assert one is not None
            yield from _all(one, *names, name)


TREE = dict(_all(cli))


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("names", TREE, ids=" ".join)
def test_help_is_whole_at_every_width(names: tuple[str, ...], width: int) -> None:
    command, printed = TREE[names], CliRunner().invoke(cli, [*names, "--help"], terminal_width=width).output
    assert max(map(cell_len, printed.splitlines())) <= width
    words, dense = set(printed.split()), "".join(printed.split())
    for option in command.params:
        said = (getattr(option, "help", None) or "") if isinstance(option, click.Option) else ""
        assert said or isinstance(option, click.Argument), f"{option.opts} has no help"
        assert set(said.split()) <= words and "".join(said.split()) in dense
        assert set(option.opts) <= {word.rstrip(",") for word in words} or isinstance(option, click.Argument)
        assert not isinstance(option, click.Argument) or option.make_metavar(click.Context(command)) in printed
    for line in command.help.splitlines() if command.help else ():
        assert set(line.replace("\b", "").split()) <= words


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("names", [names for names, one in TREE.items() if isinstance(one, click.Group)], ids=" ".join)
def test_help_lists_every_command_with_a_whole_sentence(names: tuple[str, ...], width: int) -> None:
    printed = CliRunner().invoke(cli, [*names, "--help"], terminal_width=width).output
    for below, command in TREE.items():
        if below[:-1] == names and below:
            first = command.get_short_help_str(1_000)
            assert first.endswith(".") and first in " ".join(printed.split()) and below[-1] in printed.split()


@pytest.mark.parametrize("names", TREE, ids=" ".join)
def test_the_shell_completes_what_has_a_name(names: tuple[str, ...]) -> None:
    named = {"--model.name", "--quant", "--min-quant", "--network", "--api.model"}
    for param in TREE[names].params:
        offers = param.shell_complete(click.Context(TREE[names]), "")
        if named & set(param.opts):
            assert offers, param.opts
        if isinstance(param.type, (click.Path, click.File)):
            assert offers[0].type in ("file", "dir")


@pytest.mark.parametrize("names", TREE, ids=" ".join)
def test_every_example_in_help_is_one_that_click_takes(names: tuple[str, ...]) -> None:
    for line in (TREE[names].help or "").splitlines():
        if line.strip().startswith("storyfi-lite "):
            assert wrong_use(line.strip().removeprefix("storyfi-lite ")) == "", line


def test_a_terminal_obeys_nobody_elses_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A miner claims a model's name, a story has a field, that would clear the screen or turn a line round."""
    table.print_table(("miner", "claims"), [("5F3s", "llama\x1b[2J\u202e\r\x07")])
    story = tmp_path / "story.json"
    story.write_text(json.dumps({**ENGLISH, "\x1b]0;x\x07": 1}))
    with pytest.raises(SystemExit):
        cli(["verify", str(story)], standalone_mode=False)
    print(table.reflow("\x1b[2J"))
    said = capsys.readouterr()
    assert "\\x1b[2J" in said.out and not {"\x1b", "\x07", "\r", "\u202e"} & set(said.out + said.err)


@pytest.mark.parametrize("terminal", [60, 80, 120], indirect=True)
@pytest.mark.parametrize("command", ["place", "models"])
def test_a_plan_breaks_no_word(terminal: int, command: str, machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli([command, "--hardware", str(machine)], standalone_mode=False)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(cell_len, printed.splitlines())) <= terminal
    assert {"mixtral-8x7b", "layers", "experts", "Q4_K_M"} <= set(re.split(r"[\s,;:]+", printed)) and "…" not in printed


@pytest.mark.parametrize("terminal", [60, 80], indirect=True)
@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("place --hardware a-machine-file-that-nobody-has-written.json", "a-machine-file-that-nobody-has-written.json"),
        ("generate a lighthouse keeper", '  put the text in quotes: storyfi-lite generate "a lighthouse keeper"'),
    ],
)
def test_wrong_use_breaks_no_word(
    terminal: int, typed: str, whole: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["storyfi-lite", *typed.split()])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert whole in said
    assert all(cell_len(line) <= terminal or line == whole for line in said.splitlines())


@pytest.mark.parametrize("terminal", [60], indirect=True)
def test_a_warning_breaks_no_word(terminal: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = "a page says that this machine has a word of its own for what other machines do not call by any name"
    Notices().emit(logging.LogRecord("storyfi_lite", logging.WARNING, "", 0, text, None, None))
    lines = capsys.readouterr().err.splitlines()
    assert max(map(cell_len, lines)) <= terminal and " ".join(lines).split() == text.split()


@pytest.mark.parametrize("terminal", [60, 80], indirect=True)
def test_what_verify_says_is_whole(
    terminal: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(terminal))
    story = tmp_path / "story.json"
    story.write_text(json.dumps({**ENGLISH, "额外的很长的字段名": 1}), encoding="utf-8")
    with pytest.raises(SystemExit):
        cli(["verify", str(story)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert max(map(cell_len, printed.splitlines())) <= terminal
    assert {"额外的很长的字段名", "grammar's", "spelling"} <= set(printed.split())


def test_a_pipe_gets_every_name_whole(machine: Path) -> None:
    printed = CliRunner().invoke(cli, ["models", "--hardware", str(machine)]).output
    assert all(key in printed for key in load_registry().keys) and "…" not in printed


def test_a_pipe_gets_one_line_a_row_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    table.print_table(("model", "path"), [("灯塔", "/models/" * 60), ("b", "")])
    assert "/models/" * 60 in capsys.readouterr().out.splitlines()[1]


def test_a_pipe_gets_a_note_whole_and_with_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    said = f"{'the hub cannot be reached; ' * 8}pip install '.[local]'"
    with shown_progress() as notices:
        notices.note(said)
    assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.parametrize("broken", ['{"a": "b', '{"a": "b\n"}'])
def test_a_parsers_words_say_at_once(broken: str) -> None:
    with pytest.raises(BadInput, match=r"^not JSON: [^:]*(starting|character) at character \d"):
        parse_json(broken.encode())
