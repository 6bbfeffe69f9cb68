"""What a guard says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
