"""models.yaml: the shipped one is right, and a wrong one is refused with the line to mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from storyfi_lite.errors import BadInput, RegistryError
from storyfi_lite.models.registry import ApiModel, ModelSpec, load_registry

TEXT = (Path(__file__).parent.parent / "models.yaml").read_text()
MULTIPLIERS = {
    "llama-3-70b": 1.5, "mixtral-8x7b": 1.3, "qwen-72b": 1.4, "llama-3-8b": 1.0, "mistral-7b": 1.0, "yi-34b": 1.2,
    "phi-3-medium": 0.8, "gemma-7b": 0.9, "smollm2-135m": 0.5, "gemini-2.5-flash": 0.5, "gpt-4-turbo": 0.5,
    "gemini-3.5-flash-lite": 0.5, "gpt-6-luna": 0.5,
}  # fmt: skip


def test_the_shipped_registry_holds_the_subnets_table() -> None:
    registry = load_registry()
    local = {model.key: model.multiplier for model in registry.local}
    assert local | {model.key: model.multiplier for model in registry.api} == MULTIPLIERS
    for spec in registry.local:
        sizes = [file.size_bytes for file in spec.files]
        assert sizes == sorted(sizes), spec.key  # coarse to fine, as the placement reads them
        assert all(file.hub or file.package for file in spec.files)
        for file in spec.files:
            assert len(file.parts) == 1 or all("-of-" in part.path for part in file.parts)


@pytest.mark.parametrize("name", ["llama-3-70b", "Llama-3-70B-Instruct", "meta-llama/Meta-Llama-3-70B-Instruct"])
def test_a_model_is_found_by_key_alias_and_repository(name: str) -> None:
    found = load_registry().find(name)
    assert isinstance(found, ModelSpec) and found.key == "llama-3-70b"


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(BadInput, match="did you mean gemma-7b"):
        load_registry().find("gema-7b")
    assert isinstance(load_registry().find("gpt-4-turbo"), ApiModel)
    with pytest.raises(BadInput, match="there are Q2_K, Q3_K_M"):
        spec = load_registry().find("gemma-7b")
        assert isinstance(spec, ModelSpec)
        spec.file("Q1")


def test_a_provider_s_default_is_a_model_that_its_vendor_does_not_end() -> None:
    registry = load_registry()
    ended = {model.key: model.successor for model in registry.api if model.ends}
    assert ended == {"gemini-2.5-flash": "gemini-3.5-flash-lite", "gpt-4-turbo": "gpt-6-luna"}
    for provider in ("gemini", "openai"):
        assert registry.default_api(provider).ends is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("    multiplier: 1.5", "    multiplyer: 1.5", "multiplyer is not a key"),
        ("    multiplier: 1.3", "    multiplier: -1.3", "multiplier: Input should be greater than 0"),
        ("    multiplier: 1.4", "    multiplier: lots", "multiplier: Input should be a valid number"),
        ("    tier: 1", "    tier: 9", "tier: Input should be 1, 2, 3, 'cpu' or 'own'"),
        ("  yi-34b:", "  qwen-72b:", "qwen-72b stands twice"),
        ("aliases: [yi-34b-chat]", "aliases: [gemma-7b]", "the name gemma-7b stands for two models"),
        ("size_bytes: 4920734272", "size_bytes: 0", "size_bytes: Input should be greater than 0"),
        ("sha256: 8ba9baf3", "sha256: xxxx8ba9baf3", "sha256: String should match pattern"),
        ("block_count: 80", "block_count: many", "block_count: Input should be a valid integer"),
        ("{provider: gemini,", "{provider: acme,", "provider: Input should be 'gemini' or 'openai'"),
        ("    repository: google/gemma-7b-it\n", "", "repository: Field required"),
        ("    hub: {repo: mradermacher/gemma-7b-it-GGUF, revision: main}", "", "neither a hub nor a package"),
        ("revision: 60662f1eb60bb4843d98e2bac32f9d5b407084db", "revision: 60662f1", "revision: String should match"),
        ("path: gemma-7b-it.Q3_K_M.gguf", "path: gemma-7b-it.Q2_K.gguf", "two of its files are named gemma-7b-it.Q2_K"),
        ("  yi-34b:", "  ../yi-34b:", "key: String should match pattern"),
        ("  yi-34b:", "  ? [yi-34b]\n  :", "a key must be a plain name"),
        ("licence: mit", "licence: 2024-01-01", "2024-01-01 must be in quotes"),
        (', ends: "2026-10-23", successor: gpt-6-luna', ', ends: "2026-10-23"', "needs both ends and successor"),
        ('ends: "2026-10-23"', "ends: 2026-10-23", "2026-10-23 must be in quotes"),
        ('ends: "2026-10-23"', 'ends: "soon"', "ends: Input should be a valid date"),
        ("    multiplier: 1.3", "    multiplier: .inf", "multiplier: Input should be a finite number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in TEXT
    path = tmp_path / "models.yaml"
    path.write_text(TEXT.replace(old, new, 1))
    line = TEXT[: TEXT.index(old)].count("\n") + 1
    with pytest.raises(RegistryError) as refused:
        load_registry(path)
    message = str(refused.value)
    assert says in message, message
    named = int(message.split("line ")[1].split(":")[0])
    if new and "two" not in says:  # such an error is about two lines
        assert abs(named - line) <= 1, (message, line)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("successor: gpt-6-luna", "successor: gpt-7", "gpt-7, the successor of gpt-4-turbo, is no API model"),
        ("  gpt-6-luna: {provider: openai", "  gpt-6-luna: {provider: gemini", "no model of openai is without an end"),
    ],
)
def test_api_models_that_end_leave_a_default(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in TEXT
    path = tmp_path / "models.yaml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(RegistryError, match=says):
        load_registry(path)


@pytest.mark.parametrize(
    "text",
    [b"", b"local: [", b"[]", b"local: {}\n", b"local: {}\napi: {}\nmore: 1\n", b"a: \xff", b"a: \x07", b"a: &a {x: *a}",
     b"[" * 500],
)  # fmt: skip
def test_a_file_that_is_no_registry_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "models.yaml"
    path.write_bytes(text)
    with pytest.raises(RegistryError, match=str(path)):
        load_registry(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot read"):
        load_registry(tmp_path / "nothing.yaml")
