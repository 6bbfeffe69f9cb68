"""The acts of the walkthrough and its report, in few steps and with few prompts."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from safeguard_demo.report import shipped_results
from safeguard_demo.walkthrough import walk
from safeguard_demo.walkthrough_steps import swap_while_running

from safeguard import audit
from safeguard.evaluation.harness import Harness
from safeguard.policy import load_policy


@pytest.fixture(scope="module")
def walked(studio: Harness, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, bool]:
    """The whole walk once: its folder, what it said, whether everything held."""
    out, said = tmp_path_factory.mktemp("demo"), StringIO()
    held = walk(studio, out, 1, Console(file=said, width=100))
    return out, said.getvalue(), held


def test_everything_holds(walked: tuple[Path, str, bool]) -> None:
    _, said, held = walked
    assert held
    assert "every hash and link holds" in said


def test_it_leaves_what_it_says(walked: tuple[Path, str, bool]) -> None:
    out, said, _ = walked
    for name in ("report.html", "contact-sheet.png", "heat-maps.png", "results.json"):
        assert (out / name).stat().st_size > 1000
        assert name in said


def test_the_log_has_a_record_for_every_protected_picture_and_the_refusal(walked: tuple[Path, str, bool]) -> None:
    out, _, _ = walked
    results = [record["result"] for record in audit.query(out / "audit")]
    policy, alone, heat, loop = 16, 5 * 4, 10, 8
    assert results.count("block") == 1
    assert len(results) == policy + alone + heat + loop + 1


def test_the_refusal_is_told_without_the_prompt(walked: tuple[Path, str, bool]) -> None:
    _, said, _ = walked
    (message,) = re.findall(r"PolicyViolation: (.*)", said)
    assert "blood" in message
    assert "picture" not in message


@pytest.mark.parametrize(("pipeline", "file"), [("StableDiffusionPipeline", "unet"), ("StableDiffusion3Pipeline", "mmdit")])
def test_the_full_measurement_is_that_of_the_same_pipeline(pipeline: str, file: str) -> None:
    full = shipped_results(pipeline)
    assert full is not None
    measured = json.loads(Path(__file__).parents[2].joinpath("docs/results", f"demo-{file}.json").read_text())
    assert [row.implicit.value for row in full["values"]] == [row["implicit"]["value"] for row in measured["rows"]]


def test_a_pipeline_that_was_not_measured_has_no_full_measurement() -> None:
    assert shipped_results("FluxPipeline") is None


def test_the_report_asks_for_nothing_from_anywhere(walked: tuple[Path, str, bool]) -> None:
    page = (walked[0] / "report.html").read_text("utf-8")
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_the_report_shows_every_cell_twice(walked: tuple[Path, str, bool]) -> None:
    page = (walked[0] / "report.html").read_text("utf-8")
    assert page.count('alt="unprotected:') == page.count('alt="protected:') == 16


def test_a_second_walk_begins_a_new_log(studio: Harness, walked: tuple[Path, str, bool]) -> None:
    out, _, _ = walked
    assert len(list((out / "audit").glob("*.jsonl"))) == 1


def test_an_image_keeps_the_policy_that_it_began_with(studio: Harness) -> None:
    policy = load_policy("builtin://demo")
    swapped = swap_while_running(studio, policy, audit.MemorySink(), images=4)
    assert swapped.before != swapped.after == policy.revision
    assert swapped.kept_plan
    erased = [[one.concept for one in turn.decision.applied] for turn in swapped.turns]
    assert ["blood" in names for names in erased] == [False, False, True, True]
