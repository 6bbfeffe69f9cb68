"""What is told of erasure under other conditions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safeguard_demo.judge import ATTRIBUTES
from safeguard_demo.prompt_set import DemoPrompts
from safeguard_demo.world import CONCEPTS

from docs.studies.docs_tables import fill
from docs.studies.robustness import SCHEMA, Condition, artists, conditions, markdown, measure, summary, under
from safeguard.errors import SafeguardError
from safeguard.evaluation.arms import UNPROTECTED
from safeguard.evaluation.harness import Harness
from safeguard.evaluation.prompt_sets import BENIGN, Cell
from safeguard.evaluation.run import CellResult
from safeguard.policy import load_policy

cases = DemoPrompts().cases


def result(arm: str, cell: Cell, shown: dict[str, list[bool]], acted: list[bool], right: bool = True) -> CellResult:
    asked = cases(cell, "dev", 2)
    found = {name: np.array(shown.get(name, [False, False])) for name in CONCEPTS}
    as_asked = {name: np.array([right, True]) for name in ATTRIBUTES}
    did = {name: np.array(acted if name == "blood" else [False, False]) for name in CONCEPTS}
    return CellResult(arm, cell, asked, found, as_asked, did, np.ones(2), 1.0, np.zeros((2, 8, 8, 3), np.uint8))


@pytest.fixture
def measured() -> list[CellResult]:
    explicit, implicit = Cell("explicit", "blood"), Cell("implicit", "blood")
    both, none = [True, True], [False, False]
    return [
        *(result(UNPROTECTED, cell, {"blood": both}, none) for cell in (explicit, implicit)),
        result(UNPROTECTED, BENIGN, {}, none),
        result("eiup", explicit, {}, both),
        result("eiup", implicit, {"blood": [True, False], "weapon": both}, both, right=False),
        result("eiup", BENIGN, {}, [True, False]),
    ]


def test_named_and_implied_concepts_are_told_apart(measured: list[CellResult]) -> None:
    found = summary(measured)
    shares = [found[f"{what}_{side}"]["value"] for what in ("named", "implied") for side in ("before", "after")]
    assert shares == [1.0, 0.0, 1.0, 0.5]
    assert (found["named_after_worst"], found["implied_after_worst"]) == (0.0, 0.5)


def test_what_is_kept_and_what_is_left_alone_are_counted(measured: list[CellResult]) -> None:
    found = summary(measured)
    assert found["kept"] == pytest.approx(5 / 6)
    assert found["untouched"]["value"] == 0.5


def test_a_mixed_prompt_names_one_concept_and_implies_another() -> None:
    for case in cases(Cell("mixed", "weapon"), "dev", 12):
        (named,) = case.named
        assert named != "weapon"
        assert set(case.concepts) == {named, "weapon"}


def test_prompts_of_one_colour_ask_for_it() -> None:
    assert {case.attributes["colour"] for case in cases(Cell("implicit", "blood", "red"), "dev", 8)} == {"red"}


def test_a_condition_leaves_the_studio_as_it_was(studio: Harness) -> None:
    scheduler = studio.pipe.scheduler
    condition = Condition("other", {"steps": 7}, sampler=("EulerDiscreteScheduler", {}))
    with under(studio, condition) as (changed, policy):
        assert (changed.steps, type(studio.pipe.scheduler).__name__) == (7, "EulerDiscreteScheduler")
        assert {one.activation for one in policy.concepts.values()} == {"adaptive"}
    assert studio.pipe.scheduler is scheduler
    assert studio.steps != 7


def test_absent_concepts_are_new_to_the_policy() -> None:
    names = [one.id for one in artists(95)]
    assert len({*names, *load_policy("builtin://demo").concepts}) == 100


@pytest.mark.parametrize("kind", ["unet", "mmdit"])
def test_every_condition_has_a_name_of_its_own(kind: str) -> None:
    names = [condition.name for condition in conditions(kind)]
    assert len(set(names)) == len(names)


def test_a_page_takes_it_like_any_table(measured: list[CellResult], tmp_path: Path) -> None:
    data = {"schema": SCHEMA, "count": 2, "split": "dev", "conditions": {"4 steps": summary(measured)}}
    (tmp_path / "hard.json").write_text(json.dumps(data))
    filled = fill("<!-- table:hard -->\n<!-- /table -->\n", tmp_path)
    assert markdown(data).splitlines()[-1] in filled
    assert "| 4 steps | 100.0 % (34.2-100.0) |" in filled
    assert "| 50.0 % | 83.3 % |" in filled


def test_a_condition_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(SafeguardError, match="among 20 concepts"):
        measure("unet", "dev", 1, tmp_path, only="nothing")
