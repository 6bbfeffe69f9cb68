"""What callers see of one request: who asked, and what was decided about its images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safeguard.audit import Decision


@dataclass(eq=False)
class Request:
    """One request: who asked, and every decision about its images. Made by `Guard.request`. Stable.

    Attributes:
        request_id: The application's name for it; so are ``tenant`` and ``trace_id``.
        decisions: One decision for each image, in order.
        maps: With ``maps=True``, one dict for each image: concept to its share of attention on the latent's grid.

    Shapes:
        maps: [height, width], float.
    """

    request_id: str | None = None
    tenant: str | None = None
    trace_id: str | None = None
    decisions: list[Decision] = field(default_factory=list)
    wants_maps: bool = False
    only_looks: str = ""  # "first" or "last": it ends once that step's features are seen, and is not recorded
    features: list[dict[float, list[list[float]]]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)

    def who(self) -> dict[str, str | None]:
        """The three names, as records have them."""
        return {"request_id": self.request_id, "tenant": self.tenant, "trace_id": self.trace_id}
