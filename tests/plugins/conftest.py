"""Lets the tests of terms share their pipeline of words, their students, and the tiny pipelines of the contract suites."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "contracts"))
