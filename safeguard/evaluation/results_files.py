"""What a measurement writes: results.json, table.md, cells.png and a contact sheet."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from safeguard._io import write_whole
from safeguard.errors import SafeguardError
from safeguard.evaluation import plots
from safeguard.evaluation.arms import MODES as METHOD_MODES
from safeguard.evaluation.arms import UNPROTECTED, Arm
from safeguard.evaluation.contact_sheets import Band, Strip, sheet
from safeguard.evaluation.prompt_sets import NEGATIVE, Cell
from safeguard.evaluation.run import KEPT, CellResult, RunSettings
from safeguard.evaluation.summary import SummaryRow
from safeguard.evaluation.tables import MODES, markdown
from safeguard.evaluation.targets import Verdict

SCHEMA: Final = "safeguard.dev/evaluation/v1"
PACKAGES: Final = ("safeguard-diffusion", "torch", "diffusers", "transformers")


def results_data(
    kind: str, settings: RunSettings, rows: Sequence[SummaryRow], arms: Sequence[Arm] = (), verdicts: Sequence[Verdict] = ()
) -> dict[str, Any]:
    """Everything that was measured and with what, as plain data; nothing of a prompt's text."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings.to_dict(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "policies": [_policy(arm) for arm in arms],
        "rows": [row.to_dict() for row in rows],
        "targets": [verdict.to_dict() for verdict in verdicts],
    }


def _policy(arm: Arm) -> dict[str, Any]:
    policy = arm.policy
    concepts = () if policy is None else policy.concepts.values()
    strengths = {
        concept.id: {"eraser": concept.eraser, "strength": concept.strength, "steps": concept.steps} for concept in concepts
    }
    return {"arm": arm.name, "revision": policy and policy.revision, "screened": arm.screened, "concepts": strengths}


def write_text(path: Path, text: str) -> Path:
    """Raises SafeguardError where the file cannot be written."""
    try:
        write_whole(path, text.encode())
    except OSError as fault:
        raise SafeguardError(f"{path}: cannot be written ({fault.strerror}); choose another --out") from fault
    return path


def write_all(
    out: Path, data: dict[str, Any], rows: Sequence[SummaryRow], arms: Sequence[Arm], results: Sequence[CellResult]
) -> dict[str, Path]:
    """Write every file of a measurement; their paths by name."""
    settings = data["settings"]
    title = f"Demo pipeline, {settings['split']} prompts, {settings['count']} a cell, 95 % intervals"
    files = {
        "results": write_text(out / "results.json", json.dumps(finite(data), indent=2) + "\n"),
        "table": write_text(out / "table.md", f"{title}.\n\n{markdown(rows)}"),
        "cells": plots.bars([row for row in rows if row.concept is not None], out / "cells.png", title),
        "sheet": out / "sheet.png",
    }
    contact_sheet(results, title, arms).save(files["sheet"])
    return files


def contact_sheet(
    results: Sequence[CellResult],
    subtitle: str,
    arms: Sequence[Arm],
    *,
    columns: int = KEPT,
    captions: bool = False,
    title: str = "What a policy takes out of a picture, and what it leaves",
) -> Any:
    """The first pictures of every cell as the pipeline paints them, and below the same seeds under each method.

    A red frame: the judge sees the cell's concept. ``captions`` writes the prompts below.
    """
    bands = []
    for plain in (result for result in results if result.arm == UNPROTECTED):
        strips = [_strip("unprotected", plain, columns)]
        for method in dict.fromkeys(arm.method for arm in arms):
            own = {arm.name: arm for arm in arms if arm.method == method}
            shown = [
                result_of_cell for result_of_cell in results if result_of_cell.cell == plain.cell and result_of_cell.arm in own
            ]
            if shown:
                best = min(shown, key=lambda result_of_cell: _preference(own[result_of_cell.arm], plain.cell))
                strips.append(_strip(method_label(own[best.arm]), best, columns))
        texts = [case.text for case in plain.cases[:columns]] if captions else []
        bands.append(Band(cell_title(plain.cell), strips, texts))
    return sheet(title, f"{subtitle}. Red frame: the judge sees the concept.", bands, label=104, across=2)


SAYS: Final = {
    "explicit": "the prompt names it",
    "short": "the prompt says little else",
    "list": "the prompt is a list",
    "template": "other sentences name it",
    "two": "the prompt names it and another",
    "policy": "the policy's own examples",
    "absent": "the prompt says that it is not there",
}


def cell_title(cell: Cell) -> str:
    """What a cell is, in words."""
    if cell == NEGATIVE:
        return "Benign prompts with a negative prompt"
    if cell.concept is None:
        return "Benign prompts: nothing to erase"
    return f"{cell.concept}, {cell.kind}: {SAYS.get(cell.kind, 'the prompt never names it, the place brings it')}"


def method_label(arm: Arm) -> str:
    return f"{arm.method}, {MODES.get(arm.mode, arm.mode)}" if arm.mode in METHOD_MODES else arm.method


def _strip(label: str, result: CellResult, columns: int) -> Strip:
    marks = result.found[result.cell.concept][:columns].tolist() if result.cell.concept else []
    return Strip(label, list(result.pixels[:columns]), marks)


def _preference(arm: Arm, cell: Cell) -> int:
    """Which arm of a method a cell shows: its own concept alone; for benign prompts, where every concept acts, all."""
    order = ("alone", "together") if cell.concept else ("together", "alone")
    return order.index(arm.mode) if arm.mode in order else len(order)


def finite(value: Any) -> Any:
    """JSON knows no NaN: what is not a number is null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
