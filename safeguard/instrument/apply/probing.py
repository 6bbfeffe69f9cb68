"""What the first call of an image shows: looked at where image tokens read the text, and read before anything is drawn.

Evidence opens concepts by it, and edits learn from it how to act; then the call is made again. In some
calls on the way and in the last it is read what the concepts that acted have left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from safeguard.instrument.apply.dispatch import attempt, index_of
from safeguard.instrument.apply.schedule import is_last
from safeguard.instrument.apply.site_calls import SiteView
from safeguard.instrument.apply.text_states import pooled_of
from safeguard.instrument.call_values import Values
from safeguard.instrument.discover.denoiser import Denoiser
from safeguard.instrument.discover.sites import Site, layer_stamp, module_of, norm_of
from safeguard.plan.calibration import Calibration
from safeguard.plan.detectors import ProbeFinished, ProbeRun, ResidualRun
from safeguard.plan.request_state import ActiveEdit, RequestState
from safeguard.sdk.fingerprint import Fingerprint


def fingerprint_of(name: str, sites: Sequence[Site]) -> Fingerprint:
    """What a calibration of the pipeline of that name is bound to."""
    return Fingerprint(name, tuple((site.info.name, site.info.heads) for site in sites), tuple(map(norm_of, sites)))


class CalibrationCheck:
    """Whether a calibration fits, looked at anew where weights may have changed: an adapter that is loaded meanwhile shows."""

    def __init__(self) -> None:
        self._known: tuple[Calibration, Sequence[Any]] | None = None

    def require(self, calibration: Calibration, name: str, sites: Sequence[Site]) -> None:
        """Raises CapabilityError where it does not fit."""
        stamps = [layer_stamp(module_of(site)) for site in sites]
        if None in stamps or (calibration, stamps) != self._known:
            calibration.require(fingerprint_of(name, sites))
            self._known = (calibration, stamps)


def begin(state: RequestState, values: Values, part: Denoiser, device: torch.device) -> None:
    """A call of the denoiser that makes the image begins. If some of its images are still to be seen, evidence is taken in it,
    and its pooled texts are looked at.
    """
    residual, log = state.residual, state.log
    if state.frame is not None and residual is not None and residual.reaches(log.step, log.progress, last=is_last(state)):
        residual.pending = _acted_in(state, residual)
        state.frame.rereads = bool(residual.pending)
    seen = _rows(state, state.rows, device)
    if seen is None or state.watching is None or state.log.step < state.watching.step:
        return
    if state.frame is not None:
        state.frame.looks = True
    pooled = pooled_of(values, part)
    evidence = None if pooled is None else state.watching.watch.in_pooled(pooled[seen.index])
    if evidence is not None:
        state.watching.note(seen.images, evidence)


def wanted(state: RequestState, rows: Sequence[Any]) -> bool:
    """Whether these rows of the call that is under way are looked at."""
    return (state.looks and bool(_places(state.watching, rows))) or (state.rereads and bool(_places(state.residual, rows)))


def at_site(state: RequestState, rows: Sequence[Any], view: SiteView) -> None:
    """Look at one attention."""
    left = _as_act(state, rows, _places(state.residual, rows), view.device) if state.rereads else None
    if left is not None and state.residual is not None:
        call = view.call(left, state.log.progress)
        state.residual.note(left.images, state.residual.watch.in_image(call), view.site.index)
    seen = _rows(state, rows, view.device) if state.looks else None
    if seen is not None and state.watching is not None:
        state.watching.note(seen.images, state.watching.watch.at_site(view.call(seen, state.log.progress)), view.site.index)


def read(state: RequestState, prediction: Tensor | None, part: Denoiser, *, compiled: bool) -> Tensor | None:
    """Read the evidence of a call that is done. Where it opened something, or an edit has learnt from it how to act, the call
    is run again as it was given, past the graph where there is one, and what it gives now is returned. One whose arguments are
    not all known goes on from the next call.
    """
    if state.rereads and state.residual is not None:
        state.residual.read(state.log.step)
        if state.residual.only and is_last(state):
            raise ProbeFinished
    values, opened = None if state.frame is None else state.frame.values, _opens(state)
    learnt = [] if opened else _learnt(state)
    if not (opened or learnt) or values is None or prediction is None:
        return None
    for active in learnt:
        active.forget(state.log.step)
    state.frame = None
    output = part.again(values, eagerly=compiled)
    again: Tensor = output if isinstance(output, Tensor) else output[0]
    return again


def _opens(state: RequestState) -> bool:
    watching = state.watching
    if not state.looks or watching is None:
        return False
    opened = watching.decide(state.log.step)
    if watching.only and not watching.pending:
        raise ProbeFinished
    return opened


def _learnt(state: RequestState) -> list[ActiveEdit]:
    """Those of the edits at text sites for which the call was a trial: each has one at most for the same rows and concepts."""
    learnt = []
    for active in {
        id(candidate): candidate
        for acting in ({} if state.frame is None else state.frame.site_edits).values()
        for candidate in acting
    }.values():
        if not active.tried and attempt(state, active.edit, active.edit.learns, active.memory):
            active.tried = True
            learnt.append(active)
    return learnt


def _places(run: ProbeRun | ResidualRun | None, rows: Sequence[Any]) -> list[int]:
    """The rows that a run still has to see."""
    if run is None:
        return []
    return [place for place, row in enumerate(rows) if not row.unconditional and row.image in run.pending]


def _rows(state: RequestState, rows: Sequence[Any], device: torch.device) -> ActiveEdit | None:
    """The rows whose evidence is still to be seen, as an edit that does nothing would have them."""
    return _as_act(state, rows, _places(state.watching, rows), device)


def _acted_in(state: RequestState, residual: ResidualRun) -> set[int]:
    """The images of this call in which a concept acts of which it can be said what is left."""
    concepts = residual.told
    images = {row.image for row in state.rows if row.image is not None}
    return {image for image in images if residual.only or any(state.acts_in(image, name) for name in concepts)}


def _as_act(state: RequestState, rows: Sequence[Any], places: Sequence[int], device: torch.device) -> ActiveEdit | None:
    """Some rows as an edit that does nothing would have them."""
    if not places or state.plan.watch is None:
        return None
    nothing = torch.zeros(len(places), len(state.plan.watch.concepts), device=device)
    return ActiveEdit(None, places, [rows[place].image for place in places], index_of(places, device), (), nothing)
