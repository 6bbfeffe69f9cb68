"""What training took, by its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeguard.errors import SafeguardError
from safeguard.evaluation.training_costs import training_seconds

NAMES = ("blood", "weapon")


def _log(path: Path, *lines: dict[str, Any]) -> Path:
    whole = {"method": "sdd", "pipeline": "unet", "concepts": ["blood"], "seconds": 9.0, "cpu_seconds": 8.0, "settings": {}}
    path.write_text("".join(json.dumps(whole | line) + "\n" for line in lines))
    return path


def test_it_is_the_mean_of_the_concepts_on_that_pipeline(tmp_path: Path) -> None:
    file = _log(tmp_path / "log", {}, {"concepts": ["weapon"], "cpu_seconds": 4}, {"pipeline": "mmdit", "cpu_seconds": 99})
    assert training_seconds(file, "unet", NAMES) == {"sdd": 6.0}


def test_concepts_that_were_trained_together_share_what_it_took(tmp_path: Path) -> None:
    file = _log(tmp_path / "log", {"method": "ccrt", "concepts": ["blood", "weapon"], "cpu_seconds": 50})
    assert training_seconds(file, "unet", NAMES) == {"ccrt": 25.0}


def test_other_concepts_do_not_count(tmp_path: Path) -> None:
    file = _log(tmp_path / "log", {}, {"concepts": ["night"], "cpu_seconds": 2})
    assert training_seconds(file, "unet", NAMES) == {"sdd": 8.0}


@pytest.mark.parametrize(
    "line", [{"concepts": []}, {"concepts": "blood"}, {"cpu_seconds": "long"}, {"cpu_seconds": -1}, {"method": None}]
)
def test_a_bad_line_is_an_error_with_its_number(line: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SafeguardError, match=r"log:2: this is no line of safeguard train --log"):
        training_seconds(_log(tmp_path / "log", {}, line), "unet", NAMES)


def test_text_that_is_no_json_is_an_error_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("trained\n")
    with pytest.raises(SafeguardError, match="log:1: this is no line"):
        training_seconds(tmp_path / "log", "unet", NAMES)


def test_a_log_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SafeguardError, match="cannot be read"):
        training_seconds(tmp_path / "log", "unet", NAMES)
