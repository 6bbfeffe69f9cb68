"""Trained directions: what is added to a feature of one pipeline for a concept, in a file of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safeguard.erasing.fingerprint import Fingerprint
from safeguard.errors import AssetError, CapabilityError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA: Final = "safeguard.dev/direction/v1"
FOLDERS: Final = "SAFEGUARD_DIRECTIONS"  # of the environment: folders in which directions are looked for, too


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """One concept's direction: ``vector`` [C, H, W] or [C], to be added at ``module`` of the pipeline of ``fingerprint``.

    ``method`` names the training that made it, ``settings`` its numbers, ``report`` what it measured.
    """

    vector: Tensor
    method: str
    concept: str
    module: str
    fingerprint: Fingerprint
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        said = {
            "schema": SCHEMA,
            "method": self.method,
            "concept": self.concept,
            "module": self.module,
            "pipeline": json.dumps(self.fingerprint.to_dict()),
            "settings": json.dumps(dict(self.settings), sort_keys=True),
            "report": json.dumps(dict(self.report), sort_keys=True),
        }
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part")
        save_file({"vector": self.vector.detach().cpu().contiguous()}, part, said)
        os.replace(part, place)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Direction:
        """Read a file that `save` wrote. Raises AssetError for one that is missing or is none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
                if said.get("schema") != SCHEMA:
                    raise ValueError("it has another schema, or none")
                vector = file.get_tensor("vector")
            if vector.dim() not in (1, 3) or not vector.isfinite().all():
                raise ValueError("its vector is no [C] or [C, H, W] of finite numbers")
            bound = Fingerprint.from_dict(json.loads(said["pipeline"]))
            settings, report = json.loads(said["settings"]), json.loads(said["report"])
            return cls(vector, said["method"], said["concept"], said["module"], bound, settings, report)
        except FileNotFoundError as fault:
            raise AssetError(f"{path}: there is no such direction; train one, or say where it is") from fault
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
            raise AssetError(f"{path}: this is no direction that training wrote ({fault}); train it anew") from fault

    def require(self, fingerprint: Fingerprint, eraser: str) -> None:
        """Raises CapabilityError where it was trained on another pipeline."""
        difference = self.fingerprint.differs(fingerprint)
        if difference is not None:
            raise CapabilityError(
                f"the direction of {self.concept!r} does not fit this {fingerprint.pipeline}: {difference}; train one on this "
                "pipeline",
                pipeline=fingerprint.pipeline,
                eraser=eraser,
                missing="direction",
            )


def find_direction(concept: str, method: str, fingerprint: Fingerprint, folders: Sequence[Path] = ()) -> Direction | None:
    """The direction of that concept that ``method`` trained on that pipeline: in one of ``folders``, or of those that the
    environment variable SAFEGUARD_DIRECTIONS names, which come first. None where there is none.
    """
    for path in _files([*map(Path, filter(None, os.environ.get(FOLDERS, "").split(os.pathsep))), *folders], concept):
        found = Direction.load(path)
        if (found.concept, found.method) == (concept, method) and found.fingerprint.differs(fingerprint) is None:
            return found
    return None


def _files(folders: Sequence[Path], concept: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.glob(f"**/{concept}.safetensors"))
