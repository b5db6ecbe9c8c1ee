"""The files that keep a miner running elsewhere say only what the command line knows. Neither Docker nor systemd is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from storyfi_lite.cli.mine import command

ROOT = Path(__file__).parent.parent


def parsed(arguments: str) -> dict[str, Any]:
    """What `storyfi-lite mine` understands. Raises click's usage error for a flag that it does not know."""
    return command.make_context("mine", shlex.split(arguments)).params


def with_defaults(text: str) -> str:
    """As compose fills in ${NAME:-default} and ${NAME:+if set} where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", re.sub(r"\$\{\w+:\+[^}]*\}", "", text))


def test_the_compose_file() -> None:
    path = ROOT / "scripts" / "compose.yaml"
    compose = yaml.safe_load(path.read_text())
    miner = compose["services"]["miner"]
    build = miner["build"]
    assert (path.parent / build["context"] / build["dockerfile"]).is_file()
    verb, _, flags = with_defaults(miner["command"]).partition(" ")
    options = parsed(flags)
    assert (verb, options["chain_network"], options["log_format"]) == ("mine", "test", "json")
    assert [f"{options['port']}:{options['port']}"] == miner["ports"]
    mounts = dict(with_defaults(volume).split(":")[:2] for volume in miner["volumes"])
    assert set(compose["volumes"]) == {name for name in mounts if not name.startswith("~")}
    assert {str(options["state_dir"]), str(options["chain_wallet_path"]), "/models"} == set(mounts.values())
    image = (ROOT / "Dockerfile.cuda").read_text()
    assert f"127.0.0.1:{options['port']}/health" in image and f"XDG_STATE_HOME={options['state_dir']}" in image
    assert all("=" not in str(value) for value in miner["environment"].values())


def test_the_systemd_unit() -> None:
    unit = (ROOT / "scripts" / "storyfi-lite.service").read_text()
    found = re.search(r'^Environment="MINE_FLAGS=(.*)"$', unit, re.MULTILINE)
    assert found is not None
    assert parsed(found.group(1))["log_format"] == "json"
    assert "ExecStart=/var/lib/storyfi-lite/venv/bin/storyfi-lite mine $MINE_FLAGS" in unit
