"""The request path: protect a pipeline, serve requests under one plan each, swap policies while it runs."""

from safeguard.guard.calibrate import calibrate
from safeguard.guard.decide import ScreenLike
from safeguard.guard.guard import Guard, Request, Status, protect

__all__ = ["Guard", "Request", "ScreenLike", "Status", "calibrate", "protect"]
