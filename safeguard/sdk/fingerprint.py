"""What a calibration or an adapter is bound to: one pipeline, told by the attentions at which it reads text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

CLOSE: Final = 0.02  # relative difference of norms up to which two pipelines count as the same, in whatever dtype


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is learnt on one pipeline is bound to: the pipeline's class, its text sites with their heads, and the norms of their
    weights (None where they are elsewhere, with offloading).
    """

    pipeline: str
    sites: tuple[tuple[str, int], ...]
    norms: tuple[float | None, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """From what stands in a file. Raises KeyError, TypeError or ValueError for anything else."""
        sites = tuple((str(name), int(heads)) for name, heads in data["sites"])
        norms = tuple(None if norm is None else float(norm) for norm in data["norms"])
        if not data["name"] or len(sites) != len(norms):
            raise ValueError("it is bound to no pipeline")
        return cls(str(data["name"]), sites, norms)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {"name": self.pipeline, "sites": [list(site) for site in self.sites], "norms": list(self.norms)}

    def differs(self, fingerprint: Fingerprint) -> str | None:
        """In what two pipelines differ, in words, or None."""
        if self.pipeline != fingerprint.pipeline:
            return f"it was made for a {self.pipeline}"
        if self.sites != fingerprint.sites:
            return "it was made for other text sites"
        pairs = [(a, b) for a, b in zip(self.norms, fingerprint.norms, strict=True) if a is not None and b is not None]
        if any(abs(a - b) > CLOSE * max(a, b) for a, b in pairs):
            return "it was made for other weights"
        return None
