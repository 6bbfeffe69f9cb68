"""Where in a picture a concept stands, as bins of a grid (Geom-Erasing, arXiv 2310.05873): which bins boxes cover, and how much
each bin counts in the loss.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; right and bottom are in the box."""


@dataclass(frozen=True, slots=True)
class Grid:
    """``side`` x ``side`` bins over pictures of ``width`` x ``height`` pixels, numbered row by row."""

    side: int
    width: int
    height: int

    @property
    def bins(self) -> int:
        return self.side * self.side

    def covered(self, boxes: Sequence[Box]) -> list[int]:
        """The bins that these boxes cover, in their order. What lies on an edge is in the bin to the right of it, or below."""
        cells: set[int] = set()
        for left, top, right, bottom in boxes:
            columns = range(self._bin(left, self.width), self._bin(right, self.width) + 1)
            rows = range(self._bin(top, self.height), self._bin(bottom, self.height) + 1)
            cells |= {self.side * row + column for row in rows for column in columns}
        return sorted(cells)

    def inwards(self, covered: Sequence[int]) -> list[int]:
        """Covered bins from the outermost to the innermost: by how far they are from the middle of all of them."""
        rows, columns = ([divmod(place, self.side)[axis] for place in covered] for axis in (0, 1))
        middle = (min(rows) + max(rows)) / 2, (min(columns) + max(columns)) / 2

        def far(place: int) -> float:
            row, column = divmod(place, self.side)
            return max(abs(row - middle[0]), abs(column - middle[1]))

        return sorted(covered, key=lambda place: (-far(place), place))

    def weights(self, covered: Collection[int], alpha: float) -> Tensor:
        """Of K covered bins of T: T / (K + alpha (T - K)) in them and alpha times that elsewhere, [side, side]. Their sum is T;
        at alpha 1, and for no bin or all of them, each is 1.
        """
        share = self.bins / (len(covered) + alpha * (self.bins - len(covered)))
        line = [share if place in covered else alpha * share for place in range(self.bins)]
        return torch.tensor(line).view(self.side, self.side)

    def _bin(self, place: float, length: int) -> int:
        return min(self.side - 1, max(0, int(place * self.side / length)))
