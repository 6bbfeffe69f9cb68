"""The measured rows as a table: Markdown for files, rich for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from safeguard.evaluation.arms import UNPROTECTED
from safeguard.evaluation.statistics import Figure
from safeguard.evaluation.summary import SEEN, SummaryRow, by_judge
from safeguard.evaluation.targets import Verdict

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

FURTHER: Final = ("list", "template", "two", "both", "policy", "absent", "another")  # what is left, in cells that are named
SPARED: Final = ("absent untouched", "negative untouched")
HEAD = (
    "what", "method", "explicit", "implicit", "short", *FURTHER, "remains", "benign", *SPARED, "attributes kept", "benign SSIM",
    "benign untouched", "time",
)  # fmt: skip
OPTIONAL = ("explicit", "implicit", "short", *FURTHER, "remains", *SPARED)
NOT_MEASURED = {"value": None, "low": None, "high": None, "n": 0}  # by an older version
MODES = {
    "": "",
    "alone": "always on, each alone",
    "together": "always on, all at once",
    "screened": "opened by the screener",
    "adaptive": "opened by evidence",
    "adaptive-screened": "opened by evidence or the screener",
    "policy": "as the policy says",
}


def cells_of(row: SummaryRow) -> tuple[str, ...]:
    """One row as texts, in the order of `HEAD`."""
    what = row.concept or "all concepts"
    method = row.method if row.method == UNPROTECTED else f"{row.method}, {MODES.get(row.mode, row.mode)}"
    asked = (percent(figure) for figure in (row.explicit, row.implicit, row.short))
    further = (percent(row.further[name]) if name in row.further else "-" for name in FURTHER)
    shares = (*asked, *further, percent(row.remains), percent(row.benign), *(_spared(row, name) for name in SPARED))
    untouched = "-" if row.opened is None or not row.opened.n else f"{1 - row.opened.value:.1%}"
    return (what, method, *shares, _plain(row.kept, "{:.1%}"), number(row.likeness), untouched, _plain(row.time, "{:.2f}x"))


def _by_others(row: SummaryRow) -> list[tuple[str, ...]]:
    """The row again for each further judge, with what it sees and nothing else."""
    silent = ("attributes kept", "benign SSIM", "benign untouched", "time", *SPARED)
    lines = []
    for name in row.judges:
        cells = dict(zip(HEAD, cells_of(by_judge(row, name)), strict=True))
        lines.append(tuple((cells | {"what": f"by {name}"} | dict.fromkeys(silent, "-"))[column] for column in HEAD))
    return lines


def _spared(row: SummaryRow, name: str) -> str:
    """``97.5 %, SSIM 0.998``."""
    share, like = row.further.get(name), row.further.get(f"{name.split()[0]} SSIM")
    return "-" if share is None or like is None else f"{100 * share.value:.1f} %, SSIM {like.value:.3f}"


def percent(figure: Figure) -> str:
    """``2.5 % (1.1-5.6)``."""
    if not figure.n:
        return "-"
    return f"{100 * figure.value:.1f} % ({100 * figure.low:.1f}-{100 * figure.high:.1f})"


def briefly(figure: Figure) -> str:
    """``2.5 (1-6)``."""
    return f"{100 * figure.value:.1f} ({100 * figure.low:.0f}-{100 * figure.high:.0f})" if figure.n else "-"


def number(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})" if figure.n else "-"


def _plain(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def markdown(rows: Iterable[SummaryRow]) -> str:
    """A Markdown table. A kind of prompt that no row has measured has no column, nor have remains. Below each row stand the
    shares that further judges see.
    """
    table = [HEAD, *(line for row in rows for line in (cells_of(row), *_by_others(row)))]
    bare = [place for place, name in enumerate(HEAD) if name in OPTIONAL and all(line[place] == "-" for line in table[1:])]
    shown = [[cell for place, cell in enumerate(line) if place not in bare] for line in table]
    lines = [f"| {' | '.join(line)} |" for line in shown]
    lines.insert(1, "|" + "---|" * 2 + "---:|" * (len(shown[0]) - 2))
    return "\n".join(lines) + "\n"


_KEPT: Final = ("kept", 4, lambda row: _plain(100 * row.kept, "{:.0f}"))
_LIKENESS: Final = ("SSIM", 5, lambda row: _plain(row.likeness.value, "{:.3f}"))
# What stands behind the shares, by whether remains were measured: name, width and text. The rest is in the file.
_NUMBERS: Final[dict[bool, tuple[tuple[str, int, Callable[[SummaryRow], str]], ...]]] = {
    True: (("remains", 7, lambda row: _plain(100 * row.remains.value, "{:.1f}")), _KEPT, _LIKENESS),
    False: (
        ("benign", 6, lambda row: _plain(100 * row.benign.value, "{:.1f}")),
        _KEPT,
        _LIKENESS,
        ("time", 4, lambda row: _plain(row.time, "{:.2f}")),
    ),
}


def rich_tables(rows: Sequence[SummaryRow], title: str) -> Group:
    """The same for a terminal of 80 columns: one table a method and mode, the pooled row first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    measured = any(row.remains.n for row in rows)
    tables: list[Any] = [Text(title, style="bold"), Text("% of pictures, with 95 % intervals", style="dim")]
    for method, mode in dict.fromkeys((row.method, row.mode) for row in rows):
        heading = method if method == UNPROTECTED else f"{method}: {MODES.get(mode, mode)}"
        table = Table(title=heading, title_justify="left", title_style="bold cyan", box=None, padding=(0, 1, 0, 0))
        table.add_column("", width=11, no_wrap=True)
        for name in ("explicit", "implicit", "short"):
            table.add_column(name, justify="right", width=14, no_wrap=True)
        for name, width, _ in _NUMBERS[measured]:
            table.add_column(name, justify="right", width=width, no_wrap=True)
        for row in (row for row in rows if (row.method, row.mode) == (method, mode)):
            shares = (briefly(figure) for figure in (row.explicit, row.implicit, row.short))
            numbers = (read(row) for _, _, read in _NUMBERS[measured])
            table.add_row(row.concept or "all", *shares, *numbers, style="bold" if row.concept is None else "")
        own = [row for row in rows if (row.method, row.mode) == (method, mode)]
        tables += [Text(), table, *_further_table(own), *_judged_tables(own)]
    return Group(*tables)


