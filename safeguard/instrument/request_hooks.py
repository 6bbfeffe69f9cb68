"""What the hooks of a pipeline call: what the running plan asks for is done here, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.apply import edit_checks, module_edits, probing, text_states
from safeguard.instrument.apply.direct_runs import DirectRuns
from safeguard.instrument.apply.dispatch import active_edit, attempt, note
from safeguard.instrument.apply.request_rows import rows_of
from safeguard.instrument.apply.schedule import locate, moment_of
from safeguard.instrument.apply.site_calls import CrossAttentionView, JointAttentionView, SiteView
from safeguard.instrument.apply.text_kv import TextKVCache, numbers_of
from safeguard.instrument.call_values import Values, fresh, pick, stacked
from safeguard.instrument.discover.denoiser import Denoiser
from safeguard.instrument.discover.sites import CrossAttentionSite, JointAttentionSite, Site, expanded
from safeguard.instrument.hooks import denoiser_hooks, sdpa
from safeguard.instrument.live_pipeline import LivePipeline
from safeguard.instrument.row_matching import UNKNOWN
from safeguard.plan.compile import Plan
from safeguard.plan.request_state import (
    ActiveEdit,
    CallFrame,
    RequestFacts,
    RequestState,
    current_context,
    quiet,
    set_direct,
)
from safeguard.sdk.calls import SiteEffect


class RequestHooks:
    """Serves the hooks of one pipeline for the request that runs in their context (``denoiser_hooks.Host``).

    ``plan`` is what protects calls of the denoiser that come from outside every guarded request: all rows, whole policy.
    ``on_direct`` is called once for every such run. ``number`` is the one by which requests and compiled graphs name it.
    """

    def __init__(self, pipeline: LivePipeline) -> None:
        self.number = denoiser_hooks.register(self)
        self.plan: Plan | None = None
        self.on_direct: Callable[[Plan], None] | None = None
        self._pipeline, self._direct_runs = pipeline, DirectRuns()

    def on_enter(self, name: str, values: Values, *, whole: bool = True) -> Values | None:
        """A denoiser call begins: tell its rows apart, then let the text-states edits act. None: nothing changed."""
        sdpa.leave_attention()
        part = self._pipeline.parts[name]
        text = pick(values, part.text.states)
        if current_context().quiet or text is None:
            return None
        states = stacked(text)
        time = part.time_of(values)
        state = self._own(current_context().request) or self._begin_direct(states, time)
        if state is None or not state.plan.edits:
            return None
        state.log.calls += 1
        scheduler = state.facts.scheduler  # not every one has a length, by which it would be true or false
        locate(state, time, getattr(self._pipeline.pipe, "scheduler", None) if scheduler is None else scheduler)
        frame = CallFrame(rows_of(state, states), fresh(values) if whole else None, grid=part.grid_of(values))
        state.frame = frame
        state.log.unmatched += UNKNOWN in frame.rows and not state.facts.direct
        changed = values
        if name == self._pipeline.main:
            probing.begin(state, values, part, states.device)
        for edit in state.plan.states_edits:
            active = active_edit(state, edit, frame.rows, states.device, unconditional=edit.unconditional)
            if active is None:
                continue
            answer = attempt(state, edit, text_states.edited, state, edit, active, changed, part, self._pipeline.encoding)
            if answer is not None:
                active.answer(state.log.step, acted=answer is not changed)
                changed = answer
        frame.edited = frame.values if changed is values or not whole else fresh(changed)
        self._prepare(state, part, changed, states.device)
        return None if changed is values else changed

    def _prepare(self, state: RequestState, part: Denoiser, values: Values, device: torch.device) -> None:
        """Where text-site edits will act at joint sites: know where the text stands, and have erasure prompts recorded."""
        acting = self._site_edits(state, state.rows, device)
        recorded = any(site.recorded and site.owner == part.name for site in self._pipeline.every_site)
        looks = state.looks or state.rereads
        if not recorded or not (acting or looks):
            return
        if any(isinstance(site, JointAttentionSite) and site.each for site in self._pipeline.every_site):
            acting = [active for row in state.rows for active in self._site_edits(state, (row,), device)]
        wanted = (*_asked_of(state.plan, acting), *(state.plan.watch_tokens if looks else ()))
        caches = state.caches
        if part.name not in caches.stamps:  # weights do not change while a request runs
            caches.stamps[part.name] = part.stamp
        with quiet():
            caches.shapes = part.learn(self._pipeline.every_site, values)
            numbers = numbers_of(values, len(state.rows), part.text.every)
            for tokens in wanted:
                if isinstance(tokens, TextKVCache):
                    tokens.prepare(part, numbers, caches.stamps[part.name])

    def at_site(self, index: int, output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None) -> Tensor | None:
        """A separate attention is done: add what the text-site edits find. None: nothing changed."""
        state = self._visiting()
        if state is None:
            return None
        site = self._pipeline.every_site[index]
        assert isinstance(site, CrossAttentionSite)
        rows = self._rows(state, site, len(output))
        if query is None or states is None:
            if not self._concerns(state, rows, output.device):
                return None
            raise CapabilityError(
                f"the attention {site.info.name} was run in parts, past its own call; call it as a whole",
                pipeline=self._pipeline.name,
                missing="query and text",
            )
        return self._act(state, rows, CrossAttentionView(site, output, query, states, mask))

    def at_call(self, site: int, turn: int, call: denoiser_hooks.AttentionCall) -> Tensor | None:
        """A joint attention is done: add what the text-site edits find. None: nothing changed."""
        state = self._visiting()
        if state is None:
            return None
        live = self._pipeline.every_site[site]
        assert isinstance(live, JointAttentionSite)
        rows = self._rows(state, live, len(call.output), turn)
        if not self._concerns(state, rows, call.output.device):
            return None
        layout = live.layout(state.caches.shapes, turn)
        if layout is None:
            raise CapabilityError(
                f"attention {live.info.name} was reached past the call of its denoiser; call the denoiser as a whole",
                pipeline=self._pipeline.name,
                missing="a call of the denoiser",
            )
        return self._act(state, rows, JointAttentionView(live, layout, call))

    def at_module(self, name: str, inputs: Tensor | None, output: Tensor) -> Tensor | None:
        """A named module is done: let the edits of linear layers and features act. None: nothing changed."""
        state = None if current_context().quiet else self._running()
        return None if state is None else module_edits.edited(state, name, inputs, output)

    def _visiting(self) -> RequestState | None:
        if current_context().quiet:
            return None
        state = self._running()
        if state is not None:
            state.log.visits += 1
            if state.frame is None:
                self._require_sites_only(state)
        return state

    def _concerns(self, state: RequestState, rows: Sequence[Any], device: torch.device) -> bool:
        return bool(self._site_edits(state, rows, device)) or probing.wanted(state, rows)

    def _act(self, state: RequestState, rows: Sequence[Any], view: SiteView) -> Tensor | None:
        probing.at_site(state, rows, view)
        for active in self._site_edits(state, rows, view.device):
            call = view.call(active, state.log.progress)
            effect: SiteEffect | None = attempt(state, active.edit, edit_checks.site_effect, state, active.edit, call)
            if effect is not None:
                note(state, active, view.site.index, effect, call.output)
                view.add(active, effect.delta)
        return view.changed

    def _rows(self, state: RequestState, site: Site, count: int, turn: int = 0) -> Sequence[Any]:
        """The rows of a site's own batch, which may hold each row of the call several times (frames), or one in turn."""
        if isinstance(site, JointAttentionSite) and site.each and turn < len(state.rows):
            return state.rows[turn : turn + 1]
        rows = None if state.frame is None else expanded(site.order, state.rows, count)
        return (UNKNOWN,) * count if rows is None else tuple(rows)

    def _site_edits(self, state: RequestState, rows: Sequence[Any], device: torch.device) -> list[ActiveEdit]:
        """What acts at the text sites of this denoiser call: worked out once for each set of rows."""
        known = None if state.frame is None else state.frame.site_edits
        key = tuple(rows)
        if known is None or key not in known:
            edits = (active_edit(state, edit, key, device) for edit in state.plan.site_edits)
            acting = [active for active in edits if active is not None]
            if known is None:
                return acting
            known[key] = acting
        return known[key]

    def _require_sites_only(self, state: RequestState) -> None:
        """``forward`` was called past the hooks of the denoiser itself, so what acts there cannot protect this call."""
        past = [edit for edit in (*state.plan.states_edits, *state.plan.prediction_edits) if any(state.plan.strengths_of(edit))]
        if past:
            raise CapabilityError(
                f"forward() of the denoiser was called by itself, where concept {past[0].concepts[0]!r} cannot be erased; call "
                "the denoiser, or choose an eraser that acts at the text sites",
                pipeline=self._pipeline.name,
                missing="a call of the denoiser",
            )

    def on_leave(self, name: str, prediction: Tensor | None, *, compiled: bool = False) -> Tensor | None:
        """A denoiser call ends: read the evidence, let the prediction edits act. None: nothing changed."""
        if current_context().quiet:
            return None
        state = self._own(current_context().request) or self._outside()
        set_direct(None)
        if state is None or state.frame is None:
            return None
        again = probing.read(state, prediction, self._pipeline.parts[name], compiled=compiled)
        if again is not None:
            return again
        module_edits.require_reached(state, name)
        changed = None
        if prediction is not None and state.plan.prediction_edits:
            part, encoding = self._pipeline.parts[name], self._pipeline.encoding
            changed = text_states.predicted(state, prediction, part, encoding, compiled=compiled)
        state.frame = None
        return changed

    def on_failure(self) -> None:
        """A denoiser call ended with an exception: what runs later in this context is no part of it."""
        if current_context().quiet:
            return
        state = self._own(current_context().request)
        if state is not None:
            state.frame = None
        set_direct(None)

    def _running(self) -> RequestState | None:
        return self._own(current_context().request) or self._outside() or self._unentered()

    def _outside(self) -> RequestState | None:
        return self._own(current_context().direct)

    def _own(self, state: RequestState | None) -> RequestState | None:
        """The request, if it runs on this pipeline: one on another, which calls this one meanwhile, does not count."""
        return state if state is not None and state.facts.host == self.number else None

    def _begin_direct(self, states: Tensor, time: Any) -> RequestState | None:
        """A call from outside every request: every row gets the whole policy, and a new run is reported."""
        state = self._unentered()
        if state is None:
            return None
        set_direct(state)
        if self._direct_runs.begins(states, moment_of(time)) and self.on_direct is not None:
            self.on_direct(state.plan)
        return state

    def _unentered(self) -> RequestState | None:
        """``forward`` called directly: no call of the denoiser was seen, so nothing is known, so everything is protected."""
        if self.plan is None:
            return None
        allowed = self.plan.policy.settings.on_error == "allow"
        return RequestState(RequestFacts(self.plan, (), self.number, direct=True, skip_errors=allowed))


def _asked_of(plan: Plan, acting: Sequence[ActiveEdit]) -> list[Any]:
    """The keys and values that the edits which act ask for: all of the plan's, where one does not say."""
    asked = [getattr(active.edit, "keys", None) for active in acting]
    named = {id(keys): keys for own in asked if own is not None for keys in own}
    return [*(plan.tokens if None in asked else ()), *named.values()]
