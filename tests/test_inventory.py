"""What is here: `list`, `rm`, `models add` and `models NAME`, on files that the commands themselves fetched from a loopback hub."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from storyfi_lite.cli import cli
from storyfi_lite.errors import BadInput, Unavailable
from storyfi_lite.models.registry import ModelSpec, load_registry, own_registry
from storyfi_lite.models.store import Store
from tests.conftest import REPO
from tests.hub_server import COMMIT, Hub
from tests.test_names import NEWER
from tests.test_opening import machine


def run(*arguments: str, typed: str | None = None) -> Result:
    done = CliRunner().invoke(cli, arguments, input=typed)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def here(*flags: str) -> dict[tuple[str, str | None], dict[str, Any]]:
    """What `list` says, by name and quantization."""
    found = json.loads(run("list", "--json", *flags).stdout)
    assert found["free_bytes"] > 0
    return {(one["model"], one["quant"]): one for one in found["files"]}


@pytest.fixture
def pulled(repo: Hub) -> Hub:
    run("pull", f"{REPO}:Q8_0")
    run("pull", f"{REPO}:Q4_K_M")
    return repo


def test_list_shows_whole_partial_and_left_over_files(pulled: Hub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    pulled.cut_after_bytes = [100_000] + [0] * 20
    (models / "tiny-tales" / "Tiny-Tales-Q4_K_M.gguf").unlink()
    with pytest.raises(Unavailable):
        run("pull", f"{REPO}:Q4_K_M")
    (models / "forgotten").mkdir()
    (models / "forgotten" / "old.gguf").write_bytes(b"x" * 7)
    found = here()
    assert {name: one["state"] for name, one in found.items()} == {
        ("tiny-tales", "Q8_0"): "whole", ("tiny-tales", "Q4_K_M"): "partial", ("forgotten", None): "left over",
    }  # fmt: skip
    assert found["tiny-tales", "Q8_0"]["path"] == str(models / "tiny-tales" / "Tiny-Tales-Q8_0.gguf")
    assert found["tiny-tales", "Q8_0"]["size_bytes"] == (models / "tiny-tales" / "Tiny-Tales-Q8_0.gguf").stat().st_size
    said = run("list").stdout
    assert "left over" in said and "never" in said and f"in {models}, " in said and "free there" in said
    assert run("rm", "forgotten", "--yes").exit_code == 0 and not (models / "forgotten").exists()


def test_an_empty_store_is_told_as_such(repo: Hub) -> None:
    assert "0 MB in" in run("list").stdout


def test_rm_asks_and_deletes_what_was_named(pulled: Hub, tmp_path: Path) -> None:
    directory = tmp_path / "models" / "tiny-tales"
    refused = run("rm", REPO, typed="n\n")
    assert refused.exit_code == 0 and "Tiny-Tales-Q8_0.gguf" in refused.stderr and len(here()) == 2
    assert "deleted" in run("rm", f"hf.co/{REPO}:Q8_0", typed="y\n").stdout
    assert list(here()) == [("tiny-tales", "Q4_K_M")] and load_registry().get(REPO)
    last = run("rm", "tiny-tales", "--yes")
    assert "tiny-tales is taken out of" in last.stderr and not directory.exists() and not load_registry().get(REPO)
    pulled.commit = NEWER
    assert NEWER[:12] in run("pull", REPO, "--dry-run").stderr


def test_rm_of_what_was_not_downloaded_is_refused(pulled: Hub, tmp_path: Path, tiny: bytes) -> None:
    mine = tmp_path / "mine-Q4_K_M.gguf"
    mine.write_bytes(tiny)
    run("models", "add", "mine", str(mine))
    assert here()["mine", "Q4_K_M"]["state"] == "yours"
    for name, says in (("mine", "take mine out of"), (str(mine), "leaves it to you"), ("llama-3-8b", "nothing of llama-3-8b"), ("x/y", "nothing of x/y")):  # fmt: skip
        with pytest.raises(BadInput, match=says):
            run("rm", name, "--yes")
    with pytest.raises(BadInput, match="say what"):
        run("rm")
    assert mine.exists() and len(here()) == 3


def test_unused_counts_from_the_last_use_or_else_the_arrival(pulled: Hub) -> None:
    spec = load_registry().find(REPO)
    assert isinstance(spec, ModelSpec)
    store, old = Store(), time.time() - 40 * 86_400
    for file in spec.files:
        os.utime(store.path(spec, file), (old, old))
    store.mark_used(spec, spec.file("Q4_K_M"))
    assert "nothing to delete" in run("rm", "--unused", "41d", "--yes").stdout
    assert here()["tiny-tales", "Q4_K_M"]["used_at"] > time.time() - 60
    run("rm", "--unused", "30d", "--yes")
    assert list(here()) == [("tiny-tales", "Q4_K_M")]
    assert run("rm", "--unused", "soon", "--yes").exit_code == 2


def test_rm_waits_for_no_download_and_breaks_none(pulled: Hub, tmp_path: Path) -> None:
    import fcntl

    lock = tmp_path / "models" / "tiny-tales" / ".partial" / "Tiny-Tales-Q8_0.gguf.lock"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="another process is fetching Tiny-Tales-Q8_0"):
            run("rm", REPO, "--yes")
    assert len(here()) == 2


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known speed, so that nothing is measured."""
    monkeypatch.setattr("storyfi_lite.machine.hardware.probe", machine)


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_shows_one_model_file_by_file(pulled: Hub, described: None) -> None:
    said = run("models", REPO).stdout
    assert "Q4_K_M" in said and "Tiny-Tales-Q8_0.gguf" in said
    assert "multiplier 1, the network's table does not know it; a validator of ours pays 0.5 unproven, 1 proven" in said
    pulled.repos = ()
    fresh = json.loads(run("models", "Other/Tiny-GGUF", "--json").stdout)
    assert [file["quant"] for file in fresh["files"]] == ["Q4_K_M", "Q8_0"] and not own_registry().read_text().count(
        "Other"
    )
    assert {"path": "mmproj-Tiny-F16.gguf", "is": "an image encoder (mmproj)"} in fresh["others"]


