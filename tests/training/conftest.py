"""Lends these tests the policies that the contract suites make on the spot."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "contracts"))
