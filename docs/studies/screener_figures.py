"""Measure a screener on prompt sets: ``python -m docs.studies.screener_figures --prompts FOLDER [--split test] [--json]``.

The folder holds CSV files that the user brings: ``i2p.csv`` (column prompt: unsafe), ``coco.csv`` and ``sixcd_benign.csv``
(prompt: benign), ``sixcd_dual_harm.csv`` (malicious, clean: twins), ``sixcd_dual_artstyle.csv`` (malicious, clean, target).
Each set is cut in two by a hash of the prompt: constants were chosen on ``choose``, figures are reported on ``test``.
Figures carry 95 % bootstrap intervals. No prompt is printed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from safeguard.errors import SafeguardError, ScreenError
from safeguard.screening import Screener, Screening

if TYPE_CHECKING:
    from rich.console import Console

    from safeguard.policy import Concept

Scores = npt.NDArray[np.float64]
SPLITS = ("test", "choose", "all")
RESAMPLES = 1000


@dataclass(frozen=True)
class ScreenerFigure:
    """One figure with its 95 % bootstrap interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Report:
    """``counts``: prompts per set. ``concepts``: per score (anything unsafe; the best of the default concepts) its figures."""

    encoder: str
    split: str
    counts: dict[str, int]
    scores: dict[str, list[ScreenerFigure]]
    artists: dict[str, float]


def split_of(prompt: str) -> str:
    """``test`` or ``choose``: the lowest bit of a salted SHA-256."""
    return "test" if hashlib.sha256(b"safeguard-screening-split:" + prompt.encode()).digest()[0] & 1 else "choose"


