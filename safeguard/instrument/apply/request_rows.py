"""The rows of the denoiser call that is under way, told apart by what the pipeline encoded in this request."""

from __future__ import annotations

from torch import Tensor

from safeguard.instrument.row_matching import UNKNOWN, match_rows, stamp_of
from safeguard.plan.request_state import RequestState, Row


def rows_of(running: RequestState, states: Tensor) -> tuple[Row, ...]:
    """The rows of this call; compared once for each tensor of text that a request brings.

    Every row is unknown unless the pipeline encoded exactly one positive text an image: only then does its place name it.
    """
    if running.facts.direct or sum(map(len, running.caches.positive)) != len(running.facts.strengths):
        return (UNKNOWN,) * len(states)
    stamp = stamp_of(states)
    known = None if stamp is None else running.caches.rows.get(stamp)
    if known is None:
        rows = _steady(
            running, match_rows(states, running.caches.positive, running.caches.negative if running.facts.guided else ())
        )
        known = (rows, states)  # holding the tensor keeps its address from being used again
        if stamp is not None:
            running.caches.rows[stamp] = known
    return known[0]


def _steady(running: RequestState, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Take rows for unconditional only where the first step had them: who exchanges text later may exchange branches too."""
    first = running.caches.arrangements
    if running.log.first_step < 0:
        running.log.first_step = running.log.step
    if running.log.step == running.log.first_step:
        first.add(rows)
    if rows in first:
        return rows
    return tuple(UNKNOWN if row.unconditional else row for row in rows)
