"""What callers see of a guard: one request with its decisions, and how the guard stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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


@dataclass(frozen=True, slots=True)
class Status:
    """How a guard stands. Times are RFC 3339 in UTC, or None where there was none yet.

    ``activations`` says for each concept when it acts: one that is ``adaptive`` and not calibrated acts in every image.
    ``calibration`` is the digest of the calibration, where one is in use. ``direct_calls`` counts runs of the denoiser that
    came from outside every guarded call.
    """

    name: str
    pipeline: str
    active_revision: str
    last_request: str | None
    last_successful_activation: str
    last_error: str | None
    erasers: tuple[str, ...]
    screener: str | None
    activations: dict[str, str]
    calibration: str | None
    sites: int
    direct_calls: int
    released: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
