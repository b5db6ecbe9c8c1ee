"""The user's own models.yaml: laid over the shipped one, changed line by line, refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyfi_lite.cli import cli
from storyfi_lite.errors import ConfigError, RegistryError
from storyfi_lite.models import own_registry
from storyfi_lite.models.registry import GGUFFile, HubSource, ModelSpec, Part, load_registry
from tests.test_store import ARCHITECTURE

SHA256 = "0123456789abcdef" * 4


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STORYFI_LITE_REGISTRY", str(tmp_path / "config" / "models.yaml"))
    return tmp_path / "config" / "models.yaml"


def spec(key: str = "tales", **changes: object) -> ModelSpec:
    hub = HubSource(repo="a/Tales-GGUF", revision="c0ffee" * 6 + "c0ff")
    halves = tuple(Part(path=f"x/t-0000{n}-of-00002.gguf", size_bytes=n, exact=True, sha256=SHA256) for n in (1, 2))
    files = (
        GGUFFile(quant="Q4_K_M", parts=(Part(path="t-Q4_K_M.gguf", size_bytes=1, exact=True, sha256=SHA256),), hub=hub),
        GGUFFile(quant="Q8_0", parts=halves, hub=hub),
    )
    fields = {
        "repository": "a/Tales-GGUF",
        "aliases": (),
        "tier": "own",
        "multiplier": 1.0,
        "licence": "mit",
        "files": files,
    }
    return ModelSpec(key=key, architecture=ARCHITECTURE, **{**fields, **changes})  # type: ignore[arg-type]


def test_a_kept_model_is_read_back_as_it_was_beside_the_shipped_ones(own: Path) -> None:
    shipped = load_registry()
    mine = spec()
    at_home = GGUFFile(quant="Q6_K", parts=mine.files[0].parts, hub=None, directory="/home/我/models")
    for one in (mine, spec("mixed", repository="m", files=(at_home, mine.files[1]))):
        own_registry.keep(one)
        assert load_registry().find(one.key) == one
    assert set(load_registry().keys) == {*shipped.keys, "tales", "mixed"}
    assert load_registry().find("a/tales-gguf") == mine
    own_registry.forget("tales")
    own_registry.forget("mixed")
    assert load_registry() == shipped and "Upgrades never touch this file" in own.read_text()


def test_a_model_of_the_same_key_takes_the_shipped_one_s_place(own: Path) -> None:
    own_registry.keep(spec("gemma-7b"))
    assert load_registry().find("gemma-7b") == spec("gemma-7b") and load_registry().get("google/gemma-7b-it") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# mine\n",
        "local:\n",
        "local: {}\napi: {}\n",
        "api: {}",
        "# mine\nlocal:\n    # before\n    old: &old\n        {OLD}  # the old one\n\n    # behind\napi: {}  # none\n",
        "local: {old: {OLD}}\n",
        "{local: {old: {OLD}}}",
    ],
)
def test_what_the_user_wrote_stays(own: Path, text: str) -> None:
    import yaml

    data = yaml.safe_dump(own_registry.as_data(spec("old", repository="a/Old")), default_flow_style=True, width=9999)
    text = text.replace("{OLD}", data.strip())
    own.parent.mkdir()
    own.write_text(text)
    before = load_registry()
    own_registry.keep(spec())
    assert load_registry() == before.with_model(spec())
    changed = spec(licence="apache-2.0")
    own_registry.keep(changed)
    assert load_registry().find("tales") == changed
    own_registry.forget("tales")
    assert load_registry() == before
    if "{old" not in text:  # a file of one line is written anew
        assert all(line in own.read_text().splitlines() for line in text.splitlines() if "#" in line)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("local:\n  tales: [", 2, "expected the node content"),
        ("local:\n  tales:\n    licence: mit\n    multiplyer: 2\n", 4, "multiplyer is not a key"),
        ("locals: {}\n", 1, "locals is not a key"),
        ("local:\n  tales: {}\n  tales: {}\n", 3, "tales stands twice"),
        ("[]", 1, "must hold the two mappings"),
    ],
)
def test_a_broken_file_is_named_with_its_line(own: Path, text: str, line: int, says: str) -> None:
    own.parent.mkdir()
    own.write_text(text)
    for use in (load_registry, lambda: own_registry.keep(spec())):
        with pytest.raises(RegistryError, match=f"{own}, line {line}: .*{says}"):
            use()
    assert own.read_text() == text


def test_a_name_of_a_shipped_model_is_refused_with_its_line(own: Path) -> None:
    own_registry.keep(spec(aliases=("mistral-7b",)))
    line = own.read_text().splitlines().index("  tales:") + 2
    with pytest.raises(RegistryError, match=f"{own}, line {line}: the name mistral-7b is a shipped model's"):
        load_registry()


def test_a_place_that_cannot_be_written_names_the_variable(own: Path) -> None:
    own.parent.write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot write .*STORYFI_LITE_REGISTRY=FILE puts it elsewhere"):
        own_registry.keep(spec())


def test_another_registry_is_named_before_the_command(tmp_path: Path, own: Path) -> None:
    own_registry.keep(spec())
    other = own.rename(tmp_path / "other.yaml")
    listed = CliRunner().invoke(cli, ["--registry", str(other), "models", "tales", "--json"])
    assert json.loads(listed.stdout)["repository"] == "a/Tales-GGUF"


def test_a_registry_that_is_not_there_is_said_not_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = CliRunner().invoke(cli, ["--registry", str(tmp_path / "modles.yaml"), "models", "--help"])
    assert listed.exit_code == 0 and "modles.yaml is not there yet" in caplog.text
