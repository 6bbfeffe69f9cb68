"""``safeguard train``: what it writes, and what it says where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safeguard.cli.main import app
from safeguard.erasing import Adapter

RUN = CliRunner()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An adapter of the demo UNet for one concept, from two prompts of each kind, and what the command said."""
    file = tmp_path_factory.mktemp("trained") / "a.safetensors"
    result = RUN.invoke(app, ["train", "gie", "--concept", "blood", "--n", "2", "--out", str(file), "--json"])
    assert result.exit_code == 0, result.output
    return file, result.stdout


def test_it_writes_an_adapter_of_the_pipeline_and_reports(made: tuple[Path, str]) -> None:
    file, said = made
    adapter = Adapter.load(file, "gie")
    assert json.loads(said)["digest"] == adapter.digest
    assert adapter.fingerprint.pipeline == "StableDiffusionPipeline"
    assert adapter.settings["concepts"] == {"blood": ["blood"]}
    assert adapter.settings["constant"] in adapter.settings["scales"]
    assert adapter.report["tokens"] == 6  # two prompts of three kinds, one word


def test_a_policy_may_name_what_it_wrote(made: tuple[Path, str], tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    concept = f"{{phrases: [blood], eraser: gie, activation: always, params: {{adapter: {made[0]}}}}}"
    policy.write_text(
        "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: p}\n" + f"spec: {{concepts: {{blood: {concept}}}}}\n"
    )
    words = ["--prompt", "a red car with blood", "--policy", str(policy), "--screener", "none", "--calibration", "none"]
    result = RUN.invoke(app, ["generate", *words, "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    assert [image["result"] for image in json.loads(result.stdout)["images"]] == ["erase"]


def test_an_eraser_without_training_is_refused(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["train", "sld", "--out", str(tmp_path / "a.safetensors")])
    assert result.exit_code == 1
    assert "eraser 'sld' has no training; there is one for gie" in result.stderr
