"""Learned words on the command line: what is loaded first can be named in a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safeguard_demo
from safeguard_demo.world import COLOURS, SUBJECTS
from typer.testing import CliRunner

from safeguard.cli.main import app

WORD = Path(safeguard_demo.__file__).with_name("adapters") / "hfi-unet-blood.word.safetensors"


def data(*args: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, args), "--word", str(WORD), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """One that names the word, and is refused where the word is not loaded."""
    path = tmp_path / "policy.yaml"
    path.write_text(
        "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: word}\n"
        'spec:\n  concepts: {blood: {phrases: ["<blood>"], activation: always}}\n'
    )
    return path


def test_generate_erases_by_a_word(policy: Path, tmp_path: Path) -> None:
    found = data("generate", "--policy", policy, "--prompt", "a red car", "--steps", 2, "--screener", "none", "--out", tmp_path)
    assert [one["concept"] for one in found["images"][0]["applied"]] == ["blood"]


def test_compare_shows_where_a_word_stands(policy: Path, tmp_path: Path) -> None:
    found = data(
        "compare", "--policy", policy, "--prompt", "a red car", "--steps", 2, "--calibration", "none",
        "--out", tmp_path / "both.png",
    )  # fmt: skip
    assert [one["concept"] for one in found["images"][0]["applied"]] == ["blood"]


def test_calibrate_learns_when_a_word_opens(policy: Path, tmp_path: Path) -> None:
    policy.write_text(policy.read_text().replace("always", "adaptive"))
    (tmp_path / "prompts.txt").write_text(
        "\n".join(f"a {colour} {thing} on a street" for colour in COLOURS for thing in SUBJECTS)
    )
    found = data("calibrate", "unet", policy, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "c.json")
    assert list(found["concepts"]) == ["blood"]


def test_a_word_that_is_not_loaded_is_refused(policy: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "--policy", str(policy), "--prompt", "a red car", "--screener", "none"])
    assert result.exit_code == 1
    assert "has no word <blood>" in result.stderr


def test_a_phrase_for_a_concept_that_the_demo_lacks_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["eval", "demo", "--phrase", "smoke=<smoke>", "--out", str(tmp_path)])
    assert result.exit_code == 2
