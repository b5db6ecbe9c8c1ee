"""A model by any name: what is read from it, what a repository's listing means, and what the first pull pins. The hub's real client
against a loopback hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from storyfi_lite.cli import cli
from storyfi_lite.devchain.substrate import dev_network
from storyfi_lite.errors import BadInput, LiteError, Unavailable
from storyfi_lite.models.listing import HubFile, quant_of, read_listing
from storyfi_lite.models.names import ModelName, parse
from storyfi_lite.models.registry import HubSource, ModelSpec, load_registry, own_registry
from storyfi_lite.models.resolve import resolve
from storyfi_lite.models.store import Store
from storyfi_lite.options import ModelOptions
from storyfi_lite.protocol.messages import StoryRequest, parse_response
from storyfi_lite.validator.verify import verify
from tests.answers import ENGLISH, as_bytes, blueprint_request, header
from tests.conftest import REPO
from tests.hub_server import COMMIT, Hub
from tests.mine_process import start

NEWER = "beef" * 10


def storyfi_lite(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command, with the hub's address as an operator gives it."""
    return subprocess.run(
        [sys.executable, "-m", "storyfi_lite", *arguments],
        env={**os.environ, "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llama-3-8b", ModelName(key="llama-3-8b")),
        ("llama-3-8b:Q4_K_M", ModelName(key="llama-3-8b", quant="Q4_K_M")),
        ("a/B-GGUF", ModelName(repo="a/B-GGUF")),
        ("a/B-GGUF:Q4_K_M", ModelName(repo="a/B-GGUF", quant="Q4_K_M")),
        ("a/B-GGUF:Q4_K_M@v1.0", ModelName(repo="a/B-GGUF", quant="Q4_K_M", revision="v1.0")),
        ("a/B-GGUF@refs/pr/3", ModelName(repo="a/B-GGUF", revision="refs/pr/3")),
        ("a/B/Q8/b-Q8_0.gguf", ModelName(repo="a/B", file="Q8/b-Q8_0.gguf")),
        ("hf.co/a/B:Q8_0", ModelName(repo="a/B", quant="Q8_0")),
        ("hf://a/B", ModelName(repo="a/B")),
        ("https://huggingface.co/a/B", ModelName(repo="a/B")),
        ("https://huggingface.co/a/B/tree/main", ModelName(repo="a/B")),
        ("https://huggingface.co/a/B/blob/main/b.gguf", ModelName(repo="a/B", file="b.gguf")),
        ("https://huggingface.co/a/B/resolve/v2/x/b.gguf?download=true", ModelName(repo="a/B", file="x/b.gguf", revision="v2")),
        ("https://hf.co/a/B/tree/refs%2Fpr%2F1", ModelName(repo="a/B", revision="refs/pr/1")),
        ("./nowhere.gguf", ModelName(path=Path("nowhere.gguf"))),
        ("models/nowhere.gguf", ModelName(path=Path("models/nowhere.gguf"))),
        ("/data/a/b.gguf", ModelName(path=Path("/data/a/b.gguf"))),
    ],
)  # fmt: skip
def test_a_name_is_read_as_what_it_is(text: str, name: ModelName) -> None:
    assert parse(text) == name


def test_a_file_that_is_here_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a/b").mkdir(parents=True)
    Path("a/b/c.gguf").touch()
    assert parse("a/b/c.gguf") == ModelName(path=Path("a/b/c.gguf"))


@pytest.mark.parametrize("text", ["https://example.org/a/B", "https://huggingface.co/", "https://huggingface.co/a"])
def test_an_address_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"no address of the hub|names no model"):
        parse(text)


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Meta-Llama-3-8B-Instruct-Q4_K_M.gguf", "Q4_K_M"), ("gemma-7b-it.IQ4_XS.gguf", "IQ4_XS"), ("m-q8_0.gguf", "Q8_0"),
        ("M.i1-IQ3_XXS.gguf", "IQ3_XXS"), ("Q-UD-Q4_K_XL-00001-of-00003.gguf", "UD-Q4_K_XL"), ("gpt-oss-mxfp4.gguf", "MXFP4"),
        ("BF16/model-00001-of-00002.gguf", "BF16"), ("Qwen2.5-7B.gguf", "unknown"), ("m_Q4_K_M_v2.gguf", "Q4_K_M"),
        ("m-Q4_0_4_4.gguf", "Q4_0_4_4"), ("m-f16.gguf", "F16"),
    ],
)  # fmt: skip
def test_a_quantization_is_read_from_a_name(path: str, quant: str) -> None:
    assert quant_of(path) == quant


