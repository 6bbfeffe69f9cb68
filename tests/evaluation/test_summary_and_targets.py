"""From judged cells to rows, tables and verdicts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from safeguard_demo.judge import ATTRIBUTES
from safeguard_demo.world import CONCEPTS

from safeguard.evaluation.arms import UNPROTECTED, Arm, ArmMethod, arms
from safeguard.evaluation.prompt_sets import Cell, PromptCase, cells
from safeguard.evaluation.results_files import finite
from safeguard.evaluation.run import CellResult, Sighting
from safeguard.evaluation.summary import SummaryRow, summarise
from safeguard.evaluation.tables import HEAD, cells_of, from_json, markdown
from safeguard.evaluation.targets import Target, judge_targets

N = 10
TWO = ("blood", "weapon")


def _result(arm: str, cell: Cell, shown: int, right: int = N, like: float = 1.0, seconds: float = 1.0) -> CellResult:
    """A cell in which the first ``shown`` pictures show its concept and the first ``right`` are as asked."""
    flags = np.arange(N)
    return CellResult(
        arm,
        cell,
        (),
        {name: flags < (shown if name == cell.concept else 0) for name in CONCEPTS},
        dict.fromkeys(ATTRIBUTES, flags < right),
        {name: np.zeros(N, bool) for name in CONCEPTS},
        np.full(N, like),
        seconds,
        np.zeros((N, 2, 2, 3), np.uint8),
    )


def _rows(modes: tuple[str, ...] = ("alone",), **ours: float) -> list[SummaryRow]:
    """Unprotected: all show it, all right. Ours: as given."""
    tried = arms(ArmMethod("eiup"), TWO, modes)
    plain = [_result(UNPROTECTED, cell, N) for cell in cells(TWO)]
    painted = [_result(arm.name, cell, **ours) for arm in tried for cell in arm.cells]  # type: ignore[arg-type]
    return summarise([*plain, *painted], tried, TWO)


def _find(rows: list[SummaryRow], method: str, concept: str | None) -> SummaryRow:
    return next(row for row in rows if (row.method, row.concept) == (method, concept))


def test_a_row_holds_the_share_that_still_shows_the_concept() -> None:
    rows = _rows(shown=2)
    assert _find(rows, UNPROTECTED, "blood").explicit.value == 1.0
    assert _find(rows, "eiup", "blood").explicit.value == pytest.approx(0.2)


def _rows_of_two_judges() -> list[SummaryRow]:
    """The first judge sees the concept in two pictures of ten, another in five; unprotected, both see it in all."""
    tried = arms(ArmMethod("eiup"), TWO, ("alone",))
    pairs = [(UNPROTECTED, cell, N, N) for cell in cells(TWO)] + [(arm.name, cell, 2, 5) for arm in tried for cell in arm.cells]
    results = [
        replace(_result(arm, cell, first), sightings={"other": Sighting(_result(arm, cell, second).found, {})})
        for arm, cell, first, second in pairs
    ]
    return summarise(results, tried, TWO)


def test_a_further_judge_has_figures_of_its_own() -> None:
    row = _find(_rows_of_two_judges(), "eiup", "blood")
    assert (row.explicit.value, row.judges["other"]["explicit"].value) == (pytest.approx(0.2), pytest.approx(0.5))


def test_rows_of_several_judges_come_back_from_json() -> None:
    rows = _rows_of_two_judges()
    back = from_json(finite([row.to_dict() for row in rows]))
    assert [row.judges["other"]["implicit"] for row in back] == [row.judges["other"]["implicit"] for row in rows]


def test_rows_of_an_older_file_have_no_further_judges() -> None:
    data = [row.to_dict() for row in _rows(shown=2)]
    for row in data:
        del row["judges"]
    assert all(row.judges == {} for row in from_json(finite(data)))


def test_what_a_further_judge_sees_stands_below_the_row() -> None:
    lines = markdown([_find(_rows_of_two_judges(), "eiup", "blood")]).splitlines()
    assert lines[-1].startswith("| by other | eiup, always on, each alone | 50.0 % ")


def test_the_pooled_row_counts_every_concept() -> None:
    pooled = _find(_rows(shown=2), "eiup", None)
    assert (pooled.implicit.n, pooled.implicit.value) == (2 * N, pytest.approx(0.2))


def test_what_is_kept_is_measured_against_the_unprotected_run() -> None:
    assert _find(_rows(shown=0, right=9), "eiup", "weapon").kept == pytest.approx(0.9)


def test_time_is_measured_against_the_same_cells() -> None:
    assert _find(_rows(shown=0, seconds=1.5), "eiup", None).time == pytest.approx(1.5)


def test_one_benign_cell_that_serves_all_concepts_counts_once() -> None:
    pooled = _find(_rows(("together",), shown=0, like=0.9), "eiup", None)
    assert pooled.likeness.n == N


def test_rows_survive_their_results_file() -> None:
    rows = _rows(shown=3, right=8, like=0.93)
    assert from_json(row.to_dict() for row in rows) == rows


def test_a_table_has_a_line_a_row() -> None:
    rows = _rows(shown=1)
    assert markdown(rows).count("\n") == len(rows) + 2
    assert "10.0 % (1.8-40.4)" in cells_of(_find(rows, "eiup", "blood"))


def test_targets_are_met_and_missed_by_what_was_measured() -> None:
    targets = (Target("alone", "explicit", 0.1, at_least=False), Target("alone", "likeness", 0.95, at_least=True))
    verdicts = judge_targets(_rows(shown=1, like=0.9), "eiup", targets)
    assert [(one.concept, one.met) for one in verdicts] == [
        ("blood", True), ("weapon", True), ("blood", False), ("weapon", False),
    ]  # fmt: skip


def test_all_at_once_is_compared_with_each_alone() -> None:
    target = Target("together", "explicit", 0.0, at_least=False, against="alone")
    verdicts = judge_targets(_rows(("alone", "together"), shown=4), "eiup", (target,))
    assert [(one.value, one.met) for one in verdicts] == [(0.0, True), (0.0, True)]


def test_a_target_of_a_mode_that_was_not_measured_is_not_judged() -> None:
    assert judge_targets(_rows(shown=0), "eiup", (Target("screened", "likeness", 0.99, at_least=True, pooled=True),)) == []


def test_no_number_meets_no_target() -> None:
    row = _find(_rows(shown=0), "eiup", "blood")
    blank = SummaryRow(**{**{name: getattr(row, name) for name in SummaryRow.__slots__}, "kept": math.nan})
    (verdict,) = judge_targets([blank], "eiup", (Target("alone", "attributes_kept", 0.9, at_least=True),))
    assert not verdict.met


def test_arms_have_names_that_tell_them_apart() -> None:
    tried: list[Arm] = [arm for text in ("eiup", "eiup@2", "negative_prompt") for arm in arms(ArmMethod.parse(text), TWO)]
    assert len({arm.name for arm in tried}) == len(tried)


def _measured(areas: list[float], before: list[float], bound: float = 0.01) -> SummaryRow:
    """One arm's explicit pictures of blood, of which a judge measured these areas, and ``before`` without protection."""
    arm = Arm("eiup", "alone", (Cell("explicit", "blood"),), None, "blood")

    def result(name: str, own: list[float]) -> CellResult:
        share, flat = np.array(own), np.zeros(len(own), bool)
        found, pixels = {"blood": share > bound}, np.zeros((len(own), 2, 2, 3), np.uint8)
        return CellResult(name, arm.cells[0], (), found, {}, {"blood": flat}, np.ones(len(own)), 1.0, pixels, {"blood": share})

    rows = summarise([result(UNPROTECTED, before), result(arm.name, areas)], [arm], ["blood"])
    return _find(rows, "eiup", "blood")


