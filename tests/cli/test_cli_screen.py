"""``safeguard screen``: scores for people and for programs; the text of a prompt only where its owner typed it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safeguard.cli.screen import app

runner = CliRunner()


def test_table_names_concepts_and_verdicts() -> None:
    done = runner.invoke(app, ["a nude woman on a bed"])
    assert done.exit_code == 0
    assert "nudity" in done.stdout
    assert "severe" in done.stdout


def test_json_holds_scores_and_no_text() -> None:
    done = runner.invoke(app, ["--json", "a nude woman on a bed", "a cat"])
    data = json.loads(done.stdout)
    assert [(item["index"], item["chars"]) for item in data["prompts"]] == [(0, 21), (1, 5)]
    assert "nudity" in data["prompts"][0]["activated"]
    assert data["prompts"][1]["activated"] == []
    assert set(data["thresholds"]["nudity"]) == {"low", "high"}
    assert "woman" not in done.stdout


def test_prompts_from_a_file_and_from_stdin(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\na dog\n", encoding="utf-8")
    assert len(json.loads(runner.invoke(app, ["--json", "--file", str(file)]).stdout)["prompts"]) == 2
    done = runner.invoke(app, ["--json", "--file", "-"], input="a cat\n")
    assert len(json.loads(done.stdout)["prompts"]) == 1


def test_policy_is_used() -> None:
    done = runner.invoke(app, ["--json", "--policy", "builtin://artist-styles", "a village by Van Gogh"])
    assert json.loads(done.stdout)["prompts"][0]["activated"] == ["van-gogh"]


def test_nothing_to_screen_is_a_usage_error() -> None:
    assert runner.invoke(app, []).exit_code == 2


def test_unreadable_file_says_so(tmp_path: Path) -> None:
    done = runner.invoke(app, ["--file", str(tmp_path / "none.txt")])
    assert done.exit_code == 1
    assert "cannot be read" in done.output.replace("\n", " ")


@pytest.mark.parametrize("text", ["\x1b[2Ja cat", "[red]a cat[/red]", "[/]"])
def test_text_cannot_steer_the_terminal(text: str) -> None:
    done = runner.invoke(app, [text])
    assert done.exit_code == 0
    assert "\x1b[2J" not in done.stdout
