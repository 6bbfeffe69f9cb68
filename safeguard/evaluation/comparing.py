"""One picture without and with a policy, and where each concept stood in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeguard.evaluation.pictures import Band, Strip, as_image, overlay, sheet


@dataclass(frozen=True, eq=False)
class Pair:
    """The same seed without and with a policy; ``maps`` holds each concept's share of attention, [h, w]."""

    label: str
    before: Any
    after: Any
    maps: Mapping[str, npt.NDArray[Any]]

    @property
    def change(self) -> float:
        """Mean absolute difference of the pixels, in 0..255."""
        before, after = (np.asarray(as_image(one).convert("RGB"), dtype=np.float64) for one in (self.before, self.after))
        return float(np.abs(before - after).mean())


def comparison(
    pairs: Sequence[Pair],
    concepts: Sequence[str],
    subtitle: str,
    *,
    title: str = "Before and after, and where each concept stood",
    tile: int = 176,
) -> Image.Image:
    """One row a pair: before, after, and a heat map a concept over the picture before. Each concept has one scale."""
    tops = {name: max((float(pair.maps[name].max()) for pair in pairs if name in pair.maps), default=0.0) for name in concepts}
    bands = []
    for pair in pairs:
        shown = [name for name in concepts if name in pair.maps]
        heat = [overlay(pair.before, pair.maps[name], tops[name]) for name in shown]
        captions = ("without the policy", "with it", *(f"attention to {name}" for name in shown))
        bands.append(Band(pair.label, [Strip("", [pair.before, pair.after, *heat])], captions))
    return sheet(title, subtitle, bands, tile=tile, label=0)
