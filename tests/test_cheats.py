"""Every way of cheating that scripts/cheats.py knows, judged as the validator's loop judges: what catches it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storyfi_lite.models.digest import file_sha256

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

pytestmark = pytest.mark.slow

# The proof's word on the answer, the multiplier where one replay decides, and what the row says.
EXPECTED = {
    "honest": ("proven", 0.5, ""),
    "impostor": ("refuted", 0.0, "evidence -"),
    "inflated": ("refuted", 0.0, "names a file of smollm2-135m"),
    "pasted": ("refuted", 0.0, ""),
    "tuned": ("no proof", 0.5, ""),
    "elsewhere": ("no proof", 0.5, ""),
    "own-seed": ("refuted", 0.0, "evidence -"),
    "own-prompt": ("refuted", 0.0, "evidence -"),
    "edited": ("refuted", 0.0, "do not spell the text"),
    "edited-ids": ("refuted", 0.0, ""),
    "truncated": ("no proof", 0.5, "missing"),
    "injected": ("no proof", 0.5, ""),
    "unproven": ("no proof", 0.5, ""),
    "stale": ("refuted", 0.0, "near-copy"),
    "copycat": ("no proof", 0.5, "near-copy"),
    "junk": ("no proof", 0.5, "missing"),
    "huge": ("no proof", 0.0, "more than 4,000,000 bytes"),
    "deep": ("no proof", 0.0, "not an answer"),
    "nan": ("no proof", 0.0, "NaN is not JSON"),
    "marks": ("no proof", 0.5, "at most 20,000 are read"),
}
WORTH_NOTHING = ("stale", "copycat", "huge", "deep", "nan", "marks")


@pytest.fixture(scope="module")
def court(small_model_path: Path) -> Iterator[Any]:
    import cheats

    found = cheats.Court(small_model_path, n_threads=1)
    yield found
    found.close()


def test_every_kind_is_judged_here() -> None:
    import cheats

    assert set(EXPECTED) == {"honest", "impostor", "copycat", *cheats.KINDS, *cheats.RAW}


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_catches_it(court: Any, kind: str) -> None:
    row = court.judge(kind).row
    proof, multiplier, says = EXPECTED[kind]
    assert (row.proof, row.multiplier) == (proof, multiplier), row
    assert says in row.problem
    assert (row.base == 0) == (kind in WORTH_NOTHING)
    if kind == "junk":
        assert row.base <= 20


def test_prove_names_the_file_that_wrote_a_refuted_answer(
    small_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files lie in the store; Q3_K_M wrote what claims Q4_1."""
    import bench_proof
    from click.testing import CliRunner

    from storyfi_lite.cli import cli

    store = tmp_path / "smollm2-135m"
    store.mkdir()
    (store / small_model_path.name).symlink_to(small_model_path)
    coarse = bench_proof.requantized(small_model_path, "Q3_K_M", tmp_path)
    coarse = coarse.rename(store / "SmolLM2-135M-Instruct-Q3_K_M.gguf")
    monkeypatch.setenv("STORYFI_LITE_MODELS", str(tmp_path))
    answer = CliRunner().invoke(cli, ["generate", "a heist", "--json", "--model.path", str(coarse)]).stdout
    lie = answer.replace(file_sha256(coarse), file_sha256(small_model_path))
    assert lie != answer
    (tmp_path / "lie.json").write_text(lie)
    said = CliRunner().invoke(cli, ["prove", str(tmp_path / "lie.json"), "--model.path", str(small_model_path)])
    assert said.exit_code == 1 and "REFUTED: written by Q3_K_M of smollm2-135m" in said.stdout
