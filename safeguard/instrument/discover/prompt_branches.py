"""What a pipeline encodes, as its ``encode_prompt`` gives it back or its blocks put it into their state: which of it is the
prompt and which the negative prompt, found by trial.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.call_values import TextArguments, Values, is_text_list, pick, stacked
from safeguard.instrument.discover.dry_run import SWAPPED, TEXTS
from safeguard.instrument.discover.modular import is_modular, told
from safeguard.instrument.discover.text_encoding import TextPath, run
from safeguard.instrument.row_matching import match_rows

Place = int | str  # in a tuple, or the name in a state
Parts = dict[tuple[int, Place], Any]
_noting: Final[ContextVar[Parts | None]] = ContextVar("safeguard_noting", default=None)
_NEGATIVE: Final = "a picture of a fish"
_TURN: Final = (-1, -1)  # under which the calls are counted


@dataclass(frozen=True, slots=True)
class PromptBranches:
    """The parts of what is encoded that hold rows of text, by (call of ``encode_prompt``, place)."""

    positive: frozenset[tuple[int, Place]] = frozenset()
    negative: frozenset[tuple[int, Place]] = frozenset()

    @staticmethod
    def find(pipe: Any, base: type, way: TextPath, text: TextArguments) -> PromptBranches:
        """Run the pipeline up to its denoiser three times, with another prompt and another negative prompt. No part at all
        where the pipeline cannot be run so: then no row can be told from another, and all get the whole policy.
        """
        members = _watching(base)
        if not members:
            return PromptBranches()
        watched = type(base.__name__, (base,), {**members, "__module__": base.__module__})
        try:
            plain, values = _seen(pipe, watched, way, TEXTS, "")
            swapped, _ = _seen(pipe, watched, way, SWAPPED, "")
            against, _ = _seen(pipe, watched, way, TEXTS, _NEGATIVE)
        except CapabilityError:
            return PromptBranches()
        parts = {key for key in plain if key in swapped}
        positive = {key for key in parts if not _alike(plain[key], swapped[key])}
        if is_modular(base):  # its state holds what was encoded in every form on the way to the denoiser
            positive = {key for key in positive if _reaches(plain[key], values, text)}
        moved = {key for key in parts - positive if key in against and not _alike(plain[key], against[key])}
        still = {key for key in parts - positive - moved if any(_mates(plain[key], plain[prompt]) for prompt in positive)}
        mates = {key for key in moved if not is_modular(base) or any(_mates(plain[key], plain[prompt]) for prompt in positive)}
        return PromptBranches(frozenset(positive), frozenset(mates or still))

    def note(self, place: int, encoded: Any) -> tuple[list[Any], list[Any]]:
        """The texts of prompts and of negative prompts in what call number ``place`` of ``encode_prompt`` gave."""
        texts = dict(_texts(encoded))
        plus = [part for key, part in texts.items() if (place, key) in self.positive]
        minus = [part for key, part in texts.items() if (place, key) in self.negative]
        return plus[:1], minus[:1]


def _watching(base: Any) -> dict[str, Callable[..., Any]]:
    """The methods of a pipeline's class that make what it encodes known; none where it has no such."""
    if is_modular(base):
        return {"__call__": functools.wraps(base.__call__)(told(base, _note_state))}
    return {"encode_prompt": _noted(base)} if hasattr(base, "encode_prompt") else {}


def _note_state(name: str, value: Any) -> None:
    parts = _noting.get()
    if parts is not None:
        parts.update({(0, place): part for place, part in _texts({name: value})})


def _reaches(part: Any, values: Values, text: TextArguments) -> bool:
    """Whether every row of a part comes to the denoiser as it is."""
    states = stacked(pick(values, text.states))
    return {row.image for row in match_rows(states, [part], [])} - {None} == set(range(len(part)))


def _noted(base: Any) -> Any:
    @functools.wraps(base.encode_prompt)
    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        encoded = base.encode_prompt(self, *args, **kwargs)
        parts = _noting.get()
        if parts is not None:
            turn = parts[_TURN] = parts.get(_TURN, -1) + 1
            parts.update({(turn, place): part for place, part in _texts(encoded)})
        return encoded

    return encode_prompt


def _texts(encoded: Any) -> Iterator[tuple[Place, Any]]:
    """The parts that hold token states, with their places: [n, L, D], or a list of [L, D]."""
    for place, part in (
        encoded.items() if isinstance(encoded, Mapping) else enumerate(encoded if isinstance(encoded, tuple) else (encoded,))
    ):
        rows = is_text_list(part) and all(tensor.dim() == 2 for tensor in part)
        if rows or (isinstance(part, Tensor) and part.dim() >= 3 and part.dtype.is_floating_point):
            yield place, part


@contextmanager
def _listing() -> Iterator[Parts]:
    parts: Parts = {}
    token = _noting.set(parts)
    try:
        yield parts
    finally:
        _noting.reset(token)


def _seen(pipe: Any, base: type, way: TextPath, texts: Sequence[str], negative: str) -> tuple[Parts, Values]:
    how = replace(way.how, guidance=4.0, negative=(negative,) * (1 if way.how.alone else len(texts)))
    with _listing() as parts:
        values, _ = run(pipe, base, replace(way, how=how), texts[1:2] if way.how.alone else texts)
    parts.pop(_TURN, None)
    return parts, values


def _alike(left: Any, right: Any) -> bool:
    pairs = list(zip(left, right, strict=False))
    return len(left) == len(right) and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def _mates(left: Any, right: Any) -> bool:
    """Whether two parts are texts of the same encoders: as many rows, as wide."""
    return len(left) == len(right) and left[0].shape[-1] == right[0].shape[-1]
