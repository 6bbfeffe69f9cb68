"""The measurement itself: every arm paints its cells from the same seeds as the unprotected pipeline, and the judge looks.

What a cell gave is on disk as soon as it is done, so that a run may be stopped at any moment and goes on there.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safeguard_demo.world import CONCEPTS

from safeguard.audit import AuditSink
from safeguard.evaluation.arms import UNPROTECTED, Arm
from safeguard.evaluation.cell_store import CellStore
from safeguard.evaluation.harness import Harness
from safeguard.evaluation.prompt_sets import Cell, PromptCase, cases
from safeguard.evaluation.statistics import Pixels, likeness
from safeguard.plan.registry import Registry
from safeguard.sdk.adapter import shipped_files as adapter_files
from safeguard.sdk.eraser import Eraser

ATTRIBUTES: Final = ("subject", "colour", "scene")
KEPT: Final = 8  # pictures kept of each protected cell, for the contact sheet


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
class CellResult:
    """What one arm gave in one cell of n pictures."""

    arm: str
    cell: Cell
    cases: Sequence[PromptCase]
    found: dict[str, npt.NDArray[np.bool_]]  # per concept [n]
    right: dict[str, npt.NDArray[np.bool_]]  # per attribute [n]: as the prompt asks
    acted: dict[str, npt.NDArray[np.bool_]]  # per concept [n]: erased, by the decision records
    likeness: npt.NDArray[np.float64]  # SSIM to the unprotected picture [n]
    cpu_seconds: float  # processor time of all pictures, screening and recording included
    pixels: Pixels  # all of the unprotected ones, else the first few

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
    store = CellStore(out)
    plainly = Arm(UNPROTECTED, "", ())
    results: list[CellResult] = []
    wanted = sorted(dict.fromkeys(cell for arm in arms for cell in arm.cells), key=lambda cell: cell.concept is None)
    for cell in wanted:
        asked = cases(cell, settings.split, settings.count, settings.seed)
        plain = _cell(studio, plainly, cell, asked, settings, store, advance, None, audit)
        results.append(plain)
        for arm in arms:
            if cell in arm.cells:
                results.append(_cell(studio, arm, cell, asked, settings, store, advance, plain.pixels, audit))
    return results


def _cell(
    studio: Harness,
    arm: Arm,
    cell: Cell,
    asked: Sequence[PromptCase],
    settings: RunSettings,
    store: CellStore,
    advance: Callable[[str, int], None],
    before: Pixels | None,
    audit: AuditSink | None,
) -> CellResult:
    key = {**settings.to_dict(), **_what_acts(arm, studio)}
    kept = store.read(arm.name, cell.name, key)
    if kept is None:
        kept = _measure(studio, arm, f"{arm.name}: {cell.name}", asked, settings.batch, before, advance, audit)
        store.write(arm.name, cell.name, key, kept)
    else:
        advance(f"{arm.name}: {cell.name}", len(asked))
    return CellResult(
        arm.name,
        cell,
        asked,
        {name: kept[f"found {name}"] for name in CONCEPTS},
        {name: kept[f"right {name}"] for name in ATTRIBUTES},
        {name: kept[f"acted {name}"] for name in CONCEPTS},
        kept["likeness"],
        float(kept["cpu_seconds"]),
        kept["pixels"],
    )


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
    found = {"policy": arm.policy.revision, "screened": arm.screened, "erasers": code.hexdigest()}
    if studio.calibration is not None and any(one.activation == "adaptive" for one in arm.policy.concepts.values()):
        found["calibration"] = studio.calibration.digest
    return found


def shipped_files(eraser: Eraser) -> list[Path]:
    """The files of training that come with an eraser."""
    return adapter_files(eraser.name)


def _bytes_of(paths: Iterable[Path]) -> bytes:
    """What erasers were given by training: the contents of those paths that are files."""
    return b"".join(path.read_bytes() for path in paths if path.is_file())


def _measure(
    studio: Harness,
    arm: Arm,
    title: str,
    asked: Sequence[PromptCase],
    batch: int,
    before: Pixels | None,
    advance: Callable[[str, int], None],
    audit: AuditSink | None,
) -> dict[str, npt.NDArray[Any]]:
    parts: list[Pixels] = []
    acted: list[set[str]] = []
    seconds = 0.0
    with studio.under(arm.policy, screened=arm.screened, audit=audit) as guard:
        for start in range(0, len(asked), batch):
            some = asked[start : start + batch]
            begun = time.process_time()
            if guard is None:
                parts.append(studio.paint(some))
                acted += [set()] * len(some)
            else:
                with guard.request() as request:
                    parts.append(studio.paint(some))
                acted += [{one.concept for one in decision.applied} for decision in request.decisions]
            seconds += time.process_time() - begun
            advance(title, len(some))
    pixels = np.concatenate(parts)
    seen = studio.judge.predict(pixels)
    wanted = {name: [getattr(case.scene, "place" if name == "scene" else name) for case in asked] for name in ATTRIBUTES}
    return {
        **{f"found {name}": np.asarray(seen[name], dtype=bool) for name in CONCEPTS},
        **{f"right {name}": np.asarray(seen[name]) == np.asarray(wanted[name]) for name in ATTRIBUTES},
        **{f"acted {name}": np.array([name in names for names in acted]) for name in CONCEPTS},
        "likeness": np.ones(len(pixels)) if before is None else likeness(before, pixels),
        "cpu_seconds": np.array(seconds),
        "pixels": pixels if before is None else pixels[:KEPT],
    }


__all__ = ["ATTRIBUTES", "UNPROTECTED", "CellResult", "RunSettings", "evaluate", "images_of", "settings_of", "shipped_files"]
