"""Names of version 0.1 work, and say what to type instead."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from safeguard._deprecated import MOVED

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "name", "new"),
    [
        ("safeguard.erasing", "ConceptTokens", "safeguard.sdk.ConceptAttention"),
        ("safeguard.erasing", "Registry", "safeguard.plan.Registry"),
        ("safeguard.erasing.seams", "Edit", "safeguard.sdk.seams.Edit"),
        ("safeguard.demo", "load_pipeline", "safeguard_demo.load_pipeline"),
        ("safeguard.demo.captions", "prompts", "safeguard_demo.captions.prompts"),
        ("safeguard.evaluation.studio", "open_studio", "safeguard.evaluation.harness.open_harness"),
        ("safeguard.training.words", "beside", "safeguard.training.textual_inversion.beside"),
        ("safeguard.training.inversion", "Settings", "safeguard.training.feedback_inversion.InversionSettings"),
        ("safeguard.policy.testing", "load_tests", "safeguard.policy.policy_tests.load_tests"),
    ],
)
def test_an_old_name_is_the_new_one_and_warns(module: str, name: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is now {new}"):
        moved = getattr(importlib.import_module(module), name)
    place, _, spelling = new.rpartition(".")
    assert moved is getattr(importlib.import_module(place), spelling)


def test_the_warning_points_at_the_line_that_uses_the_old_name() -> None:
    with pytest.warns(DeprecationWarning, match=r"safeguard_demo\.load_pipeline") as warned:
        from safeguard.demo import load_pipeline  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    assert {Path(warning.filename).name for warning in warned} == {"test_deprecated_names.py"}


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"safeguard\.erasing"):
        importlib.import_module("safeguard.erasing").Nothing  # noqa: B018


def test_every_module_that_moved_is_there() -> None:
    missing = [new for new in set(MOVED.values()) if importlib.util.find_spec(new) is None]
    assert missing == []


def test_an_old_command_runs_and_names_the_new_one() -> None:
    command = [sys.executable, "-m", "safeguard.evaluation.paths", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "python -m safeguard.evaluation.paths is now python -m docs.studies.text_paths" in done.stderr
    assert "usage" in done.stdout.lower()


def test_a_command_that_is_not_in_the_package_says_where_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "safeguard.evaluation.robustness", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "docs.studies.robustness is not on this machine: run it in a checkout of the repository" in done.stderr
