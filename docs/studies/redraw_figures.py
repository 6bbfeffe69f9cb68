"""Redraw the figures of erasure against retention from ``docs/results``: ``python -m docs.studies.redraw_figures``.

Nothing is measured. Each figure shows the rows of one results file that pool all concepts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from safeguard.evaluation.arms import UNPROTECTED
from safeguard.evaluation.plots import curve
from safeguard.evaluation.summary import SummaryRow
from safeguard.evaluation.tables import from_json

CURVES: Final = {"strengths-unet": "strengths-unet", "strengths-mmdit": "strengths-mmdit", "curve-unet": "curve"}
POINTS: Final = {"erasers-unet": "erasers-unet", "erasers-mmdit": "erasers-mmdit"}
ROOT: Final = Path(__file__).parents[1]


def _read(name: str) -> tuple[dict[str, Any], list[SummaryRow]]:
    data = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    rows = [row for row in from_json(data["rows"]) if row.concept is None and row.method != UNPROTECTED and row.mode == "alone"]
    return data, rows


def main() -> None:
    for name, image in CURVES.items():
        data, rows = _read(name)
        points = [(row.method.rpartition("@")[0], float(row.method.rpartition("@")[2]), row) for row in rows]
        split, count = data["settings"]["split"], data["settings"]["count"]
        title = f"Erasure against retention, {split} prompts, {count} a cell, all concepts"
        curve(points, ROOT / "images" / f"{image}.png", title)
    for name, image in POINTS.items():
        data, rows = _read(name)
        title = f"Every eraser, {data['split']} prompts, {data['count']} a cell"
        curve([(row.method, None, row) for row in rows], ROOT / "images" / f"{image}.png", title)


if __name__ == "__main__":
    main()
