"""Telling the rows of a denoiser call apart: by comparing their text with what the pipeline encoded, never by their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from safeguard.erasing.activation import Row, Running


def match_rows(states: Tensor, positive: Sequence[Tensor], negative: Sequence[Tensor]) -> tuple[Row, ...]:
    """Which image each row of ``states`` [B, L, D] belongs to, and on which branch.

    ``positive`` and ``negative`` hold what ``encode_prompt`` returned, [n, L, D] each. A row is unconditional only if it
    equals a negative row and no positive one; a row that equals neither is unknown, and so gets the whole policy.
    """
    count = len(states)
    plus = [_equal(states, row) for tensor in positive for row in tensor]
    minus = [_equal(states, row) for tensor in negative for row in tensor]
    used_plus = [0] * len(plus)
    used_minus = [0] * len(minus)
    rows: list[Row] = []
    for index in range(count):
        image = _take(index, plus, used_plus)
        if image is not None:
            rows.append(Row(image))
            continue
        image = _take(index, minus, used_minus)
        rows.append(Row(None) if image is None else Row(image, unconditional=True))
    return tuple(rows)


def _equal(states: Tensor, row: Tensor) -> list[bool]:
    if states.shape[1:] != row.shape:
        return [False] * len(states)
    same = (states == row.to(device=states.device, dtype=states.dtype)).flatten(1).all(1)
    found: list[bool] = same.tolist()
    return found


def _take(index: int, equal: list[list[bool]], used: list[int]) -> int | None:
    """The least used of the rows that this one equals: equal prompts are handed out in turn."""
    candidates = [place for place, flags in enumerate(equal) if flags[index]]
    if not candidates:
        return None
    place = min(candidates, key=lambda one: (used[one], one))
    used[place] += 1
    return place


def rows_of(running: Running, states: Tensor) -> tuple[Row, ...]:
    """The rows of this call; compared once for each tensor of text that a request brings."""
    if running.direct or not running.positive:
        return (Row(None),) * len(states)
    key = ("rows", states.data_ptr(), states._version, tuple(states.shape), len(running.positive))
    kept: Any = running.memory.get(key)
    if kept is None:
        rows = match_rows(states, running.positive, running.negative)
        kept = running.memory[key] = (rows, states)  # holding the tensor keeps its address from being used again
    rows = kept[0]
    return rows
