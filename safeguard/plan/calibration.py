"""How evidence is read: one gauge a concept, fitted on one pipeline, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from safeguard._io import write_whole
from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk.fingerprint import Fingerprint

SCHEMA: Final = "safeguard.dev/calibration/v1"
PHRASES: Final = "phrases"
DIFFERENCE: Final = "difference"
EVIDENCE: Final = (DIFFERENCE, PHRASES)
"""What a prompt's answer is measured along: what texts with the concept answer that the same texts without it do not
(`safeguard.sdk.contrast_attention`), or what the concept's phrases answer by themselves (`safeguard.sdk.concept_attention`). A
file that says nothing of it was made by an older version, with the phrases.
"""


@dataclass(frozen=True, slots=True)
class Detector:
    """How the evidence for one concept is read: ``weights`` . features + ``offset`` is its score, in standard deviations above
    what prompts without the concept show. Over ``threshold`` the concept opens. ``report`` says how it did on the prompts
    that it was fitted on. It holds for a concept with these ``phrases``, ``contrasts`` and ``anchor``.
    """

    phrases: tuple[str, ...]
    weights: tuple[float, ...]
    offset: float
    threshold: float
    report: Mapping[str, float] = field(default_factory=dict)
    contrasts: tuple[Mapping[str, str], ...] = ()
    anchor: str | None = None

    @classmethod
    def of(cls, concept: Concept, weights: Sequence[float], offset: float, threshold: float, **report: float) -> Detector:
        """For a concept as it is now."""
        return cls(concept.phrases, tuple(weights), offset, threshold, report, concept.contrasts, concept.anchor)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Detector:
        """From what stands in a file. Raises KeyError, TypeError or ValueError for anything else."""
        phrases, weights = tuple(map(str, data["phrases"])), tuple(map(float, data["weights"]))
        contrasts = tuple({side: str(pair[side]) for side in ("with", "without")} for pair in data.get("contrasts", ()))
        anchor = None if data.get("anchor") is None else str(data["anchor"])
        how = float(data["offset"]), float(data["threshold"]), dict(data["report"])
        return cls(phrases, weights, *how, contrasts, anchor)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a file: files of older versions have no contrasts and no anchor."""
        fields = {name: getattr(self, name) for name in ("phrases", "weights", "offset", "threshold", "report")}
        pairs = {"contrasts": [dict(pair) for pair in self.contrasts]} if self.contrasts else {}
        return {**fields, **pairs, **({} if self.anchor is None else {"anchor": self.anchor})}

    def knows(self, concept: Concept) -> bool:
        """Whether it was fitted to the concept as it is now."""
        return (self.phrases, self.contrasts, self.anchor) == (concept.phrases, concept.contrasts, concept.anchor)

    def score(self, features: Sequence[float]) -> float:
        """Raises CapabilityError where there are other features than were calibrated."""
        if len(features) != len(self.weights):
            raise CapabilityError(
                f"the calibration knows {len(self.weights)} features of a concept and the pipeline shows {len(features)}; "
                "calibrate this pipeline",
                missing="calibration",
            )
        score = sum(weight * feature for weight, feature in zip(self.weights, features, strict=True)) + self.offset
        return score if math.isfinite(score) else math.inf  # what cannot be read opens


UNBOUND: Final = Fingerprint("", (), ())


@dataclass(frozen=True, slots=True)
class Calibration:
    """The gauges of some concepts on one pipeline. ``rate`` is the share of prompts without a concept that may open it;
    ``step`` the step of a run at which images are looked at, from 0; ``evidence`` what is measured, one of `EVIDENCE`.
    ``residuals`` read what the image tokens of the last step still show of a concept; empty where none were fitted. ``midway``
    has the same for earlier calls, by the share of the schedule at which they are made.
    ``fingerprint`` is `UNBOUND` while it is being made.
    """

    fingerprint: Fingerprint
    gauges: Mapping[str, Detector]
    rate: float
    policy_revision: str
    step: int = 0
    evidence: str = DIFFERENCE
    residuals: Mapping[str, Detector] = field(default_factory=dict)
    midway: Mapping[float, Mapping[str, Detector]] = field(default_factory=dict)
    origin: str = field(default="", compare=False)

    @classmethod
    def blank(cls, concepts: Iterable[Concept], rate: float, policy_revision: str, step: int = 0) -> Calibration:
        """For looking only: it covers ``concepts``, judges none of them, and fits any pipeline."""
        gauges = {concept.id: Detector.of(concept, (), 0.0, math.inf) for concept in concepts}
        return cls(UNBOUND, gauges, rate, policy_revision, step)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file that `save` wrote. Raises CapabilityError for a file that is none."""
        try:
            data = json.loads(Path(path).read_text("utf-8"))
            if data["schema"] != SCHEMA:
                raise ValueError("another schema")
            gauges, residuals = (_gauges(data.get(key, {})) for key in ("concepts", "residuals"))
            midway = {float(share): _gauges(entries) for share, entries in data.get("midway", {}).items()}
            fingerprint, evidence = Fingerprint.from_dict(data["pipeline"]), str(data.get("evidence", PHRASES))
            if evidence not in EVIDENCE or "concepts" not in data:
                raise ValueError(f"evidence {evidence!r}")
            if not all(0 < share < 1 for share in midway):
                raise ValueError("midway is at shares of the schedule above 0 and below 1")
            if (residuals or midway) and evidence != DIFFERENCE:
                raise ValueError(f"residuals beside evidence {evidence!r}")
            how = float(data["rate"]), str(data["policy_revision"]), int(data["step"]), evidence
            return cls(fingerprint, gauges, *how, residuals, midway, os.fspath(path))
        except FileNotFoundError as fault:
            raise CapabilityError(f"{path}: there is no such calibration file", missing="calibration") from fault
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
            raise CapabilityError(
                f"{path}: this is no calibration file ({fault}); make one with safeguard calibrate", missing="calibration"
            ) from fault

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "schema": SCHEMA,
            "pipeline": self.fingerprint.to_dict(),
            "policy_revision": self.policy_revision,
            "rate": self.rate,
            "step": self.step,
            **({} if self.evidence == PHRASES else {"evidence": self.evidence}),  # as files of older versions are
            "concepts": _written(self.gauges),
            **({"residuals": _written(self.residuals)} if self.residuals else {}),
            **({"midway": {str(share): _written(gauges) for share, gauges in self.midway.items()}} if self.midway else {}),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        write_whole(Path(path), (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @property
    def digest(self) -> str:
        """Names the calibration in records: hex SHA-256."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def require(self, fingerprint: Fingerprint) -> None:
        """Raises CapabilityError where the calibration belongs to another pipeline."""
        difference = None if self.fingerprint == UNBOUND else self.fingerprint.differs(fingerprint)
        if difference is not None:
            raise CapabilityError(
                f"the calibration{f' {self.origin}' if self.origin else ''} does not fit this {fingerprint.pipeline}: "
                f"{difference}; calibrate this pipeline, or leave calibration out: then adaptive concepts act in every image",
                pipeline=fingerprint.pipeline,
                missing="calibration",
            )

    def covers(self, concept: Concept) -> bool:
        """Whether there is a gauge for the concept as it is now."""
        gauge = self.gauges.get(concept.id)
        return gauge is not None and gauge.knows(concept)


def _gauges(entries: Mapping[str, Any]) -> dict[str, Detector]:
    return {str(name): Detector.from_dict(entry) for name, entry in entries.items()}


def _written(gauges: Mapping[str, Detector]) -> dict[str, Any]:
    return {name: gauge.to_dict() for name, gauge in gauges.items()}
