"""What callers see of one request: who asked, and what was decided about its images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safeguard.audit import Decision


@dataclass(eq=False)
class Request:
    """What one request was: who asked, every ``Decision`` that was taken, and with ``maps`` where the concepts stood.

    ``maps`` holds one dict an image: concept to an array [height, width] of attention mass on the latent's grid.
    """

    request_id: str | None = None
    tenant: str | None = None
    trace_id: str | None = None
    decisions: list[Decision] = field(default_factory=list)
    wants_maps: bool = False
    only_looks: bool = False  # it ends once the features of its images are seen, and is not recorded
    features: list[list[list[float]]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)

    def who(self) -> dict[str, str | None]:
        return {"request_id": self.request_id, "tenant": self.tenant, "trace_id": self.trace_id}