def test_a_listing_knows_sets_and_what_is_no_model() -> None:
    sizes = {
        "Q8_0/m-Q8_0-00001-of-00002.gguf": 50, "Q8_0/m-Q8_0-00002-of-00002.gguf": 40, "m-Q4_K_M.gguf": 45, "m-Q2_K.gguf": 20,
        "m-Q6_K-00002-of-00003.gguf": 9, "mmproj-m-F16.gguf": 3, "m-lora-F16.gguf": 1, "imatrix.dat": 1, "m.imatrix.gguf": 1,
        "other/m-Q2_K.gguf": 20, "README.md": 1, "m-Q5_K_M.gguf.part1of2": 1, "m-Q3_K_M.gguf": 0, "m-v2-Q4_K_M.gguf": 46,
        "explorador-Q3_K_S.gguf": 30,
    }  # fmt: skip
    source = HubSource(repo="a/b", revision="main")
    listing = read_listing([HubFile(path, size, None) for path, size in sizes.items()], source)
    found = {file.quant: ([part.path for part in file.parts], file.size_bytes) for file in listing.files}
    assert list(found) == ["Q2_K", "Q3_K_S", "Q4_K_M", "m-v2-Q4_K_M", "Q8_0"]  # coarse to fine
    assert found["Q8_0"] == (["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"], 90)
    said = dict(listing.others)
    assert "image encoder" in said["mmproj-m-F16.gguf"] and "LoRA" in said["m-lora-F16.gguf"]
    assert "importance matrix" in said["imatrix.dat"] and "importance matrix" in said["m.imatrix.gguf"]
    assert said["m-Q6_K-00002-of-00003.gguf"] == "a set of 3 parts that lacks 2"
    assert "stands for another" in said["other/m-Q2_K.gguf"] and "cut by hand" in said["m-Q5_K_M.gguf.part1of2"]
    assert said["m-Q3_K_M.gguf"] == "empty" and "README.md" not in said


# --- what the hub is asked, and what is pinned ---------------------------------------------------------------------------


def pinned_by(name: str, **options: Any) -> tuple[ModelSpec, ModelOptions]:
    resolved = resolve(ModelOptions(name=name, **options), load_registry())
    resolved.keep()
    spec = resolved.registry.find(resolved.options.name or "")
    assert isinstance(spec, ModelSpec)
    return spec, resolved.options


def listings(hub: Hub) -> int:
    return sum(path.startswith("/api/models/") for _, path, _ in hub.log)


def test_the_first_use_pins_the_commit_and_the_second_asks_nobody(repo: Hub, tiny: bytes) -> None:
    spec, options = pinned_by(REPO)
    assert (spec.key, spec.repository, spec.multiplier, spec.tier) == ("tiny-tales", REPO, 1.0, "own")
    assert [file.quant for file in spec.files] == ["Q4_K_M", "Q8_0"] and options.quant is None
    assert spec.licence == "mit"  # the header's, where the card is silent
    assert {file.hub.revision for file in spec.files if file.hub} == {COMMIT}
    assert all(part.sha256 and part.exact for file in spec.files for part in file.parts)
    repo.commit, repo.files, asked = NEWER, {"Tiny-Tales-Q4_K_M.gguf": tiny + b"new"}, len(repo.log)
    for name in (REPO, REPO.lower(), f"hf.co/{REPO}", f"https://huggingface.co/{REPO}/tree/main", "tiny-tales"):
        assert pinned_by(name)[0] == spec
    assert pinned_by(f"{REPO}:q8_0")[1].quant == "q8_0"
    assert pinned_by(f"{REPO}/Tiny-Tales-Q8_0.gguf")[1].quant == "Q8_0"
    assert len(repo.log) == asked


def test_another_revision_is_another_model_beside_it(repo: Hub) -> None:
    first, _ = pinned_by(REPO)
    repo.commit = NEWER
    second, _ = pinned_by(f"{REPO}@v1")
    assert second.key == f"tiny-tales-{NEWER[:8]}" and second.files[0].hub == HubSource(repo=REPO, revision=NEWER)
    asked = listings(repo)
    assert (
        pinned_by(REPO)[0] == first
        and pinned_by(f"{REPO}@v1")[0] == second
        and pinned_by(f"{REPO}@{NEWER}")[0] == second
    )
    assert listings(repo) == asked


def test_a_revision_alone_is_not_what_the_plain_name_means(repo: Hub) -> None:
    old, _ = pinned_by(f"{REPO}@v1")
    repo.commit = NEWER
    plain, _ = pinned_by(REPO)
    assert plain.files[0].hub != old.files[0].hub


