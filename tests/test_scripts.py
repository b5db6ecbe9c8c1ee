"""Every script can still be imported: no test runs the long benchmarks, and what they take from the package may move."""

from __future__ import annotations

import contextlib
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "scripts"
SCRIPTS = sorted(FOLDER.glob("*.py"))
SHELL = [
    path for path in sorted(FOLDER.iterdir()) if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_all_that_it_imports_and_says_what_it_does(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(script.parent)
    found = runpy.run_path(str(script), run_name="imported")
    if script.name != "demo.py":  # scripts/demo runs it
        monkeypatch.setattr("sys.argv", [str(script), "--help"])
        with contextlib.suppress(SystemExit):
            found["main"]()
        first = " ".join(found["__doc__"].strip().partition("\n\n")[0].split())
        assert first in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_a_shell_script_asked_for_help_does_nothing_else(script: Path, tmp_path: Path) -> None:
    """It had run: the demo told a story about "--help"."""
    done = subprocess.run(
        [shutil.which("bash") or "bash", script, "--help"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "") and not list(tmp_path.iterdir())
    assert script.read_text().splitlines()[1].removeprefix("# ") == done.stdout.splitlines()[0]
