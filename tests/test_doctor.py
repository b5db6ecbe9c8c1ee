"""`storyfi-lite doctor`: each check finds what is wrong and names what mends it; it never shows a key."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyfi_lite import doctor
from storyfi_lite.cli import cli
from storyfi_lite.devchain.substrate import DevNetwork, dev_network
from storyfi_lite.doctor import Check, Setup
from storyfi_lite.loaders.keys import API_KEYS
from storyfi_lite.machine.gpus import Gpu
from storyfi_lite.machine.hardware import Hardware
from storyfi_lite.models.registry import ModelSpec, load_registry
from storyfi_lite.models.store import Store
from storyfi_lite.options import ChainOptions


def on_chain(setup: Setup, **changes: object) -> Setup:
    return replace(setup, chain=replace(setup.chain, **changes))  # type: ignore[arg-type]


@pytest.fixture
def net(tmp_path: Path) -> Iterator[DevNetwork]:
    with dev_network(tmp_path) as network:
        yield network


@pytest.fixture
def setup(net: DevNetwork) -> Setup:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Setup(ChainOptions(netuid=net.netuid, network=net.name, wallet="miner", hotkey="default"), port, None, None)


def statuses(checks: tuple[Check, ...]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_a_good_wallet_and_chain(setup: Setup, net: DevNetwork) -> None:
    assert doctor.check_wallet(setup).status == "ok"
    checks = doctor.check_chain(setup)
    assert statuses(checks) == {"chain": "ok", "registration": "ok", "clock": "ok"}
    assert "no endpoint published yet" in checks[1].detail


def test_a_missing_wallet_and_a_wrong_subnet(setup: Setup, net: DevNetwork) -> None:
    missing = on_chain(setup, wallet="nobody", wallet_path=net.wallet_path)
    check = doctor.check_wallet(missing)
    assert (check.status, check.fix.split()[:3]) == ("mend", ["btcli", "wallet", "create"])
    assert statuses(doctor.check_chain(missing)) == {"chain": "ok", "registration": "skip", "clock": "ok"}
    wrong = doctor.check_chain(on_chain(setup, netuid=7))
    assert statuses(wrong) == {"chain": "mend", "registration": "skip", "clock": "skip"}
    assert wrong[0].fix == "btcli subnets list"


def test_on_a_strangers_subnet_the_only_advice_is_to_find_the_right_one(setup: Setup, net: DevNetwork) -> None:
    assert net.server is not None
    net.server.chain.state.subnet_name = "Omron"
    checks = doctor.check_chain(setup)
    assert statuses(checks) == {"chain": "mend", "registration": "skip", "clock": "skip"}
    assert "calls itself 'Omron': that is not StoryFi" in checks[0].detail
    assert checks[0].fix.startswith("btcli subnets list") and "register" not in checks[0].fix
    known = doctor.check_chain(on_chain(setup, known_subnet="Omron"))
    assert statuses(known) == {"chain": "ok", "registration": "ok", "clock": "ok"} and "'Omron'" in known[0].detail


def test_an_unreachable_chain_is_told(setup: Setup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    chain, registration, clock = doctor.check_chain(on_chain(setup, network=f"ws://127.0.0.1:{port}"))
    assert (chain.status, registration.status, clock.status) == ("mend", "skip", "skip")
    assert "cannot be reached" in chain.detail and chain.fix


def test_a_clock_that_is_ahead_of_the_chain(setup: Setup, net: DevNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    assert net.server is not None
    monkeypatch.setattr(net.server.chain, "_now_s", lambda: time.time() - 60)
    clock = doctor.check_chain(setup)[2]
    assert (clock.status, clock.fix) == ("mend", "sudo timedatectl set-ntp true")
    assert "ahead of" in clock.detail


@pytest.mark.parametrize(("skew_s", "status"), [(-3.0, "mend"), (-1.0, "ok"), (6.0, "ok"), (60.0, "mend")])
def test_clock(skew_s: float, status: str) -> None:
    check = doctor.judge_clock(skew_s)
    assert (check.status, bool(check.fix)) == (status, status == "mend")


def test_a_free_port_leads_back(setup: Setup) -> None:
    assert doctor.check_port(setup).status == "ok"
    assert doctor.check_port(setup).status == "ok"  # it was closed again


def test_an_address_that_leads_elsewhere(setup: Setup) -> None:
    check = doctor.check_port(on_chain(replace(setup, external_ip="127.0.0.1"), network="test"))
    assert (check.status, "--axon.external_ip" in check.fix) == ("mend", True)
    with socket.create_server(("127.0.0.2", setup.port)) as stranger:
        threading.Thread(target=lambda: stranger.accept()[0].sendall(b"hello"), daemon=True).start()
        busy = doctor.check_port(setup)
    assert (busy.status, "ss -ltnp" in busy.fix) == ("mend", True)


def test_a_running_miner_on_the_port_is_fine(setup: Setup) -> None:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", setup.port), Health) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert doctor.check_port(setup).status == "ok"
        server.shutdown()


@pytest.mark.parametrize(
    ("gpus", "build", "fault", "has_key", "status", "fix"),
    [
        ((Gpu("NVIDIA H100", 80 << 30, 80 << 30),), True, "", False, "ok", ""),
        ((Gpu("NVIDIA H100", 80 << 30, 80 << 30),), False, "it lies idle:\n  CMAKE_ARGS=GGML_CUDA=on", True, "mend", "GGML_CUDA=on"),
        ((), False, "", False, "ok", ""),
        ((), None, "", False, "mend", "scripts/"),
        ((), None, "", True, "skip", ""),
    ],
)  # fmt: skip
def test_build(gpus: tuple[Gpu, ...], build: bool | None, fault: str, has_key: bool, status: str, fix: str) -> None:
    machine = Hardware(gpus, 1 << 34, 1 << 34, 8, 1 << 40, llama_gpu_build=build, fault=fault)
    check = doctor.judge_build(machine, has_key)
    assert check.status == status and fix in check.fix


def test_keys_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
    for name in API_KEYS.values():
        monkeypatch.delenv(name, raising=False)
    assert doctor.check_api_keys(setup).status == "skip"
    needed = doctor.check_api_keys(replace(setup, model="gemini-2.5-flash"))
    assert (needed.status, needed.fix) == ("mend", "export GEMINI_API_KEY=…")
    monkeypatch.setenv("GEMINI_API_KEY", "secret-value")
    check = doctor.check_api_keys(setup)
    assert check.status == "ok" and "GEMINI_API_KEY" in check.detail
    assert "secret-value" not in json.dumps(vars(check))


def test_a_key_file_must_be_the_owners_alone(monkeypatch: pytest.MonkeyPatch, setup: Setup, tmp_path: Path) -> None:
    for name in API_KEYS.values():
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "keys"
    path.write_text("GEMINI_API_KEY=secret-value\n")
    path.chmod(0o644)
    with_file = replace(setup, api_key_file=path)
    check = doctor.check_api_keys(with_file)
    assert (check.status, check.fix) == ("mend", f"chmod 600 {path}")
    assert doctor.check_api_keys(with_file).status != "ok"
    path.chmod(0o600)
    check = doctor.check_api_keys(with_file)
    assert (check.status, check.detail) == ("ok", "GEMINI_API_KEY set")
    assert doctor.check_api_keys(with_file).status == "ok"
    path.write_text("# none yet\n")
    assert doctor.check_api_keys(with_file).status == "mend"


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STORYFI_LITE_MODELS", str(tmp_path / "not" / "made"))
    assert doctor.check_disk().detail.endswith(f"free in {tmp_path}")
    monkeypatch.setattr(doctor, "FREE_DISK_BYTES", 2**60)
    assert doctor.check_disk().status == "mend"


def test_the_command_reports_all_and_exits_by_what_it_found(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("storyfi_lite.models.store")
    monkeypatch.setenv("GEMINI_API_KEY", "secret-value")
    args = ["doctor", "--network", setup.chain.network, "--axon.port", str(setup.port)]
    fine = CliRunner().invoke(cli, [*args, "--json"])
    report = json.loads(fine.stdout)
    assert (fine.exit_code, report["ok"]) == (0, True)
    names = ["wallet", "chain", "registration", "clock", "port", "llama.cpp", "model file", "API key", "disk"]
    assert [check["name"] for check in report["checks"]] == names
    broken = CliRunner().invoke(cli, [*args, "--netuid", "7"])
    assert broken.exit_code == 1
    assert "To mend: chain." in broken.stdout and "btcli subnets list" in broken.stdout
    assert "secret-value" not in fine.output + broken.output


def test_a_model_file_that_is_no_model_is_told(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYFI_LITE_MODELS", str(tmp_path / "models"))
    store, spec = Store(), load_registry().find("smollm2-135m")
    assert isinstance(spec, ModelSpec)
    path = store.path(spec, spec.file("Q4_1"))
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(spec.file("Q4_1").size_bytes)  # as large as it should be, and empty
    found = doctor.check_model(setup)
    assert found.status == "mend" and path.name in found.detail