def _further_table(rows: Sequence[SummaryRow]) -> list[Table]:
    """What was measured in cells that were named, if any, of one method and mode."""
    from rich.table import Table

    names = [name for name in (*FURTHER, *SPARED) if any(name in row.further for row in rows)]
    if names == ["another"]:  # nothing but what every run measures
        return []
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", width=11, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", max_width=9)
    for row in rows:
        found = (row.further.get(name) for name in names)
        shares = ("-" if figure is None else f"{100 * figure.value:.1f}" for figure in found)
        table.add_row(row.concept or "all", *shares, style="bold" if row.concept is None else "")
    return [table] if names else []


def _judged_tables(rows: Sequence[SummaryRow]) -> list[Table]:
    """What further judges see, one table a judge."""
    from rich.table import Table

    tables = []
    for name in rows[0].judges:
        table = Table(title=f"by {name}", title_justify="left", title_style="dim", box=None, padding=(0, 1, 0, 0))
        table.add_column("", width=11, no_wrap=True)
        for kind in SEEN:
            table.add_column(kind, justify="right", width=14 if kind in ("explicit", "implicit", "short") else 7, no_wrap=True)
        for row in rows:
            own = row.judges[name]
            long = [briefly(own[kind]) for kind in SEEN[:3]]
            table.add_row(row.concept or "all", *long, *(_plain(100 * own[kind].value, "{:.1f}") for kind in SEEN[3:]))
        tables.append(table)
    return tables


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("target", "mode", "what", "measured", "", title="Targets", title_justify="left", box=box.SIMPLE_HEAD)
    for verdict in verdicts:
        mark = "[green]met[/green]" if verdict.met else "[red]MISSED[/red]"
        table.add_row(verdict.target, verdict.mode, verdict.concept or "all concepts", f"{verdict.value:.4g}", mark)
    return table


def from_json(rows: Iterable[dict[str, Any]]) -> list[SummaryRow]:
    """Rows read back from a results file."""

    def value(number: float | None) -> float:
        return math.nan if number is None else number

    def figure(data: dict[str, Any]) -> Figure:
        return Figure(value(data["value"]), value(data["low"]), value(data["high"]), data["n"])

    return [
        SummaryRow(
            method=data["method"],
            mode=data["mode"],
            concept=data["concept"],
            explicit=figure(data["explicit"]),
            implicit=figure(data["implicit"]),
            short=figure(data.get("short", NOT_MEASURED)),
            remains=figure(data.get("remains", NOT_MEASURED)),
            benign=figure(data["benign"]),
            attributes={name: figure(attribute) for name, attribute in data["attributes"].items()},
            kept=value(data["attributes_kept"]),
            likeness=figure(data["likeness"]),
            time=value(data["time_ratio"]),
            opened=figure(data["benign_acted_on"]) if data["benign_acted_on"] else None,
            further={name: figure(share) for name, share in data.get("further", {}).items()},
            judges={name: {k: figure(share) for k, share in own.items()} for name, own in data.get("judges", {}).items()},
        )
        for data in rows
    ]
