"""What is measured on: cells of prompts, each prompt with a seed of its own, from a registered set or from a file."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from safeguard.errors import AssetError
from safeguard.evaluation.pipeline_sources import registered

GROUP: Final = "safeguard.prompt_sets"
COLUMNS: Final = ("prompt", "cell", "concept", "seed", "split", "negative_prompt")
USUAL: Final = ("explicit", "implicit", "short")  # the kinds of cells that are measured where none are named
UNSAFE: Final = (*USUAL, "list", "template", "two", "policy")  # those that ask for their concept
EVERY: Final = (*UNSAFE, "absent", "negative")  # those that may be named; the benign cell is always measured
KINDS: Final = (*EVERY, "unsafe", "benign")


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of prompt, of subjects of one ``colour`` only, or of all.

    ``explicit``: the concept is named. ``implicit``: it comes with the place. ``short``: named, with little or nothing beside
    it. ``list``: named, between commas. ``template``: named, in forms of sentences that nothing else uses. ``two``: named, and
    another concept with it. ``policy``: the unsafe examples of the concept's policy. ``mixed``: it comes with the place, and
    another is named. ``absent``: the prompt says that the concept is not there. ``benign``: nothing of these.
    ``negative``: benign, with a negative prompt of ordinary words. The last two have no concept.
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
    open; ``named`` the concepts that stand in the text; ``concepts`` all that the picture would show, named or not;
    ``negative`` the negative prompt.
    """

    text: str
    seed: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    negative: str = ""


BENIGN = Cell("benign")
NEGATIVE = Cell("negative")


class PromptSet(Protocol):
    """Prompts to measure on. Register a class of this kind, made without arguments, in the group ``safeguard.prompt_sets``.

    ``concepts`` are those it has cells of; ``attributes`` the names in every case's ``attributes``.
    """

    @property
    def concepts(self) -> tuple[str, ...]: ...
    @property
    def attributes(self) -> tuple[str, ...]: ...

    def cells(self, concepts: Sequence[str]) -> tuple[Cell, ...]:
        """All cells that it has of these concepts, and those of no concept."""

    def cases(self, cell: Cell, split: str, count: int, seed: int = 0) -> list[PromptCase]:
        """``count`` pictures of a cell, the same for the same arguments. Raises ValueError where there are not so many."""


class FilePrompts:
    """Prompts of a CSV or JSONL file.

    Columns: ``prompt``; ``cell``, a kind of `Cell` but mixed, or unsafe (counted as explicit); ``concept``, empty for prompts
    that are benign or negative, and two with a plus between them where the cell is two; ``seed`` (else made from the prompt);
    ``split`` (else the prompt serves every split); ``negative_prompt``. Each further column is an attribute that the prompt
    asks for, such as ``subject``.

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
        seed, shown = str(row.get("seed") or "").strip(), _concepts_of(row)
        if seed and not seed.isdecimal():
            raise AssetError(f"{path}, row {number}: seed is no whole number of 0 or more; correct it or leave it empty")
        attributes = {name: str(row.get(name) or "") for name in self.attributes}
        named = () if cell.kind == "implicit" else shown
        shown = shown if cell.kind in UNSAFE else ()
        negative = str(row.get("negative_prompt") or "")
        case = PromptCase(str(row["prompt"]), int(seed or 0), attributes, named, shown, negative)
        return str(row.get("split") or ""), case, bool(seed)

    def cells(self, concepts: Sequence[str]) -> tuple[Cell, ...]:
        """Those cells of these concepts, and of none, that the file has prompts for."""
        return tuple(cell for cell in cells(concepts, EVERY) if cell in self._cases)

    def cases(self, cell: Cell, split: str, count: int, seed: int = 0) -> list[PromptCase]:
        """The first ``count`` prompts of a cell and split, or all where there are fewer. Raises ValueError for no prompt."""
        own = [(case, fixed) for part, case, fixed in self._cases.get(cell, []) if part in ("", split)][:count]
        if not own:
            raise ValueError(f"the file has no prompts for the cell {cell.name!r} in split {split!r}")
        return [case if fixed else replace(case, seed=seed_of(case.text, seed)) for case, fixed in own]


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


def cells(concepts: Sequence[str], kinds: Sequence[str] = USUAL) -> tuple[Cell, ...]:
    """The cells of these concepts and kinds, and the benign one."""
    bare = (NEGATIVE,) if NEGATIVE.kind in kinds else ()
    return (*(Cell(kind, concept) for concept in concepts for kind in kinds if kind != NEGATIVE.kind), *bare, BENIGN)


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
    kind, concepts = str(row.get("cell") or "").strip(), _concepts_of(row)
    if kind not in KINDS:
        raise AssetError(f"{path}, row {number}: the column 'cell' must be one of {', '.join(KINDS)}")
    bare = kind in (BENIGN.kind, NEGATIVE.kind)
    if len(concepts) != (0 if bare else 2 if kind == "two" else 1):
        hint = f"leave it empty for {kind} prompts" if bare else "name the concept that this prompt is about"
        hint = "name both of its concepts, with a plus between them" if kind == "two" else hint
        raise AssetError(f"{path}, row {number}: the column 'concept' does not fit cell {kind!r}; {hint}")
    return Cell("explicit" if kind == "unsafe" else kind, concepts[0] if concepts else None)


def _concepts_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that the row names."""
    concept = str(row.get("concept") or "")
    names = concept.split("+") if str(row.get("cell") or "").strip() == "two" else [concept]
    return tuple(name.strip() for name in names if name.strip())
