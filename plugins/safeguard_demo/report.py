"""The walkthrough's report: one HTML file with every picture inside, which asks for nothing from anywhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from safeguard.audit import VerifyReport
from safeguard.evaluation.comparison import ImagePair
from safeguard.evaluation.contact_sheets import as_image, enlarged, overlay
from safeguard.evaluation.results_files import cell_title, write_text
from safeguard.evaluation.run import KEPT, UNPROTECTED, CellResult
from safeguard.evaluation.statistics import Figure
from safeguard.evaluation.summary import SummaryRow
from safeguard.evaluation.tables import HEAD, cells_of, from_json
from safeguard.policy import Policy
from safeguard_demo.walkthrough_steps import Measured, Refused, Swapped


@dataclass(frozen=True, eq=False)
class Story:
    """Everything that the walkthrough did. ``pipeline`` is the class of the pipeline that it was done on."""

    pipeline: str
    policy: Policy
    measured: Measured
    heat: dict[str, list[ImagePair]]
    swapped: Swapped
    refused: Refused


def write_report(path: Path, story: Story, log: VerifyReport, record: dict[str, Any], audit: Path, footer: str) -> Path:
    """Raises SafeguardError where the file cannot be written."""
    import jinja2

    source = resources.files("safeguard_demo").joinpath("report.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(source).render(
        title="What a policy takes out of a picture, and what it leaves",
        policy=story.policy,
        story=story,
        tiles=_tiles(story.measured.rows),
        cells=[_cell(plain, story.measured.results) for plain in story.measured.results if plain.arm == UNPROTECTED],
        head=HEAD,
        quick=_table(story.measured.rows),
        full=shipped_results(story.pipeline),
        heats=[heat for name, pairs in story.heat.items() for heat in _heats(name, pairs)],
        turns=_turns(story.swapped),
        log=log,
        record=json.dumps(record, indent=2),
        audit=audit,
        footer=footer,
    )
    return write_text(path, page)


def shipped_results(pipeline: str) -> dict[str, Any] | None:
    """The full measurements of the demo pipeline of this class in a checkout's docs, or None where there are none: count, rows
    as texts and as `SummaryRow` values; what evidence opens stands behind the unprotected run.
    """
    from safeguard_demo.pipelines import KINDS

    kind = next((kind for kind, name in KINDS.items() if name == pipeline), None)
    file = Path(__file__).parents[2] / "docs" / "results" / f"demo-{kind}.json"
    if not file.is_file():
        return None
    data = json.loads(file.read_text("utf-8"))
    rows = sorted(from_json(data["rows"]), key=lambda row: (row.method != UNPROTECTED, row.mode != "adaptive"))
    return {"count": data["settings"]["count"], "rows": _table(rows), "values": rows}


def _table(rows: Sequence[SummaryRow]) -> list[dict[str, Any]]:
    return [{"cells": cells_of(row), "pooled": row.concept is None} for row in rows]


def _tiles(rows: Sequence[SummaryRow]) -> list[dict[str, str]]:
    """The figures that a reader should see first."""
    plain = next(row for row in rows if row.method == UNPROTECTED and row.concept is None)
    ours = next(row for row in rows if row.method != UNPROTECTED and row.concept is None)

    def change(before: Figure, after: Figure) -> str:
        return f"{100 * before.value:.0f} % → {100 * after.value:.0f} %"

    return [
        {"value": change(plain.explicit, ours.explicit), "text": "of pictures show the concept when the prompt names it"},
        {"value": change(plain.implicit, ours.implicit), "text": "when the prompt only implies it"},
        {"value": f"{100 * ours.kept:.0f} %", "text": "of subjects, colours and scenes kept, the worst of the three"},
        {"value": f"{ours.likeness.value:.3f}", "text": "likeness (SSIM) of benign pictures to the unprotected ones"},
    ]


def _cell(plain: CellResult, results: Sequence[CellResult]) -> dict[str, Any]:
    ours = next(cell for cell in results if cell.cell == plain.cell and cell.arm != UNPROTECTED)
    return {
        "title": cell_title(plain.cell),
        "texts": [case.text for case in plain.cases[:KEPT]],
        "strips": [
            {"label": label, "pictures": _pictures(cell)} for label, cell in (("unprotected", plain), ("protected", ours))
        ],
    }


def _pictures(result: CellResult) -> list[dict[str, Any]]:
    concept = result.cell.concept
    shown = result.found[concept] if concept else [False] * result.count
    return [{"uri": uri(image), "shows": bool(seen)} for image, seen in zip(result.pixels[:KEPT], shown, strict=False)]


def _heats(name: str, pairs: Sequence[ImagePair]) -> list[dict[str, str]]:
    top = max(float(pair.maps[name].max()) for pair in pairs)
    kinds = ("named", "implied")
    return [
        {"uri": uri(overlay(enlarged(pair.before, 128), pair.maps[name], top)), "text": f"{name}, {kind}"}
        for pair, kind in zip(pairs, kinds, strict=True)
    ]


def _turns(swapped: Swapped) -> list[dict[str, Any]]:
    return [
        {
            "uri": uri(turn.image),
            "revision": turn.decision.policy_revision[:12],
            "old": turn.decision.policy_revision == swapped.before,
            "during": place == swapped.during,
        }
        for place, turn in enumerate(swapped.turns)
    ]


def uri(image: Any) -> str:
    """A picture as a ``data:`` address, so that the page needs no other file."""
    buffer = io.BytesIO()
    as_image(image).convert("RGB").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
