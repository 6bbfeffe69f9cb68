"""One picture without and with a policy, where each concept stood in it, and how its share went from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeguard.evaluation.contact_sheets import MARK, PAPER, SOFT, Band, Strip, as_image, course, overlay, sheet

Course = Sequence[tuple[int, float]]


@dataclass(frozen=True, eq=False)
class ImagePair:
    """The same seed without and with a policy; ``maps`` holds each concept's share of attention, [h, w], and ``courses`` the
    same from step to step, (step, share), without and with the policy. ``notes`` says something of a concept, under its map.
    """

    label: str
    before: Any
    after: Any
    maps: Mapping[str, npt.NDArray[Any]]
    courses: Mapping[str, tuple[Course, Course]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def change(self) -> float:
        """Mean absolute difference of the pixels, in 0..255."""
        before, after = (np.asarray(as_image(image).convert("RGB"), dtype=np.float64) for image in (self.before, self.after))
        return float(np.abs(before - after).mean())


def comparison(
    pairs: Sequence[ImagePair],
    concepts: Sequence[str],
    subtitle: str,
    *,
    title: str = "Before and after, and where each concept stood",
    tile: int = 176,
) -> Image.Image:
    """One row a pair: before, after, and a heat map a concept over the picture before; below it the concept's course, grey
    without the policy and red with it. Each concept has one scale.
    """
    tops = {name: max((float(pair.maps[name].max()) for pair in pairs if name in pair.maps), default=0.0) for name in concepts}
    highest = {
        name: max((share for pair in pairs for line in pair.courses.get(name, ()) for _, share in line), default=0.0)
        for name in concepts
    }
    bands = []
    for pair in pairs:
        shown = [name for name in concepts if name in pair.maps]
        heat = [overlay(pair.before, pair.maps[name], tops[name]) for name in shown]
        strips = [Strip("", [pair.before, pair.after, *heat])]
        if pair.courses:
            blank = Image.new("RGB", (tile, tile), PAPER)
            drawn = [
                course(list(zip(pair.courses.get(name, ()), (SOFT, MARK), strict=False)), highest[name], tile) for name in shown
            ]
            strips.append(Strip("", [blank, blank, *drawn]))
        captions = ("without the policy", "with it", *(pair.notes.get(name, f"where {name} was found") for name in shown))
        bands.append(Band(pair.label, strips, captions))
    return sheet(title, subtitle, bands, tile=tile, label=0)
