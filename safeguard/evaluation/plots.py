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
FONT: Final = 7  # points, of a label
MARKER: Final = 3.5  # points from a marker's middle to its edge
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
    """Share of images that show each concept, explicit and implicit prompts, one bar for each method and mode."""
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
    axes[0].set_ylabel("concept seen, % of images (less is better)")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return path


def _label(method: str, mode: str) -> str:
    return method if method == UNPROTECTED else f"{method}, {MODES.get(mode, mode)}"


def curve(points: Sequence[tuple[str, float | None, SummaryRow]], path: Path, title: str) -> Path:
    """Erasure against retention, a line for each method over its strengths.

    Four panels show how often the concept is still seen, for explicit and for implicit prompts, against the similarity of
    benign images and the attributes kept.

    Args:
        points: Method, strength and pooled row of each point.
        path: The PNG file to write.
        title: Above the panels.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), sharey="row", sharex="col", layout="constrained")
    methods = list(dict.fromkeys(method for method, _, _ in points))
    for line, kind in zip(axes, ("explicit", "implicit"), strict=True):
        line[0].set_ylabel(f"{kind} prompts: concept still seen, %\n(less is better)")
        for axis, retention in zip(line, (_likeness, _kept), strict=True):
            axis.margins(x=0.06, y=0.1)
            for place, method in enumerate(methods):
                own = [(strength, row) for point, strength, row in points if point == method]
                _line(axis, method, own, kind, retention, place)
    for axis, name in zip(axes[1], ("similarity of benign images (SSIM)", "attributes kept, %"), strict=True):
        axis.set_xlabel(f"{name} (more is better)")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.canvas.draw()  # settles where points are, so that labels can keep clear of one another
    for line, kind in zip(axes, ("explicit", "implicit"), strict=True):
        for axis, retention in zip(line, (_likeness, _kept), strict=True):
            _label_points(axis, points, kind, retention)
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
    retained = [retention(row) for _, row in points]
    colour, marker = COLOURS[(place + 1) % len(COLOURS)], MARKERS[place % len(MARKERS)]
    axis.errorbar(
        [value.value for value in retained],
        [100 * value.value for value in erased],
        yerr=_error(erased, 100),
        xerr=_error(retained),
        fmt=f"{marker}-",
        ms=5,
        lw=1.4,
        elinewidth=0.6,
        color=colour,
        label=method,
    )


def _label_points(
    axis: Any, points: Sequence[tuple[str, float | None, SummaryRow]], kind: str, retention: Callable[[SummaryRow], Figure]
) -> None:
    """Write strengths beside the points of a curve, and its name beside a method without one. A label that finds no free place
    near its point is left out: the tables have every figure.
    """
    methods = list(dict.fromkeys(method for method, _, _ in points))
    scale = 72 / axis.figure.dpi  # pixels to the points of a font
    spots = [(retention(row).value, 100 * getattr(row, kind).value) for _, _, row in points]
    centres = axis.transData.transform(spots) * scale
    taken = [(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in centres]
    for place, (method, strength, _) in enumerate(points):
        alone = sum(other == method for other, _, _ in points) == 1
        if alone and strength is not None:
            continue
        text = method if strength is None else f"{strength:g}"
        width, (x, y) = 0.62 * FONT * len(text), centres[place]
        for across, up in ((5, 3), (5, -9), (-5 - width, 3), (-5 - width, -9), (-width / 2, 7), (-width / 2, -13)):
            box = (x + across, y + up, x + across + width, y + up + FONT)
            others = [*taken[:place], *taken[place + 1 :]]
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in others):
                taken.append(box)
                colour = COLOURS[(methods.index(method) + 1) % len(COLOURS)]
                options = {"textcoords": "offset points", "xytext": (across, up), "fontsize": FONT, "color": colour}
                axis.annotate(text, spots[place], **options)
                break
