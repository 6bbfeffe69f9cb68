"""Filling marked tables of a page from results files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs.studies.docs_tables import fill
from safeguard.errors import AssetError
from safeguard.evaluation import eraser_table
from safeguard.evaluation.arms import UNPROTECTED
from safeguard.evaluation.statistics import mean, wilson
from safeguard.evaluation.summary import SummaryRow

ROWS = [
    (180, None, ""),
    (190, "blood", ""),
    (4, None, "alone"),
    (6, "blood", "alone"),
    (10, None, "adaptive"),
    (14, "blood", "adaptive"),
]
PAGE = "before\n\n<!-- table:demo{kept} -->\nold figures\n<!-- /table -->\n\nafter\n"


def _row(concept: str | None, hits: int, mode: str = "alone") -> SummaryRow:
    seen = wilson(hits, 200)
    return SummaryRow(
        "eiup" if mode else UNPROTECTED,
        mode,
        concept,
        seen,
        seen,
        *[wilson(0, 0)] * 2,  # no short prompts
        wilson(0, 200),
        {"subject": wilson(190, 200)},
        0.95,
        mean([0.9, 0.92]),
        1.01,
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one results file: the pooled row and one concept in each of two modes, after the unprotected ones."""
    data = {
        "settings": {"split": "test", "count": 200, "seed": 0},
        "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
        "rows": [_row(name, hits, mode).to_dict() for hits, name, mode in ROWS],
    }
    (tmp_path / "demo.json").write_text(json.dumps(data))
    return tmp_path


def test_the_table_takes_the_place_of_what_stood_there(results: Path) -> None:
    filled = fill(PAGE.format(kept=""), results)
    assert "old figures" not in filled
    assert filled.startswith("before\n\n<!-- table:demo -->\n")
    assert filled.endswith("<!-- /table -->\n\nafter\n")
    assert "2.0 %" in filled
    assert "3.0 %" in filled


def test_pooled_keeps_the_rows_over_all_concepts(results: Path) -> None:
    filled = fill(PAGE.format(kept=" pooled"), results)
    assert "2.0 %" in filled
    assert "blood" not in filled


def test_a_mode_keeps_its_rows_and_the_unprotected_ones(results: Path) -> None:
    filled = fill(PAGE.format(kept=" pooled adaptive"), results)
    assert [share in filled for share in ("90.0 %", "2.0 %", "5.0 %")] == [True, False, True]
    assert "blood" not in filled


def test_a_mode_that_was_not_measured_is_an_error_that_names_it(results: Path) -> None:
    with pytest.raises(AssetError, match="in mode 'screened'"):
        fill(PAGE.format(kept=" screened"), results)


def test_it_says_how_it_was_measured(results: Path) -> None:
    assert "200 prompts a cell (test split), seed 0, 95 % intervals; torch 2.13.0, diffusers 0.42.1." in fill(
        PAGE.format(kept=""), results
    )


def test_filling_twice_changes_nothing(results: Path) -> None:
    once = fill(PAGE.format(kept=""), results)
    assert fill(once, results) == once


def test_missing_results_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"demo\.json: no results"):
        fill(PAGE.format(kept=""), tmp_path)


def test_a_page_without_tables_stays_as_it_is(tmp_path: Path) -> None:
    assert fill("no table here\n", tmp_path) == "no table here\n"


@pytest.fixture
def of_all(results: Path) -> Path:
    """The same file as one of every eraser, with another concept that no eraser there takes."""
    data = json.loads((results / "demo.json").read_text())
    costs = [{"method": "eiup", "takes": ["blood"], "refused": {}}]
    rows = [*data["rows"], _row("weapon", 170, "").to_dict()]
    data |= {"schema": eraser_table.SCHEMA, "split": "test", "count": 200, "costs": costs, "rows": rows}
    (results / "demo.json").write_text(json.dumps(data))
    return results


def test_of_keeps_the_rows_of_one_eraser_in_the_table_of_all(of_all: Path) -> None:
    filled = fill(PAGE.format(kept=" of eiup"), of_all)
    assert [share in filled for share in ("| 2.0 %", "| 3.0 %", "| 7.0 %")] == [True, True, False]
    assert "200 prompts a cell (test split)." in filled


def test_the_unprotected_rows_beside_it_are_of_the_concepts_that_it_takes(of_all: Path) -> None:
    filled = fill(PAGE.format(kept=" of eiup"), of_all)
    assert [share in filled for share in ("| 95.0 %", "| 85.0 %", "| 90.0 %")] == [True, False, False]