def test_a_key_never_claims_a_shipped_model_s_name(repo: Hub) -> None:
    repo.repos = ("Me/SmolLM2-135M-Instruct-GGUF",)
    assert pinned_by("Me/SmolLM2-135M-Instruct-GGUF")[0].key == "me-smollm2-135m-instruct"


def test_a_shipped_model_s_repository_is_that_model(hub: Hub) -> None:
    spec, options = pinned_by("bartowski/SmolLM2-135M-Instruct-GGUF:Q8_0")
    assert (spec.key, options.quant, hub.log, own_registry().exists()) == ("smollm2-135m", "Q8_0", [], False)


def test_a_file_that_the_shipped_registry_lacks_comes_from_the_same_repository(repo: Hub, tiny: bytes) -> None:
    name = "bartowski/SmolLM2-135M-Instruct-GGUF"
    repo.repos, repo.files = (name,), {"SmolLM2-135M-Instruct-Q5_K_S.gguf": tiny}
    own, options = pinned_by(name, quant="Q5_K_S")
    assert (own.key, options.quant, own.tier) == ("bartowski-smollm2-135m-instruct", "Q5_K_S", "own")
    assert pinned_by(f"{name}:Q5_K_S")[0] == own
    assert pinned_by(name)[0].key == pinned_by(f"{name}:Q8_0")[0].key == "smollm2-135m"  # at its own multiplier still


@pytest.mark.parametrize(
    ("name", "quant", "says"),
    [
        (f"{REPO}:Q6_K", None, "has no Q6_K; there are Q4_K_M, Q8_0"),
        (f"{REPO}:Q4_K_M", "Q8_0", "name one quantization"),
        (f"{REPO}/mmproj-Tiny-F16.gguf", None, r"is an image encoder \(mmproj\), no model"),
        (f"{REPO}/nothing.gguf", None, "has no model file nothing.gguf; there are Tiny-Tales-Q4_K_M.gguf"),
        (f"{REPO}@v9", None, f"no revision {REPO}@v9"),
        ("Someone/Else", None, "no repository Someone/Else, or it is private: run `hf auth login`"),
        ("gema-7b", None, "did you mean gemma-7b"),
        ("a/../b", None, "no model is named|no name of a repository"),
    ],
)
def test_a_name_that_leads_nowhere_says_why(repo: Hub, name: str, quant: str | None, says: str) -> None:
    with pytest.raises(LiteError, match=says):
        pinned_by(name, quant=quant)
    assert not own_registry().exists()


def test_what_lies_beside_a_pinned_model_is_still_called_by_its_kind(repo: Hub) -> None:
    pinned_by(REPO)
    with pytest.raises(BadInput, match=r"is an image encoder \(mmproj\), no model"):
        pinned_by(f"{REPO}/mmproj-Tiny-F16.gguf")


def test_a_repository_without_gguf_files_says_where_to_look(repo: Hub) -> None:
    repo.files = {"model.safetensors": b"x", "mmproj-x.gguf": b"y"}
    with pytest.raises(BadInput, match=r"no GGUF file of a model: mmproj-x.gguf is an image(.|\n)*search the hub for"):
        pinned_by(REPO)


def test_a_gated_repository_names_the_page_and_the_command(repo: Hub) -> None:
    """Its listing is public, its files are not."""
    repo.gated = True
    with pytest.raises(Unavailable, match=f"accept its licence: do so at {repo.url}/{REPO}, then run `hf auth login`"):
        pinned_by(REPO)


def test_a_refused_token_is_named_and_never_shown(repo: Hub) -> None:
    repo.bad_token = True
    with pytest.raises(Unavailable, match=r"refuses your token.*hf auth login") as refused:
        pinned_by(REPO)
    assert "hf_a_secret" not in str(refused.value)


# --- the command ---------------------------------------------------------------------------------------------------------


def test_pull_lists_takes_the_best_and_says_the_same_again(repo: Hub, tmp_path: Path) -> None:
    first = storyfi_lite(repo, "pull", REPO, "--json")
    assert first.returncode == 0, first.stderr
    assert "Q4_K_M        0.00 GB" in first.stderr and "mmproj-Tiny-F16.gguf: an image encoder" in first.stderr
    assert f"{REPO} is called tiny-tales here, commit {COMMIT[:12]}, licence mit" in first.stderr
    facts = json.loads(first.stdout)
    assert (facts["quant"], facts["complete"]) == ("Q8_0", True)
    assert Path(facts["path"]) == tmp_path / "models" / "tiny-tales" / "Tiny-Tales-Q8_0.gguf"
    repo.commit = NEWER
    assert f"/resolve/{COMMIT}/" in str([path for _, path, _ in repo.log])
    again = storyfi_lite(repo, "pull", f"hf.co/{REPO}:Q8_0", HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout.strip()) == (0, facts["path"])


