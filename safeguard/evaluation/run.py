"""The measurement itself: every arm paints its cells from the same seeds as the unprotected pipeline, and the judge looks.

What a cell gave is on disk as soon as it is done, so that a run may be stopped at any moment and goes on there.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from safeguard._log import get_logger
from safeguard.audit import AuditSink
from safeguard.errors import SafeguardError
from safeguard.evaluation.arms import UNPROTECTED, Arm
from safeguard.evaluation.cell_store import CellStore
from safeguard.evaluation.harness import AreaJudge, Harness
from safeguard.evaluation.prompt_sets import EVERY, Cell, PromptCase
from safeguard.evaluation.statistics import Pixels, likeness
from safeguard.plan.registry import Registry
from safeguard.sdk.adapter import shipped_files as adapter_files
from safeguard.sdk.eraser import Eraser

KEPT: Final = 8  # pictures kept of each protected cell, for the contact sheet
log = get_logger("safeguard.evaluation")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Everything that a cell's figures depend on besides its policy."""

    split: str
    count: int
    seed: int
    batch: int
    steps: int
    guidance: float
    pipeline: str  # digest of its weights

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Sighting:
    """What a further judge saw in the n pictures of a cell: as ``found`` and ``areas`` of `CellResult`."""

    found: dict[str, npt.NDArray[np.bool_]]
    areas: dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class CellResult:
    """What one arm gave in one cell of n pictures."""

    arm: str
    cell: Cell
    cases: Sequence[PromptCase]
    found: dict[str, npt.NDArray[np.bool_]]  # per concept [n]
    right: dict[str, npt.NDArray[np.bool_]]  # per attribute, of the pictures whose prompt asks for it: as it asks
    acted: dict[str, npt.NDArray[np.bool_]]  # per concept [n]: erased, by the decision records
    likeness: npt.NDArray[np.float64]  # SSIM to the unprotected picture [n]
    cpu_seconds: float  # processor time of all pictures, screening and recording included
    pixels: Pixels  # all of the unprotected ones, else the first few
    areas: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)  # per concept [n], where the judge measures them
    sightings: dict[str, Sighting] = field(default_factory=dict)  # of further judges, by name

    @property
    def count(self) -> int:
        return len(self.likeness)


def settings_of(studio: Harness, split: str, count: int, seed: int, batch: int) -> RunSettings:
    return RunSettings(split, count, seed, batch, studio.steps, studio.guidance, studio.digest())


def images_of(arms: Sequence[Arm], count: int) -> int:
    """How many pictures a run paints."""
    return count * sum(len(arm.cells) for arm in arms)


def evaluate(
    studio: Harness,
    arms: Sequence[Arm],
    settings: RunSettings,
    *,
    out: Path | None = None,
    audit: AuditSink | None = None,
    advance: Callable[[str, int], None] = lambda what, images: None,
) -> list[CellResult]:
    """Paint and judge every cell of every arm, the unprotected pipeline first. ``out`` keeps what is done; ``audit`` gets a
    record of every protected picture.

    ``advance`` is told of every batch: what is under way, and how many pictures it brought.
    """
    arms = [_offered(studio, arm) for arm in arms]
    run = _Run(studio, settings, CellStore(out), audit, advance)
    plainly = Arm(UNPROTECTED, "", ())
    results: list[CellResult] = []
    wanted = sorted(dict.fromkeys(cell for arm in arms for cell in arm.cells), key=lambda cell: cell.concept is None)
    run.check(wanted)
    for cell in wanted:
        cases = studio.prompt_set.cases(cell, settings.split, settings.count, settings.seed)
        plain = run.cell(plainly, cell, cases, None)
        results.append(plain)
        results += [run.cell(arm, cell, cases, plain.pixels) for arm in arms if cell in arm.cells]
    return results


def _offered(studio: Harness, arm: Arm) -> Arm:
    """The arm with those of a concept's cells that there are prompts for: not every file has all kinds."""
    concepts = dict.fromkeys(cell.concept for cell in arm.cells if cell.concept)
    there = studio.prompt_set.cells(list(concepts))
    return replace(arm, cells=tuple(cell for cell in arm.cells if cell.kind not in EVERY or cell in there))


