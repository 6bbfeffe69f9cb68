"""Lends these tests the tiny pipelines of the contract suites, and the students of the tests of terms."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "contracts"))
sys.path.append(str(Path(__file__).parents[1] / "plugins"))
