"""Whether a denoiser call from outside every request begins a new run."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class DirectRuns(threading.local):
    """Tells runs apart, by thread, among calls from outside every request: a run goes down in time on the same texts.

    When in doubt a run counts as new, for then it is recorded once more rather than not at all.
    """

    def __init__(self) -> None:
        self._moment = float("-inf")
        self._texts: list[tuple[Tensor, float]] = []  # each text of the run with the moment it was last seen at

    def begins(self, states: Tensor, moment: float) -> bool:
        """Whether this call begins a run. A second text at the same moment is another branch of the same run."""
        known = next((place for place, (text, _) in enumerate(self._texts) if _same(text, states)), None)
        new = moment != self._moment if known is None else moment >= self._texts[known][1]
        if new:
            self._texts.clear()
        elif known is not None:
            del self._texts[known]
        self._moment = moment
        self._texts.append((states, moment))
        return new


def _same(left: Tensor, right: Tensor) -> bool:
    return left is right or (left.shape == right.shape and left.device == right.device and torch.equal(left, right))
