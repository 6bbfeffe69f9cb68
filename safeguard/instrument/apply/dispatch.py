"""From a plan and the rows of a denoiser call to what an edit is called with, and back into the rows that it may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from safeguard._log import get_logger
from safeguard.errors import CapabilityError
from safeguard.instrument.apply import edit_checks
from safeguard.plan.request_state import ActiveEdit, RequestState, Row
from safeguard.sdk.calls import SiteEffect
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.seams import Edit, TextSiteEdit

P = ParamSpec("P")
T = TypeVar("T")
log = get_logger("safeguard.instrument")


def attempt(state: RequestState, edit: Edit, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Let an edit act. Where the policy allows errors, one that raises is passed over and noted; otherwise it propagates."""
    try:
        return act(*args, **kwargs)
    except Exception as fault:
        if not state.facts.skip_errors:
            raise
        error = f"{', '.join(edit.concepts)}: {type(fault).__name__}"
        if error not in state.log.errors:
            state.log.errors.append(error)
            log.warning("edit_skipped", concepts=list(edit.concepts), error=type(fault).__name__)
        return None


def active_edit(
    state: RequestState, edit: Edit, rows: Sequence[Row], device: torch.device, *, unconditional: bool = False
) -> ActiveEdit | None:
    """The edit with the rows and concepts in which it acts now, or None. Worked out once for equal rows and steps."""
    key = (id(edit), rows, unconditional, state.window(edit), state.turns, device)
    if key not in state.caches.active:
        state.caches.active[key] = active = _active_edit(state, edit, rows, device, unconditional)
        if active is not None:
            state.log.acts.append(active)
    return state.caches.active[key]


def _active_edit(
    state: RequestState, edit: Edit, rows: Sequence[Row], device: torch.device, unconditional: bool
) -> ActiveEdit | None:
    if unconditional:
        _require_twins(state, edit, rows)
    picked, used, table = state.active(edit, rows, unconditional=unconditional)
    if not picked:
        return None
    narrow = edit
    strengths = torch.tensor(table, dtype=torch.float32, device=device)
    if len(used) < len(edit.concepts):
        if isinstance(edit, TextSiteEdit):
            narrow = edit_checks.selected(state.plan, edit, used)
        else:
            strengths, used = _spread(strengths, used, len(edit.concepts)), list(range(len(edit.concepts)))
    columns = [state.plan.columns[edit.concepts[place]] for place in used]
    images = [rows[index].image for index in picked]
    alone = state.facts.direct or state.facts.whole  # the next call is of another request, or of none
    memory = EditMemory.empty(len(images), len(columns)) if alone else state.caches.memory(edit, images, columns, picked)
    return ActiveEdit(narrow, picked, images, index_of(picked, device), columns, strengths, memory)


def _require_twins(state: RequestState, edit: Edit, rows: Sequence[Row]) -> None:
    """An edit of the unconditional branch cannot protect a row that has none: raise rather than pass it by."""
    wanting = {rows[index].image for index in state.active(edit, rows)[0]}
    if wanting and not wanting <= {row.image for row in rows if row.unconditional}:
        raise CapabilityError(
            f"concept {edit.concepts[0]!r} is erased on the unconditional branch, and this call has none that can be told from "
            "its prompt; use guidance_scale > 1 and a negative prompt other than the prompt, or another eraser",
            missing="unconditional rows",
        )


def note(state: RequestState, active: ActiveEdit, site: int, effect: SiteEffect, part: Tensor) -> None:
    """Keep the evidence of one act at a text site; and the maps, where they were asked for."""
    change = _norm(effect.delta) / _norm(part).clamp_min(1e-12)
    active.note(state.log.step, site, change, None if effect.mass is None else effect.mass.mean((1, 2)))
    maps, frame = state.facts.maps, state.frame
    if maps is None or effect.mass is None or frame is None or frame.grid is None:
        return
    for place, image in enumerate(active.images):
        for spot, column in enumerate(active.columns):
            if image is not None:
                _add_map(maps, frame.grid, (image, column), effect.mass[place, :, :, spot].mean(0))


def _norm(part: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(part, dim=(1, 2), dtype=torch.float32)
    return norm


def _add_map(maps: dict[tuple[int, int], Any], grid: tuple[int, int], key: tuple[int, int], mass: Tensor) -> None:
    """Add one site's mass per image token [N], brought to the latent's own grid."""
    height, width = grid
    shrink = max(1, round((height * width / mass.numel()) ** 0.5))
    shape = (-(-height // shrink), -(-width // shrink))
    if shape[0] * shape[1] == mass.numel():
        drawn = torch.nn.functional.interpolate(mass.float().reshape(1, 1, *shape), size=grid, mode="bilinear")[0, 0]
        maps[key] = maps.get(key, 0.0) + drawn


def twins_of(rows: Sequence[Row], picked: Sequence[int]) -> list[int] | None:
    """The place of each picked row's unconditional twin; None where one has none. Several rows of an image pair in turn."""
    places: dict[int | None, list[int]] = {}
    for place, row in enumerate(rows):
        if row.unconditional:
            places.setdefault(row.image, []).append(place)
    seen: dict[int | None, int] = {}
    twins = []
    for index in picked:
        image = rows[index].image
        turn = seen[image] = seen.get(image, -1) + 1
        if image not in places:
            return None
        twins.append(places[image][turn % len(places[image])])
    return twins


def index_of(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """A slice where the rows stand together, since that copies nothing."""
    first, last = rows[0], rows[-1] + 1
    return slice(first, last) if last - first == len(rows) else torch.tensor(rows, device=device)


def _spread(strengths: Tensor, used: Sequence[int], width: int) -> Tensor:
    whole = strengths.new_zeros(len(strengths), width)
    whole[:, list(used)] = strengths
    return whole
