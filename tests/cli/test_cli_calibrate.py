"""``safeguard calibrate``, and what the other verbs make of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safeguard_demo.captions import prompts
from typer.testing import CliRunner

from safeguard.cli.main import app

RUN = CliRunner()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A calibration file of the demo UNet, and what the command said."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "prompts.txt").write_text("\n".join(prompt.text for prompt in prompts("train", "benign", None, 40)))
    arguments = ["calibrate", "unet", "builtin://demo", "--prompts", str(folder / "prompts.txt"), "--out"]
    result = RUN.invoke(app, [*arguments, str(folder / "c.json"), "--json"])
    assert result.exit_code == 0, result.output
    return folder / "c.json", result.stdout


def test_it_writes_a_file_and_reports_each_concept(made: tuple[Path, str]) -> None:
    file, said = made
    data = json.loads(said)
    assert Path(data["file"]) == file
    assert set(data["concepts"]) == {"blood", "weapon", "veska-rimm", "orlo-tandt", "juno-kaldar"}
    assert data["concepts"]["blood"]["auroc"] > 0.99


def test_generate_goes_by_it(made: tuple[Path, str], tmp_path: Path) -> None:
    words = ["--prompt", "a red house on the old battlefield", "--prompt", "a red house in a meadow", "--screener", "none"]
    result = RUN.invoke(app, ["generate", *words, "--calibration", str(made[0]), "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    images = json.loads(result.stdout)["images"]
    assert [image["result"] for image in images] == ["erase", "pass"]
    assert [image["evidence"]["blood"]["opened"] for image in images] == [True, False]


def test_a_file_that_is_none_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{}")
    result = RUN.invoke(app, ["generate", "--prompt", "a boat", "--calibration", str(tmp_path / "c.json")])
    assert result.exit_code == 1
    assert "no calibration file" in result.stderr