def test_models_shows_size_and_path_of_what_is_here(pulled: Hub, described: None, tmp_path: Path) -> None:
    rows = {row["model"]: row for row in json.loads(run("models", "--json").stdout)}
    assert [file["quant"] for file in rows["tiny-tales"]["here"]] == ["Q4_K_M", "Q8_0"]
    path = tmp_path / "models" / "tiny-tales" / "Tiny-Tales-Q8_0.gguf"
    assert rows["tiny-tales"]["here"][1] == {"quant": "Q8_0", "size_bytes": path.stat().st_size, "path": str(path)}
    assert f"tiny-tales Q8_0: {path}" in run("models").stdout


def test_a_file_of_one_s_own_is_added_by_its_header_and_stays_where_it_is(
    tmp_path: Path, hub: Hub, tiny: bytes
) -> None:
    from storyfi_lite.opening.local import SILENT, LocalOpener
    from storyfi_lite.options import ModelOptions

    paths = [tmp_path / "灯塔" / name for name in ("tune-Q4_K_M.gguf", "tune.gguf")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(tiny)
    said = run("models", "add", "my-tune", *map(str, paths))
    assert said.stdout.strip() == f"my-tune is kept in {own_registry()}"
    for word in ("architecture llama, 2 layers", "vocabulary llama, 286 tokens", "chat template of ", "licence mit", "files Q4_K_M, F32", "pays 0.5"):  # fmt: skip
        assert word in said.stderr
    found = LocalOpener(SILENT).find(ModelOptions(name="my-tune", quant="Q4_K_M"))
    assert found.path == paths[0].resolve() and not (paths[0].parent / ".partial").exists()
    paths[0].write_bytes(tiny[:-1] + b"!")
    with pytest.raises(BadInput, match=r"is gone, or not what it was\n  storyfi-lite models add my-tune"):
        LocalOpener(SILENT).find(ModelOptions(name="my-tune", quant="Q4_K_M"))
    assert paths[0].exists()


def test_a_repository_is_added_under_a_name_of_one_s_own(repo: Hub) -> None:
    run("models", "add", "tales", f"{REPO}@v1")
    spec = load_registry().find("tales")
    assert isinstance(spec, ModelSpec) and spec.files[0].hub and spec.files[0].hub.revision == COMMIT
    assert Path(run("pull", f"{REPO}@v1", "--quant", "Q4_K_M").stdout.strip()).parent.name == "tales"
    with pytest.raises(BadInput, match="is known as tales"):
        run("models", "add", "again", f"{REPO}@v1")


@pytest.mark.parametrize(
    ("name", "sources", "says"),
    [
        ("llama-3-8b", ["a-Q4_0.gguf"], "is a shipped model's name"),
        ("Mistral 7", ["a-Q4_0.gguf"], "is no name"),
        ("x", ["nowhere.gguf"], "there is no file"),
        ("x", ["a-Q4_0.gguf", "b-Q4_0.gguf"], "are both Q4_0"),
        ("x", ["a-Q4_0.gguf", "other-Q8_0.gguf"], "is of another model"),
        ("x", ["a-Q4_0.gguf", REPO], "from one repository"),
        ("x", [f"{REPO}:Q8_0"], "give the repository alone"),
        ("x", ["bad-\udcff.gguf"], "names of text"),
    ],
)
def test_what_cannot_be_added_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, name: str, sources: list[str], says: str, tiny: bytes
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for file in ("a-Q4_0.gguf", "b-Q4_0.gguf", "bad-\udcff.gguf"):
        Path(file).write_bytes(tiny)
    one_layer = b"llama.block_count\x04\x00\x00\x00\x01"
    Path("other-Q8_0.gguf").write_bytes(tiny.replace(one_layer[:-1] + b"\x02", one_layer))
    with pytest.raises(BadInput, match=says):
        run("models", "add", name, *sources)
    assert not own_registry().exists()


def test_doctor_finds_a_pulled_repository_and_says_how_to_pull_another(pulled: Hub) -> None:
    from storyfi_lite import doctor
    from storyfi_lite.options import ChainOptions

    chain = ChainOptions(netuid=1, network="dev", wallet="w", hotkey="h")
    setup = doctor.Setup(chain=chain, port=1, external_ip=None, model=f"{REPO}:Q8_0")
    assert doctor.check_model(setup).status == "ok"
    missing = doctor.check_model(replace(setup, model="Other/Repo"))
    assert (missing.status, missing.fix) == ("mend", "storyfi-lite pull Other/Repo")
