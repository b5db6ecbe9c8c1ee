#!/usr/bin/env python3
"""Makes the pictures of README from the real thing: the demo's terminal as SVG, a miner's status page as PNG (with Chromium).

    scripts/pictures.py            writes docs/pictures/demo.svg and docs/pictures/status.png; takes a few minutes
    scripts/pictures.py status     one of them

Run after scripts/setup, in its environment. No network but 127.0.0.1.
"""

from __future__ import annotations

import argparse
import html
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
PROGRAM = [sys.executable, "-m", "storyfi_lite"]
MODEL = ["--model.name", "smollm2-135m", "--threads", "1"]
COLUMNS = 100
ROUNDS = 6
INPUTS = (
    "a lighthouse keeper who hears the sea speak",
    "一个关于灯塔守护人的故事",
    "two sisters find a map of the moon",
)
WIDTH_PX, HEIGHT_PX = 1200, 1400


def demo(scratch: Path) -> None:
    """Run scripts/demo.py and draw what it writes."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TMPDIR": str(scratch)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")], env=environment, stdout=subprocess.PIPE, check=True
    )
    # of a line that was drawn several times, the last; nothing of the spinner
    lines = [re.split(r"\r|\x1b\[2K", line)[-1] for line in done.stdout.decode().splitlines()]
    shown = "\n".join(line for line in lines if "loading the model" not in line)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("$ scripts/demo\n" + re.sub(r"\x1b\[[?\d;]*[A-Zhl]", "", shown).strip("\n")))
    svg = re.sub(
        r"@font-face \{.*?\}\s*", "", console.export_svg(title="storyfi-lite"), flags=re.DOTALL
    )  # no font from elsewhere
    svg = re.sub(r'textLength="([\d.]+)"([^>]*)>([^<]*)<', _as_wide_as_its_cells, svg)
    (PICTURES / "demo.svg").write_text(svg.replace("Fira Code", "ui-monospace, Menlo, Consolas"), encoding="utf-8")


def _as_wide_as_its_cells(match: re.Match[str]) -> str:
    """Give Chinese text the room of two cells a character; rich counts one."""
    text = html.unescape(match[3])
    length = float(match[1]) * cell_len(text) / max(1, len(text))
    return f'textLength="{length:.1f}"{match[2]}>{match[3]}<'


def status(scratch: Path) -> None:
    """Start a miner, have it asked by a validator and by strangers, and take a picture of its page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no status.png: there is no chromium", file=sys.stderr)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    network, environment = ["--network", "dev"], {**os.environ, "XDG_STATE_HOME": str(scratch)}
    (scratch / "inputs.txt").write_text("\n".join(INPUTS), encoding="utf-8")
    url = f"http://127.0.0.1:{port}/"
    miner = subprocess.Popen([*PROGRAM, "mine", *network, *MODEL, "--axon.port", str(port)], env=environment)
    try:
        while miner.poll() is None and not _answers(url):
            time.sleep(0.5)
        asked = ["--rounds", str(ROUNDS), "--interval", "0", "--proofs", "0", "--inputs", str(scratch / "inputs.txt")]
        subprocess.run([*PROGRAM, "validate", *network, "--dry-run", *asked], check=True, env=environment)
        for _ in range(5):
            httpx.post(f"{url}story", content=b"{}", trust_env=False)
        page = scratch / "page.html"
        page.write_text(httpx.get(url, trust_env=False).text, encoding="utf-8")
    finally:
        miner.send_signal(signal.SIGINT)
        miner.wait(60)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={scratch / 'profile'}",
    ]
    flags += [f"--window-size={WIDTH_PX},{HEIGHT_PX}", f"--screenshot={PICTURES / 'status.png'}", page.as_uri()]
    subprocess.run([chromium, *flags], check=True, stderr=subprocess.DEVNULL)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("picture", nargs="?", choices=("demo", "status"), help="which one; both if left out")
    only = options.parse_args().picture
    PICTURES.mkdir(exist_ok=True)
    for picture in (demo, status):
        if only in (None, picture.__name__):
            with tempfile.TemporaryDirectory(prefix="storyfi-") as scratch:
                picture(Path(scratch))


if __name__ == "__main__":
    main()
