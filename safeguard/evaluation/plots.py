"""Plots: what is erased against what is kept, and the cells as bars. PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from safeguard.evaluation.methods import UNPROTECTED
from safeguard.evaluation.metrics import Figure
from safeguard.evaluation.summary import Row
from safeguard.evaluation.tables import MODES

COLOURS: Final = ("#8a8f98", "#1f6feb", "#d9480f", "#2b8a3e", "#862e9c", "#e8890c", "#0b7285", "#c2255c")


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


def bars(rows: Sequence[Row], path: Path, title: str) -> Path:
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


def curve(points: Sequence[tuple[str, float | None, Row]], path: Path, title: str) -> Path:
    """Erasure against retention: a line a method over its strengths. ``points``: (method, strength, pooled row)."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    methods = list(dict.fromkeys(method for method, _, _ in points))
    for axis, (kind, name) in zip(axes, (("likeness", "benign SSIM"), ("kept", "attributes kept")), strict=True):
        for place, method in enumerate(methods):
            own = [(strength, row) for one, strength, row in points if one == method]
            colour = COLOURS[(place + 1) % len(COLOURS)]
            for cell, style in (("explicit", "--"), ("implicit", "-")):
                erased = [getattr(row, cell) for _, row in own]
                kept = [row.likeness.value if kind == "likeness" else row.kept for _, row in own]
                axis.errorbar(
                    kept,
                    [100 * value.value for value in erased],
                    yerr=_error(erased, 100),
                    xerr=_error([row.likeness for _, row in own]) if kind == "likeness" else None,
                    fmt=f"o{style}",
                    ms=4,
                    lw=1.4,
                    elinewidth=0.7,
                    color=colour,
                    alpha=1.0 if cell == "implicit" else 0.55,
                    label=f"{method}, {cell}",
                )
            for (strength, row), value in zip(own, [row.implicit for _, row in own], strict=True):
                if strength is not None:
                    spot = (row.likeness.value if kind == "likeness" else row.kept, 100 * value.value)
                    axis.annotate(f"{strength:g}", spot, textcoords="offset points", xytext=(5, 4), fontsize=8, color=colour)
        axis.set_xlabel(f"{name} (right is better)")
    axes[0].set_ylabel("concept still shown, % (down is better)")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return path
