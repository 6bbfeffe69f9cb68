"""The request path: protect a pipeline, serve requests under one plan each, swap policies while it runs."""

from safeguard.guard.calibrating import calibrate
from safeguard.guard.deciding import ScreenLike
from safeguard.guard.guard import Guard, Request, Status, protect

__all__ = ["Guard", "Request", "ScreenLike", "Status", "calibrate", "protect"]
