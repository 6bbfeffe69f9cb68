"""A text with some of its tokens replaced: its encoders are given other numbers in their place, whatever calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from safeguard.errors import CapabilityError


@dataclass
class _Known:
    """The numbers that an encoder is given for the text, those that it is to be given instead, one list a row, and how many
    times it was given them.
    """

    numbers: list[int]
    variants: list[list[int]] = field(default_factory=list)
    seen: int = 0

    @property
    def is_replaced(self) -> bool:
        return any(variant != self.numbers for variant in self.variants)


class TokenSubstitution:
    """Gives the encoders of a pipeline other numbers for a text. ``ids`` is what each encoder is given for it, by its name."""

    def __init__(self, ids: Sequence[tuple[str, Sequence[int]]]) -> None:
        self._places = [name for name, _ in ids]
        self._every = [_Known(list(numbers)) for _, numbers in ids]

    @contextmanager
    def within(self, pipe: Any, variants: Sequence[Sequence[Sequence[int]]]) -> Iterator[None]:
        """Inside, the text encoded once for each of ``variants`` comes out as if it had these numbers: [variant][encoder].

        Raises CapabilityError at the end where an encoder was never given the text.
        """
        for place, known in enumerate(self._every):
            known.seen, known.variants = 0, [list(variant[place]) for variant in variants]
        handles = [
            part.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, part in pipe.components.items()
            if isinstance(part, nn.Module) and name in self._places
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if not all(known.seen for known in self._every if known.is_replaced):
            raise CapabilityError("the pipeline encodes a text in another way each time", missing="texts with other tokens")

    def _hook(self, name: str) -> Any:
        own = [known for place, known in zip(self._places, self._every, strict=True) if place == name]

        def on_call(
            module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            given = kwargs.get("input_ids", args[0] if args else None)
            if not isinstance(given, Tensor) or given.dtype.is_floating_point or given.dim() != 2:
                return None
            replaced = _replaced(given, own)
            if "input_ids" in kwargs:
                return args, {**kwargs, "input_ids": replaced}
            return (replaced, *args[1:]), dict(kwargs)

        return on_call


def _replaced(given: Tensor, known: Sequence[_Known]) -> Tensor:
    rows = given.tolist()
    for place, row in enumerate(rows):
        match = next((text for text in known if text.numbers == row), None)
        if match is not None:
            rows[place] = match.variants[match.seen % len(match.variants)]
            match.seen += 1
    return torch.tensor(rows, dtype=given.dtype, device=given.device)
