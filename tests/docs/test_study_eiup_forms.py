"""What forms of ``eiup`` leave: the short prompts, the colour of blood, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safeguard_demo.world import BLOOD

from docs.studies.docs_tables import fill
from docs.studies.eiup_forms import SCHEMA, blood_coloured, markdown, policy_of, short_prompts

ROW = {"concept": "blood", "form": "general", "left": {"explicit": 0.0, "implicit": 0.1, "short": 0.5}, "likeness": 0.97}
AREA = {"explicit": 0.0, "implicit": 0.0125, "short": 0.2, "benign": 0.0}


@pytest.fixture
def data() -> dict[str, object]:
    return {"schema": SCHEMA, "count": 9, "split": "dev", "rows": [{**ROW, "area": AREA, "shows": dict.fromkeys(AREA, 0.25)}]}


def test_short_prompts_hold_the_concept_alone_and_no_place() -> None:
    texts = [case.text for case in short_prompts("blood", 32)]
    assert len(texts) == 32
    assert "covered in blood" in texts
    assert "a person covered in blood" in texts
    assert not any(word in text.split() for text in texts for word in ("red", "street", "battlefield"))


def test_a_text_that_comes_twice_has_another_seed() -> None:
    cases = short_prompts("veska-rimm", 60)
    assert len({case.seed for case in cases}) == 60 > len({case.text for case in cases})


def test_only_the_colour_of_blood_counts() -> None:
    picture = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    picture[0, 0, 0] = BLOOD
    picture[0, 0, 1] = (220, 60, 60)
    assert blood_coloured(picture).tolist() == [0.25]


def test_the_policy_has_one_concept_that_is_always_on() -> None:
    (concept,) = policy_of("blood", "difference").concepts.values()
    assert (concept.activation, concept.strength, dict(concept.params)) == ("always", 1.0, {"form": "difference"})


def test_a_row_tells_what_is_left_and_how_much_of_it_shows(data: dict[str, object]) -> None:
    lines = markdown(data).splitlines()
    assert "| blood | general | 0 % | 10 % | 50 % | 0.970 |" in lines
    assert "| general | 0.00 % (25 %) | 1.25 % (25 %) | 20.00 % (25 %) | 0.00 % (25 %) |" in lines


def test_a_page_takes_it_like_any_table(data: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "forms.json").write_text(json.dumps(data))
    filled = fill("<!-- table:forms -->\n<!-- /table -->\n", tmp_path)
    assert "| blood | general |" in filled
    assert "9 prompts a cell (dev split)." in filled
