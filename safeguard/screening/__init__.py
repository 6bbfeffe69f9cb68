"""Prompts to a score per concept. Importing this loads no model; the first ``screen`` does."""

from __future__ import annotations

from safeguard.screening.encoder import Encoder
from safeguard.screening.normalize import normalize
from safeguard.screening.screener import Screener, Screening

__all__ = ["Encoder", "Screener", "Screening", "normalize"]