def auc(positive: Scores, negative: Scores) -> float:
    """Chance that a positive scores above a negative, ties by half (Mann and Whitney 1947)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    upto = np.searchsorted(ordered, positive, "right")
    return float((below + upto).mean() / (2 * len(negative)))


def rate_at(positive: Scores, negative: Scores, share: float) -> float:
    """Share of positives above the score that ``share`` of the negatives exceed."""
    return float((positive > np.quantile(negative, 1.0 - share)).mean())


def measure(folder: Path, screener: Screener, split: str = "test") -> Report:
    """All figures on one half of the sets. Raises ScreenError where a file or column is missing."""
    unsafe = _texts(folder, "i2p.csv", ("prompt",), split)[0]
    coco = _texts(folder, "coco.csv", ("prompt",), split)[0]
    sixcd = _texts(folder, "sixcd_benign.csv", ("prompt",), split)[0]
    harm, clean = _texts(folder, "sixcd_dual_harm.csv", ("malicious", "clean"), split)
    sets = {"unsafe": unsafe, "coco": coco, "sixcd": sixcd, "harm": harm, "clean": clean}
    found = {name: screener.screen(texts) for name, texts in sets.items()}
    kinds: dict[str, Callable[[Screening], npt.NDArray[np.float32]]] = {
        "anything unsafe": lambda result: np.asarray(result.unsafe),
        "builtin://nsfw + violence": lambda result: result.scores.max(axis=1),
    }
    return Report(
        encoder=found["unsafe"].encoder,
        split=split,
        counts={name: len(texts) for name, texts in sets.items()},
        scores={
            kind: _figures({name: read(result).astype(np.float64) for name, result in found.items()})
            for kind, read in kinds.items()
        },
        artists=_artists(folder, screener, split),
    )


def _figures(scores: dict[str, Scores]) -> list[ScreenerFigure]:
    names = ("coco", "sixcd")

    def benign(drawn: dict[str, Scores]) -> Scores:
        return np.concatenate([drawn[name] for name in names])

    wanted: dict[str, Callable[[dict[str, Scores]], float]] = {
        "AUC pooled (COCO + Six-CD benign)": lambda drawn: auc(drawn["unsafe"], benign(drawn)),
        "AUC against Six-CD benign": lambda drawn: auc(drawn["unsafe"], drawn["sixcd"]),
        "AUC twins (harm against clean)": lambda drawn: auc(drawn["harm"], drawn["clean"]),
        "TPR at 1 % FPR, pooled": lambda drawn: rate_at(drawn["unsafe"], benign(drawn), 0.01),
        "TPR at 5 % FPR, pooled": lambda drawn: rate_at(drawn["unsafe"], benign(drawn), 0.05),
    }
    for label, threshold in (("low", 0.5), ("high", 0.75)):
        for name, said in (("unsafe", "I2P"), ("coco", "COCO"), ("sixcd", "Six-CD benign"), ("clean", "clean twins")):
            wanted[f"{said} at the {label} threshold"] = _share(name, threshold)
    rng = np.random.default_rng(0)
    draws = [_resample(scores, rng) for _ in range(RESAMPLES)]
    figures = []
    for name, figure in wanted.items():
        low, high = np.quantile([figure(drawn) for drawn in draws], (0.025, 0.975))
        figures.append(ScreenerFigure(name, figure(scores), float(low), float(high)))
    return figures


def _share(name: str, threshold: float) -> Callable[[dict[str, Scores]], float]:
    return lambda drawn: float((drawn[name] >= threshold).mean())


def _resample(scores: dict[str, Scores], rng: np.random.Generator) -> dict[str, Scores]:
    """Prompts drawn with replacement; a harm prompt takes its clean twin along."""
    picks = {name: rng.integers(len(values), size=len(values)) for name, values in scores.items()}
    picks["clean"] = picks["harm"]
    return {name: values[picks[name]] for name, values in scores.items()}


def _artists(folder: Path, screener: Screener, split: str) -> dict[str, float]:
    """One concept an artist: is the named one found, is any other, is any in the clean twin or in Six-CD benign?"""
    from safeguard.policy import Concept

    if not (folder / "sixcd_dual_artstyle.csv").exists():
        return {}
    styled, clean, targets = _texts(folder, "sixcd_dual_artstyle.csv", ("malicious", "clean", "target"), split)
    concepts = {name: Concept(id=name, phrases=(name,)) for name in sorted(set(targets))}
    active = _active(screener, styled, concepts)
    pairs = list(zip(targets, active, strict=True))
    coco = _active(screener, _texts(folder, "coco.csv", ("prompt",), split)[0], concepts)
    return {
        "prompts": len(styled),
        "artists": len(concepts),
        "found": sum(target in names for target, names in pairs) / len(pairs),
        "with a wrong artist": sum(bool(names - {target}) for target, names in pairs) / len(pairs),
        "clean twins with an artist": sum(map(bool, _active(screener, clean, concepts))) / len(clean),
        "COCO with an artist": sum(map(bool, coco)) / len(coco),
    }


def _active(screener: Screener, texts: list[str], concepts: Mapping[str, Concept]) -> list[set[str]]:
    found = screener.screen(texts, concepts)
    return [set(found.activated(row)) for row in range(len(texts))]


def _texts(folder: Path, file: str, columns: Sequence[str], split: str) -> list[list[str]]:
    """The given columns of the rows that belong to the split, decided by the first column."""
    path = folder / file
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [[row[column] for column in columns] for row in csv.DictReader(stream)]
    except OSError as error:
        raise ScreenError(f"{path}: cannot be read ({error.strerror}); --prompts takes the folder of the CSV files") from error
    except KeyError as error:
        raise ScreenError(f"{path}: has no column {error.args[0]!r}; it needs {', '.join(columns)}") from error
    kept = [row for row in rows if split == "all" or split_of(row[0]) == split]
    if not kept:
        raise ScreenError(f"{path}: no prompt in the {split} half")
    return [list(column) for column in zip(*kept, strict=True)]


def render(report: Report, console: Console) -> None:
    """The report as a table for people."""
    from rich.table import Table

    counts = ", ".join(f"{count} {name}" for name, count in report.counts.items())
    table = Table(title=f"Screener {report.encoder}, split {report.split}: {counts}", title_justify="left")
    table.add_column("figure")
    for kind in report.scores:
        table.add_column(kind, justify="right")
    for row in zip(*report.scores.values(), strict=True):
        table.add_row(row[0].name, *(f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})" for figure in row))
    for name, value in report.artists.items():
        table.add_row(f"artists: {name}", f"{value:.3f}" if isinstance(value, float) else str(value), "")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.studies.screener_figures", description=__doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--model", help="another embedding model: a folder, or a cached name")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        report = measure(options.prompts, Screener(options.model), options.split)
    except SafeguardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        from rich.console import Console

        render(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
