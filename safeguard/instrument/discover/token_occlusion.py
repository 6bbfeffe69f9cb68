"""What a text is without each of its words in turn: its encoders are given a blank in the word's place, whatever calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from safeguard.errors import CapabilityError

BLANK: Final = 0  # the number that stands in a word's place, as the authors of SAFREE have it


@dataclass
class _Known:
    """The numbers that an encoder is given for the text, which of them are words, and how many times it was given them."""

    numbers: list[int]
    words: list[int]
    seen: int = 0


class OccludedWords:
    """Puts a blank in the place of one word, another in every row. ``ids`` is what each encoder is given for the text, and
    ``words`` which of these numbers are words.
    """

    def __init__(self, ids: Sequence[tuple[str, Sequence[int]]], words: Sequence[Sequence[int]]) -> None:
        self.count = max(map(len, words), default=0)
        self._known: dict[str, list[_Known]] = {}
        for (name, numbers), places in zip(ids, words, strict=True):
            self._known.setdefault(name, []).append(_Known(list(numbers), list(places)))
        self._start, self._rows = 0, 1

    @contextmanager
    def within(self, pipe: Any, start: int, rows: int) -> Iterator[None]:
        """Inside, the text encoded ``rows`` times comes out without its words ``start``, ``start + 1`` and so on.

        Raises CapabilityError at the end where an encoder was never given the text.
        """
        self._start, self._rows = start, rows
        every = [word for known in self._known.values() for word in known]
        for word in every:
            word.seen = 0
        handles = [
            part.register_forward_pre_hook(self._hook(self._known[name]), with_kwargs=True)
            for name, part in pipe.components.items()
            if isinstance(part, nn.Module) and name in self._known
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if not all(word.seen for word in every if word.words):
            raise CapabilityError("the pipeline encodes a text in another way each time", missing="texts without their words")

    def _hook(self, known: Sequence[_Known]) -> Any:
        def on_call(
            module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if not isinstance(ids, Tensor) or ids.dtype.is_floating_point or ids.dim() != 2:
                return None
            blanked = self._blanked(ids, known)
            if "input_ids" in kwargs:
                return args, {**kwargs, "input_ids": blanked}
            return (blanked, *args[1:]), dict(kwargs)

        return on_call

    def _blanked(self, ids: Tensor, known: Sequence[_Known]) -> Tensor:
        rows = ids.tolist()
        for row in rows:
            occluded = next((occluded for occluded in known if occluded.numbers == row), None)
            if occluded is None:
                continue
            word = self._start + occluded.seen % self._rows
            occluded.seen += 1
            if word < len(occluded.words):
                row[occluded.words[word]] = BLANK
        return torch.tensor(rows, dtype=ids.dtype, device=ids.device)