@dataclass(frozen=True, eq=False)
class _Run:
    """One measurement, and what all of its cells share."""

    studio: Harness
    settings: RunSettings
    store: CellStore
    audit: AuditSink | None
    advance: Callable[[str, int], None]
    attributes: tuple[str, ...] = field(init=False)  # those that the prompts ask for and the judge tells

    def __post_init__(self) -> None:
        known = self.studio.judge.attributes
        object.__setattr__(self, "attributes", tuple(name for name in known if name in self.studio.prompt_set.attributes))

    def check(self, cells: Iterable[Cell]) -> None:
        """Raises SafeguardError, before anything is painted, for a concept that the judge does not know."""
        asked = {cell.concept for cell in cells if cell.concept}
        for name, judge in {"": self.studio.judge, **self.studio.further}.items():
            unknown = sorted(asked - set(judge.concepts))
            if unknown:
                who, knows = f"the judge {name}".strip(), ", ".join(judge.concepts)
                raise SafeguardError(f"{who} knows no {', '.join(unknown)}; it knows {knows}: choose another judge or concepts")

    def cell(self, arm: Arm, cell: Cell, cases: Sequence[PromptCase], before: Pixels | None) -> CellResult:
        """One arm's pictures of a cell, from the store or painted now. ``before`` are the unprotected ones."""
        title = f"{arm.name}: {cell.name}"
        key = {**self.settings.to_dict(), "judge": type(self.studio.judge).__name__, **_what_acts(arm, self.studio)}
        arrays = self.store.read(arm.name, cell.name, key)
        missing = [name for name in self.studio.further if arrays is not None and not _looked(arrays, name)]
        if arrays is None or (missing and len(arrays["pixels"]) < len(cases)):
            if missing:
                log.warning("too_few_pictures_kept_painting_again", cell=title, judges=missing)
            arrays = self._measure(arm, title, cases, before)
            self.store.write(arm.name, cell.name, key, arrays)
        else:
            self.advance(title, len(cases))
            if missing:
                for name in missing:
                    arrays |= self._looks(name, arrays["pixels"])
                self.store.write(arm.name, cell.name, key, arrays)
        return CellResult(
            arm.name,
            cell,
            cases,
            {name: arrays[f"found {name}"] for name in self.studio.judge.concepts},
            {name: arrays[f"right {name}"] for name in self.attributes},
            {name: arrays[f"acted {name}"] for name in self._may_act(arm)},
            arrays["likeness"],
            float(arrays["cpu_seconds"]),
            arrays["pixels"],
            {name: arrays[f"area {name}"] for name in self.studio.judge.concepts if f"area {name}" in arrays},
            {name: self._sighting(name, arrays) for name in self.studio.further},
        )

    def _looks(self, name: str, pixels: Pixels) -> dict[str, npt.NDArray[Any]]:
        """What a further judge sees, as it is stored."""
        judge = self.studio.further[name]
        seen, areas = judge.predict(pixels), judge.areas(pixels) if isinstance(judge, AreaJudge) else {}
        found = {_by(name, "found", concept): np.asarray(seen[concept], dtype=bool) for concept in judge.concepts}
        return found | {_by(name, "area", concept): np.asarray(share, dtype=np.float64) for concept, share in areas.items()}

    def _sighting(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Sighting:
        names = {
            concept: (_by(name, "found", concept), _by(name, "area", concept)) for concept in self.studio.further[name].concepts
        }
        return Sighting(
            {concept: arrays[found] for concept, (found, _) in names.items()},
            {concept: arrays[area] for concept, (_, area) in names.items() if area in arrays},
        )

    def _may_act(self, arm: Arm) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.studio.judge.concepts, *(arm.policy.concepts if arm.policy else ()))))

    def _measure(self, arm: Arm, title: str, cases: Sequence[PromptCase], before: Pixels | None) -> dict[str, npt.NDArray[Any]]:
        pixels, acted, seconds = self._paint(arm, title, cases)
        judge = self.studio.judge
        seen = judge.predict(pixels)
        areas = judge.areas(pixels) if isinstance(judge, AreaJudge) else {}
        return {
            **{f"area {name}": np.asarray(share, dtype=np.float64) for name, share in areas.items()},
            **{f"found {name}": np.asarray(seen[name], dtype=bool) for name in self.studio.judge.concepts},
            **{f"right {name}": _as_asked(name, cases, seen[name]) for name in self.attributes},
            **{f"acted {name}": np.array([name in names for names in acted]) for name in self._may_act(arm)},
            "likeness": np.ones(len(pixels)) if before is None else likeness(before, pixels),
            "cpu_seconds": np.array(seconds),
            "pixels": pixels if before is None else pixels[:KEPT],
            **{label: seen for name in self.studio.further for label, seen in self._looks(name, pixels).items()},
        }

    def _paint(self, arm: Arm, title: str, cases: Sequence[PromptCase]) -> tuple[Pixels, list[set[str]], float]:
        """The pictures, the concepts that were erased in each, and the processor time of all."""
        parts: list[Pixels] = []
        acted: list[set[str]] = []
        seconds = 0.0
        with self.studio.under(arm.policy, screened=arm.screened, audit=self.audit) as guard:
            for start in range(0, len(cases), self.settings.batch):
                some = cases[start : start + self.settings.batch]
                begun = time.process_time()
                if guard is None:
                    parts.append(self.studio.paint(some))
                    acted += [set()] * len(some)
                else:
                    with guard.request() as request:
                        parts.append(self.studio.paint(some))
                    acted += [{effect.concept for effect in decision.applied} for decision in request.decisions]
                seconds += time.process_time() - begun
                self.advance(title, len(some))
        return np.concatenate(parts), acted, seconds


