"""Whether what is left can be told: the rows and their table, and one short measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs.studies.docs_tables import fill
from docs.studies.residual import SCHEMA, Seen, _row, markdown, measure

SEEN: list[Seen] = [(0, "blood", 4.0, False, True), (1, "blood", 3.0, False, True), (2, "blood", 0.0, True, False)]


def test_a_row_tells_left_from_gone_and_what_is_called_enough() -> None:
    row = _row("blood", [*SEEN, (3, "blood", 3.5, False, False)])
    assert (row["acted"], row["left"]) == (4, 2)
    assert row["auroc"] == pytest.approx(0.75)
    assert (row["enough_left"], row["enough_gone"]) == (0.0, 0.5)
    assert row["interval"][0] <= row["auroc"] <= row["interval"][1]


def test_where_nothing_is_left_there_is_nothing_to_tell() -> None:
    assert "auroc" not in _row("blood", SEEN[2:])


def test_a_page_takes_it_like_any_table(tmp_path: Path) -> None:
    data = {"schema": SCHEMA, "count": 4, "split": "test", "rows": [_row("blood", SEEN), _row("weapon", SEEN[2:])]}
    (tmp_path / "residual.json").write_text(json.dumps(data))
    filled = fill("<!-- table:residual -->\n<!-- /table -->\n", tmp_path)
    assert "| blood | 3 | 2 | 1.000 (1.000-1.000) | 0 % | 100 % |" in filled
    assert "| weapon | 1 | 0 | - | - | - |" in filled
    assert markdown(data) in filled


def test_a_measurement_has_a_row_for_every_concept() -> None:
    data = measure("unet", "dev", 1, strengths=(1.0,))
    assert [row["concept"] for row in data["rows"]][:2] == ["all concepts", "blood"]
    assert data["rows"][0]["acted"] >= 10
