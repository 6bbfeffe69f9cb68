"""Measured tables in README and docs, written from the results files: ``python -m docs.studies.docs_tables``.

A page says where a table belongs, and the table is put between::

    <!-- table:demo-unet -->
    <!-- /table -->

``demo-unet`` is the name of a file in ``docs/results``. Behind it ``pooled`` keeps the rows over all concepts only, and names
of modes keep those of these and the unprotected ones. Of a file of ``safeguard eval demo --erasers``, ``of sdd,esd`` keeps the
rows of these erasers, concept by concept. So no figure is copied by hand, and a test compares every page with its results.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from docs.studies import detector_separation, eiup_forms, fairness, residual, robustness
from safeguard.errors import AssetError
from safeguard.evaluation import eraser_table
from safeguard.evaluation.tables import from_json, markdown

OF_THEIR_OWN: Final = {
    module.SCHEMA: module.markdown for module in (eraser_table, detector_separation, eiup_forms, fairness, residual, robustness)
}
MARKER: Final = re.compile(
    r"(?P<begin><!-- table:(?P<name>[a-z0-9-]+)(?P<kept>(?: [a-z_,-]+)*) -->\n).*?(?P<end><!-- /table -->)", re.DOTALL
)


def fill(page: str, results: Path) -> str:
    """The page with every marked table as the files in ``results`` give it. Raises AssetError where one is missing, or is asked
    for a mode that was not measured.
    """

    def filled(found: re.Match[str]) -> str:
        return found["begin"] + table(results / f"{found['name']}.json", found["kept"].split()) + found["end"]

    return MARKER.sub(filled, page)


def table(file: Path, kept: Sequence[str] = ()) -> str:
    """One results file as a Markdown table with a line that says how it was measured: all of it, or what ``kept`` names."""
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise AssetError(f"{file}: no results to make a table of; measure with: safeguard eval demo --out FOLDER") from fault
    own = OF_THEIR_OWN.get(data.get("schema", ""))
    if own is not None:
        text = eraser_table.markdown_of(data, kept[1].split(",")) if kept[:1] == ["of"] else own(data)
        return f"\n{text}\n{data['count']} prompts a cell ({data['split']} split).\n\n"
    rows = from_json(data["rows"])
    modes = [word for word in kept if word != "pooled"]
    missing = set(modes) - {row.mode for row in rows}
    if missing:
        raise AssetError(f"{file}: nothing was measured there in mode {missing.pop()!r}")
    if modes:
        rows = [row for row in rows if row.mode in ("", *modes)]
    if "pooled" in kept:
        rows = [row for row in rows if row.concept is None]
    settings, versions = data["settings"], data["versions"]
    used = ", ".join(f"{name} {version}" for name, version in versions.items() if name in ("torch", "diffusers"))
    how = f"{settings['count']} prompts a cell ({settings['split']} split), seed {settings['seed']}, 95 % intervals; {used}."
    return f"\n{markdown(rows)}\n{how}\n\n"


def pages(root: Path) -> list[Path]:
    """README and every page of the documentation."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the measured tables into README and docs.")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: here)")
    root: Path = parser.parse_args().root
    for page in pages(root):
        old = page.read_text(encoding="utf-8")
        new = fill(old, root / "docs" / "results")
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(f"{page}: written")


if __name__ == "__main__":
    main()
