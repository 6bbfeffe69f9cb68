"""What an edit keeps from one call of the denoiser to the next, within one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Cells = dict[str, dict[tuple[int, int], "Tensor"]]
"""By name, what is kept for each image and column of the plan."""


RowCells = dict[tuple[int | None, int], dict[str, Any]]
"""By image, and the turn of a row among those of its image, what is kept for that row."""


class EditMemory:
    """What one edit keeps for the rows and concepts that it acts on now: by name, a value for each of them.

    A value belongs to an image and a concept, never to a place in the batch: whichever are active next, each finds its own.
    Rows of one image (frames) share a value, their mean. A row whose image is not known has none: nothing tells it from others.

    What a row needs for all its concepts together (a momentum, say) stands in ``of_row``. What is the same for every row of the
    request (what was made of a text, say) stands in ``shared``, under a key that says what it depends on.

    Args:
        cells: What the edit has kept in this request, by name, image and column of the plan.
        images: The image of each active row; None where it is not known.
        columns: The plan's columns that the edit acts on now.
        rows: The place of each active row in the batch.
        row_cells: What the edit has kept for rows in this request.
        shared: What the edit has kept for all rows of this request together.
    """

    def __init__(
        self,
        cells: Cells,
        images: Sequence[int | None],
        columns: Sequence[int],
        rows: Sequence[int] = (),
        row_cells: RowCells | None = None,
        shared: dict[str, Any] | None = None,
    ) -> None:
        self._cells, self._images, self._columns = cells, images, columns
        self._known: dict[str, Tensor] = {}
        self._row_cells: RowCells = {} if row_cells is None else row_cells
        self.shared: dict[str, Any] = {} if shared is None else shared
        self._row_keys = _row_keys(images, rows or range(len(images)))

    @classmethod
    def empty(cls, rows: int = 0, concepts: int = 0) -> EditMemory:
        """One that holds nothing, for rows whose images are not known."""
        return cls({}, [None] * rows, range(concepts))

    def of_row(self, place: int) -> dict[str, Any]:
        """What is kept for one of the active rows, to be read and written.

        It belongs to the row's image (of several rows of an image, each has its own), so it stays when rows of other images
        begin or cease to be active. Where the image is not known, it belongs to the row's place in the batch.

        Args:
            place: Which of the active rows, counted from 0.
        """
        return self._row_cells.setdefault(self._row_keys[place], {})

    def knows(self, name: str) -> bool:
        """Whether there is a value for every row and concept.

        Args:
            name: Of the value; the edit's own choice.
        """
        cells = self._cells.get(name, {})
        wanted = [(image, column) for image in self._images for column in self._columns]
        return bool(wanted) and all(image is not None and (image, column) in cells for image, column in wanted)

    def recall(self, name: str) -> Tensor | None:
        """The values that `keep` stored. Do not write to them.

        Args:
            name: Of the value.

        Returns:
            The values, or None unless there is one for every row and concept.

        Shapes:
            returns: [R, C, ...].
        """
        if name in self._known:
            return self._known[name]
        if not self.knows(name):
            return None
        import torch

        cells = self._cells[name]
        rows = [torch.stack([cells[image, column] for column in self._columns]) for image in self._images if image is not None]
        self._known[name] = torch.stack(rows)
        return self._known[name]

    def keep(self, name: str, values: Tensor) -> None:
        """Store a value for each row and concept that has none yet. Existing values stay.

        Args:
            name: Of the value.
            values: One for each row and concept.

        Shapes:
            values: [R, C, ...].
        """
        cells = self._cells.setdefault(name, {})
        places: dict[int, list[int]] = {}
        for place, image in enumerate(self._images):
            if image is not None:
                places.setdefault(image, []).append(place)
        for image, own in places.items():
            value = values[own[0]] if len(own) == 1 else values[own].mean(0)
            for spot, column in enumerate(self._columns):
                cells.setdefault((image, column), value[spot])


def _row_keys(images: Sequence[int | None], rows: Sequence[int]) -> list[tuple[int | None, int]]:
    turns: dict[int, int] = {}
    keys: list[tuple[int | None, int]] = []
    for image, row in zip(images, rows, strict=True):
        if image is None:
            keys.append((None, row))
        else:
            turns[image] = turns.get(image, -1) + 1
            keys.append((image, turns[image]))
    return keys
