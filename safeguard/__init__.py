"""Policy-driven safety for text-to-image diffusion pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safeguard import _deprecated

if TYPE_CHECKING:
    from safeguard import errors
    from safeguard.guard import Guard, Request, Status, calibrate, guard_of, protect
    from safeguard.policy import Policy, load_policy

__all__ = ["Guard", "Policy", "Request", "Status", "__version__", "calibrate", "errors", "guard_of", "load_policy", "protect"]
__version__ = "0.2.0"

_HOMES = {
    "Guard": "safeguard.guard",
    "Policy": "safeguard.policy",
    "Request": "safeguard.guard",
    "Status": "safeguard.guard",
    "calibrate": "safeguard.guard",
    "guard_of": "safeguard.guard",
    "load_policy": "safeguard.policy",
    "protect": "safeguard.guard",
}


_deprecated.install()


def __getattr__(name: str) -> Any:
    """Import what is asked for, and no more: a policy can be checked where no torch is loaded."""
    import importlib

    if name == "errors":
        return importlib.import_module("safeguard.errors")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