def test_a_dry_run_and_place_pin_nothing(repo: Hub) -> None:
    assert storyfi_lite(repo, "pull", REPO, "--dry-run").returncode == 0
    placed = storyfi_lite(repo, "place", "--model.name", f"{REPO}:Q4_K_M")
    assert placed.returncode == 0 and "tiny-tales Q4_K_M" in placed.stdout, placed.stderr
    assert not own_registry().exists()


def test_an_answer_cannot_send_a_validator_to_a_repository(repo: Hub, tmp_path: Path) -> None:
    """The model that an answer claims is a stranger's word: a name of the registry, or nothing."""
    claim = tmp_path / "response.json"
    claim.write_bytes(as_bytes(ENGLISH, model_name=REPO, proof=header(blueprint_request("a heist"))))
    done = storyfi_lite(repo, "prove", str(claim), "--text", "a heist")
    assert done.returncode == 2 and f"no model is named '{REPO}'" in done.stderr, done.stderr
    assert not repo.log


@pytest.mark.parametrize(
    "words",
    ["pull", "models", "place --model.name", "generate x --model.name", "story x --model.name", "bench --model.name",
     "calibrate --model.name", "mine --network dev --axon.port 18991 --model.name"],
)  # fmt: skip
def test_every_command_takes_every_name(repo: Hub, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them asks the hub for a repository that it does not know, and looks for a file that is not there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, says in (("Nobody/Nothing", "the hub has no repository Nobody/Nothing"), ("./none.gguf", "there is no file none.gguf")):  # fmt: skip
        done = CliRunner().invoke(cli, [*words.split(), name])
        assert isinstance(done.exception, LiteError) and says in str(done.exception), done.output


def test_what_a_hub_says_cannot_lead_out_of_the_store_or_fool_a_terminal(
    repo: Hub, tiny: bytes, tmp_path: Path
) -> None:
    repo.licence = "mit\x1b[2J" + "x" * 99
    repo.files = {
        "Tiny-Q4_K_M.gguf": tiny,
        "../../Tiny-Q5_K_M.gguf": tiny,
        "a\\b-Q8_0.gguf": tiny,
        "a\x1b[2J-Q6_K.gguf": tiny,
    }
    spec, _ = pinned_by(REPO)
    assert [file.quant for file in spec.files] == ["Q4_K_M"] and spec.licence == ("mit?[2J" + "x" * 99)[:60]
    assert Store().path(spec, spec.files[0]) == tmp_path / "models" / "tiny-tales" / "Tiny-Q4_K_M.gguf"


def test_the_shell_completes_repositories_that_are_known(repo: Hub) -> None:
    pinned_by(REPO)
    line = "storyfi-lite mine --model.name Someone/"
    environment = {"_STORYFI_LITE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "3"}
    assert f"plain,{REPO}" in CliRunner().invoke(cli, env=environment, prog_name="storyfi-lite").output


# --- a stranger's three commands -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pull_mine_rm_by_a_repository_s_name(
    repo: Hub, small_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small model's weights under another name: nothing pins them but the hub's word."""
    repo.repos = ("Writer/Small-Tales-GGUF",)
    repo.files = {"Small-Tales-Q4_1.gguf": small_model_path.read_bytes().replace(b"Smollm2 135M", b"Small Tales!", 1)}
    name = "Writer/Small-Tales-GGUF:Q4_1"
    pulled = storyfi_lite(repo, "pull", name)
    assert pulled.returncode == 0 and Path(pulled.stdout.strip()).is_file(), pulled.stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the miner needs no network any more
    with dev_network(tmp_path / "chain") as net:
        miner = start(net, tmp_path, ["--model.name", name, "--threads", "1"])
        try:
            assert "model: small-tales" in miner.wait_until_ready().log
        finally:
            miner.stop()
    written = storyfi_lite(
        repo, "generate", "a heist", "--max-tokens", "600", "--model.name", name, "--json", "--threads", "1"
    )
    request = StoryRequest(task_type="blueprint", user_input="a heist", max_tokens=600)
    answer = parse_response(written.stdout.encode())
    assert answer.model_name == "small-tales" and verify(request, answer).valid
    gone = storyfi_lite(repo, "rm", name, "--yes")
    assert gone.returncode == 0 and not Path(pulled.stdout.strip()).exists(), gone.stderr
