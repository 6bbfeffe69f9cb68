"""What is measured on: cells of prompts, each prompt with a seed of its own, from a registered set or from a file."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from safeguard.errors import AssetError
from safeguard.evaluation.pipeline_sources import registered

GROUP: Final = "safeguard.prompt_sets"
COLUMNS: Final = ("prompt", "cell", "concept", "seed", "split")
KINDS: Final = ("explicit", "implicit", "short", "unsafe", "benign")
UNSAFE: Final = ("explicit", "implicit", "short")  # the kinds of cells that a concept has


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of prompt: ``explicit`` (the concept is named), ``implicit`` (it comes with the place), ``short`` (named, with
    little or nothing beside it), ``mixed`` (it comes with the place, and another is named), or ``benign``; of subjects of one
    ``colour`` only, or of all.
    """

    kind: str
    concept: str | None = None
    colour: str | None = None

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.kind, self.concept, self.colour)))


@dataclass(frozen=True, slots=True)
class PromptCase:
    """One picture to make.

    ``attributes`` are what the prompt asks for besides concepts, by name, for a judge to look for, and none that it leaves
    open; ``named`` the concepts that stand in the text; ``concepts`` all that the picture would show, named or not.
    """

    text: str
    seed: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()


BENIGN = Cell("benign")


class PromptSet(Protocol):
    """Prompts to measure on. Register a class of this kind, made without arguments, in the group ``safeguard.prompt_sets``.

    ``concepts`` are those it has cells of; ``attributes`` the names in every case's ``attributes``.
    """

    @property
    def concepts(self) -> tuple[str, ...]: ...
    @property
    def attributes(self) -> tuple[str, ...]: ...

    def cells(self, concepts: Sequence[str]) -> tuple[Cell, ...]:
        """The cells of these concepts, and the benign one."""

    def cases(self, cell: Cell, split: str, count: int, seed: int = 0) -> list[PromptCase]:
        """``count`` pictures of a cell, the same for the same arguments. Raises ValueError where there are not so many."""


class FilePrompts:
    """Prompts of a CSV or JSONL file.

    Columns: ``prompt``; ``cell``, one of explicit, implicit, short, unsafe (counted as explicit) and benign; ``concept``, empty
    for benign prompts; ``seed`` (else made from the prompt); ``split`` (else the prompt serves every split). Each further
    column is an attribute that the prompt asks for, such as ``subject``.

    Raises:
        AssetError: The file cannot be read, or a row cannot be used. The message names the row, never its prompt.
    """

    def __init__(self, path: Path) -> None:
        rows = list(_rows(path))
        if not rows:
            raise AssetError(f"{path}: holds no prompt; write one a row, with the columns {', '.join(COLUMNS[:3])}")
        self.attributes: tuple[str, ...] = tuple(key for key in rows[0][1] if key not in COLUMNS)
        self._cases: dict[Cell, list[tuple[str, PromptCase, bool]]] = {}
        for number, row in rows:
            cell = _cell_of(path, number, row)
            self._cases.setdefault(cell, []).append(self._case(path, number, row, cell))
        self.concepts: tuple[str, ...] = tuple(dict.fromkeys(cell.concept for cell in self._cases if cell.concept))

    def _case(self, path: Path, number: int, row: Mapping[str, Any], cell: Cell) -> tuple[str, PromptCase, bool]:
        """The split, the case, and whether its seed stands in the file."""
        seed, shown = str(row.get("seed") or "").strip(), (cell.concept,) if cell.concept else ()
        if seed and not seed.isdecimal():
            raise AssetError(f"{path}, row {number}: seed is no whole number of 0 or more; correct it or leave it empty")
        attributes = {name: str(row.get(name) or "") for name in self.attributes}
        named = shown if cell.kind in ("explicit", "short") else ()
        case = PromptCase(str(row["prompt"]), int(seed or 0), attributes, named, shown)
        return str(row.get("split") or ""), case, bool(seed)

    def cells(self, concepts: Sequence[str]) -> tuple[Cell, ...]:
        """Those cells of these concepts, and the benign one, that the file has prompts for."""
        return tuple(cell for cell in cells(concepts) if cell in self._cases)

    def cases(self, cell: Cell, split: str, count: int, seed: int = 0) -> list[PromptCase]:
        """The first ``count`` prompts of a cell and split, or all where there are fewer. Raises ValueError for no prompt."""
        own = [(case, fixed) for part, case, fixed in self._cases.get(cell, []) if part in ("", split)][:count]
        if not own:
            raise ValueError(f"the file has no prompts for the cell {cell.name!r} in split {split!r}")
        return [
            case if fixed else PromptCase(case.text, seed_of(case.text, seed), case.attributes, case.named, case.concepts)
            for case, fixed in own
        ]


def prompt_set(place: str | Path) -> PromptSet:
    """The prompt set of a file (``.csv`` or ``.jsonl``), or the registered one of a name.

    Raises:
        AssetError: There is no such file or name, or a row of the file cannot be used.
        PluginError: What is registered cannot be imported.
    """
    if Path(place).suffix in (".csv", ".jsonl"):
        return FilePrompts(Path(place))
    prompts: PromptSet = registered(GROUP, str(place), "prompt set", "name a .csv or .jsonl file")()
    return prompts


def cells(concepts: Sequence[str]) -> tuple[Cell, ...]:
    """Every cell of these concepts, and the benign one."""
    return (*(Cell(kind, concept) for concept in concepts for kind in UNSAFE), BENIGN)


def seed_of(text: str, seed: int) -> int:
    """A case's noise: it depends on ``seed`` and the prompt alone, so that every method paints the prompt from the same."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:4], "big")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers; the first row of data of a CSV file, below its head, is number 2."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise AssetError(f"{path}: cannot be read as UTF-8 text ({type(fault).__name__}); name another file") from fault
    if path.suffix == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True))
        yield from _whole_rows(path, ((reader.line_num, row) for row in reader))
    else:
        yield from _whole_rows(path, _objects(path, text))


def _objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as fault:
                raise AssetError(f"{path}, row {number}: is no JSON; write one object a line") from fault
            if not isinstance(row, dict):
                raise AssetError(f"{path}, row {number}: is no JSON object; write one object a line")
            yield number, row


def _whole_rows(path: Path, rows: Iterable[tuple[int, dict[Any, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in rows:
        if None in row:
            raise AssetError(f"{path}, row {number}: has more fields than the head; put fields with commas in quotes")
        if not str(row.get("prompt") or "").strip():
            raise AssetError(f"{path}, row {number}: has no prompt; fill the column 'prompt'")
        yield number, row


def _cell_of(path: Path, number: int, row: Mapping[str, Any]) -> Cell:
    kind, concept = str(row.get("cell") or "").strip(), str(row.get("concept") or "").strip()
    if kind not in KINDS:
        raise AssetError(f"{path}, row {number}: the column 'cell' must be one of {', '.join(KINDS)}")
    if (kind == "benign") == bool(concept):
        hint = "leave it empty for benign prompts" if concept else "name the concept that this prompt is about"
        raise AssetError(f"{path}, row {number}: the column 'concept' does not fit cell {kind!r}; {hint}")
    return Cell("explicit" if kind == "unsafe" else kind, concept or None)
