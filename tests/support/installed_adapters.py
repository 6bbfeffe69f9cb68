"""Adapters that an installed distribution brings in, for the length of a test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest


def install_adapters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution on the path whose entry point of ``safeguard.adapters`` names ``folder``."""
    name = f"adapters_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    site = folder / "site"
    data = site / f"{name}-1.0.dist-info"
    if not data.is_dir():
        data.mkdir(parents=True)
        (data / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (data / "entry_points.txt").write_text(f"[safeguard.adapters]\ntiny = {name}\n")
        (site / name).symlink_to(folder)
    monkeypatch.syspath_prepend(site)
