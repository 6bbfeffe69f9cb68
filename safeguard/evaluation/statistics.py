"""Figures with their uncertainty: rates, means, ratios; and the likeness of two pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Z: Final = NormalDist().inv_cdf(0.975)  # of a two-sided 95 % interval
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval, over ``n`` observations."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def rate(hits: Iterable[bool] | npt.NDArray[np.bool_]) -> Figure:
    """The share that holds, with Wilson's interval (Wilson 1927)."""
    flags = [bool(hit) for hit in hits]
    return wilson(sum(flags), len(flags))


def wilson(hits: int, total: int) -> Figure:
    """``hits`` of ``total`` with Wilson's 95 % interval. Without observations: not a number."""
    if not total:
        return Figure(math.nan, math.nan, math.nan, 0)
    share, square = hits / total, Z * Z / total
    middle = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == total else min(1.0, middle + half)
    return Figure(share, low, high, total)


def mean(values: Sequence[float] | npt.NDArray[Any]) -> Figure:
    """A mean with its normal 95 % interval."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        return Figure(math.nan, math.nan, math.nan, 0)
    half = Z * float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else 0.0
    middle = float(array.mean())
    return Figure(middle, middle - half, middle + half, array.size)


def median(values: Sequence[float] | npt.NDArray[Any]) -> Figure:
    """A median with the 95 % interval of order statistics, which supposes nothing of the distribution."""
    array = np.sort(np.asarray(values, dtype=np.float64))
    if not array.size:
        return Figure(math.nan, math.nan, math.nan, 0)
    # the widest pair of ranks that a fair coin leaves outside in at most 2.5 % on each side
    rank, below = 0, 0.5**array.size
    while below <= 0.025 and rank + 1 < array.size / 2:
        rank += 1
        below += math.comb(array.size, rank) * 0.5**array.size
    place = max(0, rank - 1)
    return Figure(float(np.median(array)), float(array[place]), float(array[-1 - place]), array.size)


def likeness(before: Pixels, after: Pixels) -> npt.NDArray[np.float64]:
    """SSIM (Wang et al. 2004) of each pair of pictures [n, h, w, 3]: [n]; 1 for equal ones."""
    from skimage.metrics import structural_similarity

    pairs = zip(before, after, strict=True)
    return np.array([structural_similarity(left, right, channel_axis=2, data_range=255) for left, right in pairs])


def ratio(after: Figure, before: Figure) -> float:
    """How much of ``before`` is left. Not a number where there was nothing."""
    return after.value / before.value if before.value else math.nan