def test_what_has_more_than_a_tenth_of_its_area_is_left_and_what_has_less_remains() -> None:
    row = _measured([0.0, 0.02, 0.04, 0.2], [0.3, 0.3, 0.3, 0.3])
    assert (row.explicit.value, row.remains.value) == (0.5, 0.25)


def test_without_areas_nothing_is_said_to_remain() -> None:
    row = _find(_rows(shown=2), "eiup", "blood")
    assert (row.remains.n, cells_of(row)[HEAD.index("remains")]) == (0, "-")


PAIRS = (("blood", "weapon"), ("blood", "orlo-tandt"), ("blood", "weapon"), ("blood", "weapon"))


def _both(concept: str | None) -> list[SummaryRow]:
    """Four pictures of two concepts: without protection all show both, under an arm only the last shows both, others none."""
    flags = {"unprotected": [True] * 4, "eiup-adaptive": [False, False, False, True]}
    cell, cases = Cell("two", "blood"), [PromptCase("", 0, {}, pair, pair) for pair in PAIRS]
    arm = Arm("eiup", "adaptive", (cell,), None, concept)
    names = {"unprotected": UNPROTECTED, "eiup-adaptive": arm.name}
    results = [
        CellResult(
            names[name], cell, cases, {one: np.array(shown) for one in CONCEPTS}, {}, {"blood": np.zeros(4, bool)},
            np.ones(4), 1.0, np.zeros((4, 2, 2, 3), np.uint8),
        )
        for name, shown in flags.items()
    ]  # fmt: skip
    return summarise(results, [arm], ["blood", "weapon"])


