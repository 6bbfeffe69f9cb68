"""What a pipeline's ``encode_prompt`` gives back: which of it is the prompt and which the negative prompt, found by trial."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.discover.dry_run import SWAPPED, TEXTS, is_text_list
from safeguard.instrument.discover.text_encoding import TextPath, run

_noting: Final[ContextVar[list[list[Any]] | None]] = ContextVar("safeguard_noting", default=None)
_NEGATIVE: Final = "a picture of a fish"


@dataclass(frozen=True, slots=True)
class PromptBranches:
    """The parts of what ``encode_prompt`` gives that hold rows of text, by (call, place)."""

    positive: frozenset[tuple[int, int]] = frozenset()
    negative: frozenset[tuple[int, int]] = frozenset()

    @staticmethod
    def find(pipe: Any, base: type, way: TextPath) -> PromptBranches:
        """Run the pipeline up to its denoiser three times, with another prompt and another negative prompt. Roles without any
        part where the pipeline cannot be run so: then no row can be told from another, and all get the whole policy.
        """
        if not hasattr(base, "encode_prompt"):
            return PromptBranches()
        watched = type(base.__name__, (base,), {"encode_prompt": _noted(base), "__module__": base.__module__})
        try:
            plain = _seen(pipe, watched, way, TEXTS, "")
            swapped = _seen(pipe, watched, way, SWAPPED, "")
            against = _seen(pipe, watched, way, TEXTS, _NEGATIVE)
        except CapabilityError:
            return PromptBranches()
        parts = {key for key in plain if key in swapped}
        positive = {key for key in parts if not _alike(plain[key], swapped[key])}
        other = {key for key in parts - positive if key in against and not _alike(plain[key], against[key])}
        still = {key for key in parts - positive - other if any(_mates(plain[key], plain[one]) for one in positive)}
        return PromptBranches(frozenset(positive), frozenset(other or still))

    def note(self, place: int, made: Any) -> tuple[list[Any], list[Any]]:
        """The texts of prompts and of negative prompts in what call number ``place`` of ``encode_prompt`` gave."""
        found = dict(_texts(made))
        plus = [part for key, part in found.items() if (place, key) in self.positive]
        minus = [part for key, part in found.items() if (place, key) in self.negative]
        return plus[:1], minus[:1]


def _noted(base: Any) -> Any:
    @functools.wraps(base.encode_prompt)
    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = base.encode_prompt(self, *args, **kwargs)
        calls = _noting.get()
        if calls is not None:
            calls.append(list(_texts(made)))
        return made

    return encode_prompt


def _texts(made: Any) -> Iterator[tuple[int, Any]]:
    """The parts that hold token states, with their places: [n, L, D], or a list of [L, D]."""
    for place, part in enumerate(made if isinstance(made, tuple) else (made,)):
        rows = is_text_list(part) and all(one.dim() == 2 for one in part)
        if rows or (isinstance(part, Tensor) and part.dim() >= 3 and part.dtype.is_floating_point):
            yield place, part


@contextmanager
def _listing() -> Iterator[list[list[Any]]]:
    calls: list[list[Any]] = []
    token = _noting.set(calls)
    try:
        yield calls
    finally:
        _noting.reset(token)


def _seen(pipe: Any, base: type, way: TextPath, texts: Sequence[str], negative: str) -> dict[tuple[int, int], Any]:
    how = replace(way.how, guidance=4.0, negative=(negative,) * (1 if way.how.alone else len(texts)))
    with _listing() as calls:
        run(pipe, base, replace(way, how=how), texts[1:2] if way.how.alone else texts)
    return {(number, place): part for number, call in enumerate(calls) for place, part in call}


def _alike(one: Any, other: Any) -> bool:
    pairs = list(zip(one, other, strict=False))
    return len(one) == len(other) and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def _mates(one: Any, other: Any) -> bool:
    """Whether two parts are texts of the same encoders: as many rows, as wide."""
    return len(one) == len(other) and one[0].shape[-1] == other[0].shape[-1]
