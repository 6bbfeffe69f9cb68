"""The request path: protect a pipeline, serve requests under one plan each, swap policies while it runs."""

from safeguard.guard.calibrate import calibrate
from safeguard.guard.decide import ScreenLike
from safeguard.guard.guard import Guard
from safeguard.guard.protect import guard_of, protect
from safeguard.guard.request import Request
from safeguard.guard.status import Status

__all__ = ["Guard", "Request", "ScreenLike", "Status", "calibrate", "guard_of", "protect"]
