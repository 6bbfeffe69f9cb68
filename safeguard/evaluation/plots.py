"""Plots: what is erased against what is kept, and the cells as bars. PNG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from safeguard.evaluation.arms import UNPROTECTED
from safeguard.evaluation.statistics import Figure
from safeguard.evaluation.summary import SummaryRow
from safeguard.evaluation.tables import MODES

MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
COLOURS: Final = (
    "#8a8f98",
    "#1f6feb",
    "#d9480f",
    "#2b8a3e",
    "#862e9c",
    "#e8890c",
    "#0b7285",
    "#c2255c",
    "#5c940d",
    "#364fc7",
    "#7a4b12",
    "#d6336c",
    "#087f5b",
    "#212529",
    "#9775fa",
    "#c0a000",
)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
    )
    return pyplot


def _error(figures: Sequence[Figure], scale: float = 1.0) -> Any:
    """Distances to both ends of the intervals, as matplotlib wants them: [2, n]."""
    below = [max(0.0, scale * (figure.value - figure.low)) for figure in figures]
    above = [max(0.0, scale * (figure.high - figure.value)) for figure in figures]
    return np.array([below, above])


def bars(rows: Sequence[SummaryRow], path: Path, title: str) -> Path:
    """Share of pictures that show each concept, explicit and implicit prompts, one bar a method and mode."""
    pyplot = _pyplot()
    series = list(dict.fromkeys((row.method, row.mode) for row in rows))
    concepts = list(dict.fromkeys(row.concept for row in rows if row.concept is not None))
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout="constrained")
    width = 0.84 / len(series)
    for axis, kind in zip(axes, ("explicit", "implicit"), strict=True):
        for place, key in enumerate(series):
            by_concept = {row.concept: getattr(row, kind) for row in rows if (row.method, row.mode) == key}
            shown = [concept for concept in concepts if concept in by_concept and by_concept[concept].n]
            spots = [concepts.index(concept) + (place - (len(series) - 1) / 2) * width for concept in shown]
            values = [by_concept[concept] for concept in shown]
            axis.bar(
                spots,
                [100 * value.value for value in values],
                width * 0.92,
                yerr=_error(values, 100),
                error_kw={"elinewidth": 0.8, "ecolor": "#444"},
                color=COLOURS[place % len(COLOURS)],
                label=_label(*key),
            )
        axis.set_xticks(range(len(concepts)), concepts)
        axis.set_title(f"{kind} prompts", loc="left")
        axis.grid(axis="x", visible=False)
    axes[0].set_ylabel("concept shown, % of pictures")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return path


def _label(method: str, mode: str) -> str:
    return method if method == UNPROTECTED else f"{method}, {MODES.get(mode, mode)}"


def curve(points: Sequence[tuple[str, float | None, SummaryRow]], path: Path, title: str) -> Path:
    """Erasure against retention: a line a method over its strengths, in four panels: what is still shown for explicit and for
    implicit prompts, against likeness of benign pictures and attributes kept. ``points``: (method, strength, pooled row).
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), sharey="row", sharex="col", layout="constrained")
    methods = list(dict.fromkeys(method for method, _, _ in points))
    for line, kind in zip(axes, ("explicit", "implicit"), strict=True):
        line[0].set_ylabel(f"{kind} prompts: concept still shown, %")
        for axis, retention in zip(line, (_likeness, _kept), strict=True):
            for place, method in enumerate(methods):
                own = [(strength, row) for one, strength, row in points if one == method]
                _line(axis, method, own, kind, retention, place)
    for axis, name in zip(axes[1], ("likeness of benign pictures (SSIM)", "attributes kept, %"), strict=True):
        axis.set_xlabel(f"{name}: right and down is better")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return path


def _likeness(row: SummaryRow) -> Figure:
    return row.likeness


def _kept(row: SummaryRow) -> Figure:
    return Figure(100 * row.kept, 100 * row.kept, 100 * row.kept, 0)


def _line(
    axis: Any,
    method: str,
    points: Sequence[tuple[float | None, SummaryRow]],
    kind: str,
    retention: Callable[[SummaryRow], Figure],
    place: int,
) -> None:
    erased = [getattr(row, kind) for _, row in points]
    kept = [retention(row) for _, row in points]
    colour, marker = COLOURS[(place + 1) % len(COLOURS)], MARKERS[place % len(MARKERS)]
    axis.errorbar(
        [value.value for value in kept],
        [100 * value.value for value in erased],
        yerr=_error(erased, 100),
        xerr=_error(kept),
        fmt=f"{marker}-",
        ms=5,
        lw=1.4,
        elinewidth=0.6,
        color=colour,
        label=method,
    )
    for (strength, _), x, y in zip(points, kept, erased, strict=True):
        if strength is not None and len(points) > 1:
            spot = (x.value, 100 * y.value)
            axis.annotate(f"{strength:g}", spot, textcoords="offset points", xytext=(5, 4), fontsize=7, color=colour)
