"""Telling the rows of a denoiser call apart: by comparing their text with what the pipeline encoded, never by their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from safeguard.plan.request_state import Row

UNKNOWN = Row(None)


def match_rows(states: Tensor, positive: Sequence[Any], negative: Sequence[Any]) -> tuple[Row, ...]:
    """Which image each row of ``states`` [B, L, D] belongs to, and on which branch.

    ``positive`` and ``negative`` hold what ``encode_prompt`` returned, [n, L, D] or a list of [L, D] each. A row is
    unconditional only if it equals a negative row and no positive one; a row that equals neither is unknown, and so gets the
    whole policy.
    """
    plus, minus = _equal(states, positive), _equal(states, negative)
    used_plus, used_minus = [0] * len(plus), [0] * len(minus)
    rows: list[Row] = []
    for index in range(len(states)):
        image = _take(index, plus, used_plus)
        if image is not None:
            rows.append(Row(image))
            continue
        image = _take(index, minus, used_minus)
        rows.append(UNKNOWN if image is None else Row(image, unconditional=True))
    return tuple(rows)


def _equal(states: Tensor, known: Sequence[Any]) -> list[list[bool]]:
    """For each known row, which rows of ``states`` equal it: one transfer from the device for all."""
    rows = [_padded(row, states.shape[1]) for texts in known for row in texts]
    fitting = [place for place, row in enumerate(rows) if row.shape == states.shape[1:]]
    equal = [[False] * len(states) for _ in rows]
    if fitting:
        same = [(states == rows[place].to(states)).flatten(1).all(1) for place in fitting]
        for place, flags in zip(fitting, torch.stack(same).tolist(), strict=True):
            equal[place] = flags
    return equal


def _padded(row: Tensor, length: int) -> Tensor:
    """Zeros behind a text that is given without padding, as its row got where others in the batch are longer."""
    missing = length - len(row)
    return torch.cat([row, row.new_zeros(missing, *row.shape[1:])]) if missing > 0 else row


def _take(index: int, equal: list[list[bool]], used: list[int]) -> int | None:
    """The least used of the rows that this one equals: equal prompts are handed out in turn."""
    candidates = [place for place, flags in enumerate(equal) if flags[index]]
    if not candidates:
        return None
    place = min(candidates, key=lambda spot: (used[spot], spot))
    used[place] += 1
    return place


def stamp_of(tensor: Tensor) -> tuple[Any, ...] | None:
    """Changes when the tensor is exchanged or written to. None for inference tensors, of which torch keeps no count."""
    if tensor.is_inference():
        return None
    return (tensor.data_ptr(), tensor._version, tuple(tensor.shape), tensor.stride())
