"""How evidence is compared, and how the comparison is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safeguard_demo.world import CONCEPTS

from docs.studies.detector_separation import SCHEMA, cells_of, compared, markdown
from docs.studies.docs_tables import fill
from safeguard.plan.calibration import Calibration, Detector
from safeguard.sdk.fingerprint import Fingerprint

GAUGES = {concept: Detector((concept,), (1.0,), 0.0, 3.0) for concept in CONCEPTS}
CALIBRATION = Calibration(Fingerprint("P", (("a", 1),), (1.0,)), GAUGES, 0.001, "ab" * 32)
FOUND = dict.fromkeys(("auroc_implicit", "tpr_at_1_fpr"), 1.0) | {
    f"opened_{what}": share
    for what, share in zip(("implicit", "explicit", "benign", "red", "others"), (0.9, 1, 0, 0.1, 0.2), strict=True)
}


def test_each_concept_is_compared_on_its_own_prompts() -> None:
    seen = {name: np.zeros((4, len(CONCEPTS))) for name in cells_of("dev", 4)}
    seen["implicit blood"][:, 0] = (5.0, 5.0, 5.0, 1.0)
    seen["implicit weapon"][:, 0] = (4.0, 0.0, 0.0, 0.0)
    blood = compared(seen, CALIBRATION)["blood"]
    assert blood["opened_implicit"] == 0.75
    assert blood["opened_others"] == 1 / 16
    assert blood["opened_benign"] == blood["opened_explicit"] == 0.0
    assert (blood["lowest_implicit"], blood["auroc_implicit"]) == (1.0, 1.0)


def test_red_benign_prompts_ask_for_red_things() -> None:
    assert all("red" in text.split() for text in cells_of("dev", 8)["benign, red"])


@pytest.fixture
def data() -> dict[str, object]:
    concepts = {"blood": FOUND, "weapon": {**FOUND, "opened_implicit": 0.5, "opened_others": 0.4}}
    return {"schema": SCHEMA, "count": 9, "split": "dev", "steps": {"0": concepts}, "changes": {"4 steps": concepts}}


def test_a_change_is_told_by_its_worst_concept(data: dict[str, object]) -> None:
    last = markdown(data).splitlines()[-1]
    assert last == "| 4 steps | 1.000 | 100.0 % | 50.0 % | 100.0 % | 0.0 % | 10.0 % | 40.0 % |"


def test_a_page_takes_it_like_any_table(data: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "seen.json").write_text(json.dumps(data))
    filled = fill("<!-- table:seen -->\n<!-- /table -->\n", tmp_path)
    assert "| 0 | weapon | 1.000 |" in filled
    assert "9 prompts a cell (dev split)." in filled
