"""What an older diffusers does not have: tests of it are skipped there."""

from __future__ import annotations

import diffusers
import pytest


def needs(name: str) -> None:
    """Skips the test where the installed diffusers has no class of this name."""
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