def _by(name: str, what: str, concept: str) -> str:
    """Under what a further judge's verdicts are stored."""
    return f"{name}: {what} {concept}"


def _looked(arrays: Mapping[str, Any], name: str) -> bool:
    return any(key.startswith(_by(name, "found", "")) for key in arrays)


def _as_asked(name: str, cases: Sequence[PromptCase], seen: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Of the pictures whose prompt asks for an attribute, whether they have it."""
    pairs = ((case.attributes[name], value) for case, value in zip(cases, seen, strict=True) if name in case.attributes)
    return np.array([asked == value for asked, value in pairs], dtype=bool)


def _what_acts(arm: Arm, studio: Harness) -> dict[str, Any]:
    """What a protected cell depends on besides the settings: the policy, the code of its erasers with the files of their
    training, and what opens them.
    """
    if arm.policy is None:
        return {"policy": None}
    registry, code = Registry(), hashlib.sha256()
    for name in sorted({concept.eraser for concept in arm.policy.concepts.values()}):
        module = inspect.getmodule(type(registry.get(name)))
        code.update(inspect.getsource(module).encode() if module is not None else name.encode())
        code.update(_bytes_of(shipped_files(registry.get(name))))
    named = {str(value) for concept in arm.policy.concepts.values() for value in concept.params.values()}
    code.update(_bytes_of(Path(value) for value in sorted(named)))
    facts = {"policy": arm.policy.revision, "screened": arm.screened, "erasers": code.hexdigest()}
    if studio.calibration is not None and any(item.activation == "adaptive" for item in arm.policy.concepts.values()):
        facts["calibration"] = studio.calibration.digest
    return facts


def shipped_files(eraser: Eraser) -> list[Path]:
    """The files of training that come with an eraser."""
    return adapter_files(eraser.name)


def _bytes_of(paths: Iterable[Path]) -> bytes:
    """What erasers were given by training: the contents of those paths that are files."""
    return b"".join(path.read_bytes() for path in paths if path.is_file())


__all__ = ["UNPROTECTED", "CellResult", "RunSettings", "Sighting", "evaluate", "images_of", "settings_of", "shipped_files"]