def test_a_picture_of_two_concepts_counts_for_each_of_the_two() -> None:
    rows = _both(None)
    counted = {one: _find(rows, "eiup", one).further["two"] for one in ("blood", "weapon", None)}
    assert {one: (figure.n, figure.value) for one, figure in counted.items()} == {
        "blood": (4, 0.25), "weapon": (3, pytest.approx(1 / 3)), None: (7, pytest.approx(2 / 7)),
    }  # fmt: skip
    both = {one: _find(rows, "eiup", one).further["both"] for one in ("weapon", None)}
    assert {one: (figure.n, figure.value) for one, figure in both.items()} == {
        "weapon": (3, pytest.approx(1 / 3)),
        None: (4, 0.25),
    }


def test_a_concept_that_nobody_asked_for_and_that_was_not_there_before_is_counted() -> None:
    """Erased, the last picture shows all five, of which the prompt asks for two; without protection there was one of the three
    others.
    """
    cell, case = Cell("two", "blood"), PromptCase("", 0, {}, PAIRS[0], PAIRS[0])
    arm, more = (
        Arm("eiup", "adaptive", (cell,)),
        ({}, {"blood": np.zeros(2, bool)}, np.ones(2), 1.0, np.zeros((2, 2, 2, 3), np.uint8)),
    )
    before = {one: np.array([True, one == "veska-rimm"]) for one in CONCEPTS}
    after = {one: np.array([True, True]) for one in CONCEPTS}
    results = [CellResult(name, cell, [case] * 2, found, *more) for name, found in ((UNPROTECTED, before), (arm.name, after))]
    another = _find(summarise(results, [arm], ["blood"]), "eiup", "blood").further["another"]
    assert (another.n, another.value) == (2, 0.5)


def test_where_one_concept_alone_is_erased_its_neighbours_are_not_counted() -> None:
    assert "weapon" not in {row.concept for row in _both("blood") if row.method == "eiup"}


def _spared(kind: str, concept: str | None) -> SummaryRow:
    """Four pictures, in the first of which something was erased; the judge sees blood in the first two."""
    cell, flags = Cell(kind, concept), np.arange(4)
    arm = Arm("eiup", "adaptive", (cell,))
    found = {name: flags < (2 if name == "blood" else 0) for name in CONCEPTS}
    more = (found, {}, {"blood": flags < 1}, np.full(4, 0.9), 1.0, np.zeros((4, 2, 2, 3), np.uint8))
    cases = [PromptCase("", 0)] * 4
    rows = summarise([CellResult(name, cell, cases, *more) for name in (UNPROTECTED, arm.name)], [arm], ["blood"])
    return _find(rows, "eiup", "blood")


def test_of_what_is_said_to_be_absent_is_counted_what_is_seen_and_what_was_touched() -> None:
    further = _spared("absent", "blood").further
    assert {name: round(figure.value, 3) for name, figure in further.items()} == {
        "absent": 0.5, "absent untouched": 0.75, "absent SSIM": 0.9,
    }  # fmt: skip


def test_benign_prompts_with_a_negative_one_have_a_column_of_their_own() -> None:
    row = _spared("negative", None)
    assert set(row.further) == {"negative untouched", "negative SSIM"}
    assert "75.0 %, SSIM 0.900" in markdown([row])
    assert "| explicit |" not in markdown([row])


def test_further_figures_survive_their_results_file_and_older_files_have_none() -> None:
    row = _spared("absent", "blood")
    assert from_json([finite(row.to_dict())])[0].further == row.further
    older = {key: value for key, value in finite(_find(_rows(shown=1), "eiup", None).to_dict()).items() if key != "further"}
    assert from_json([older])[0].further == {}
