"""The state of a guard, for health checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a guard. Times are RFC 3339 in UTC, or None if there was none yet. Stable.

    Attributes:
        name: The active policy's name.
        pipeline: The pipeline's class.
        active_revision: The active policy's revision.
        last_request: When the last call ended.
        last_successful_activation: When the active policy was activated.
        last_error: Why the last swap failed; None after a successful one.
        erasers: Name and version of each eraser in use.
        screener: Its name, or None.
        activations: For each concept when it acts. One that is ``adaptive`` and not calibrated acts in every image.
        calibration: The digest of the calibration, or None.
        sites: The number of attentions at which the image reads the text.
        direct_calls: How often the denoiser ran outside of a guarded call.
        released: Whether the guard was released.
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
        """All fields, ready for JSON."""
        return asdict(self)
