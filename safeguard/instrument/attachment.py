"""One pipeline with hooks at its seams: what the running plan asks for is done here, row by row."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.apply import edit_checks, module_edits, probing, text_states
from safeguard.instrument.apply.direct_runs import DirectRuns
from safeguard.instrument.apply.dispatch import active_edit, attempt, note
from safeguard.instrument.apply.row_matching import UNKNOWN, rows_of
from safeguard.instrument.apply.schedule import locate, moment_of
from safeguard.instrument.apply.site_calls import CrossAttentionView, JointAttentionView, SiteView
from safeguard.instrument.apply.text_kv import TextKVCache, numbers_of
from safeguard.instrument.discover.denoiser import Denoiser
from safeguard.instrument.discover.denoisers import find_denoisers
from safeguard.instrument.discover.dry_run import Values, fresh, inner, pick, stacked
from safeguard.instrument.discover.mid_block import find_mid_block
from safeguard.instrument.discover.prompt_branches import PromptBranches
from safeguard.instrument.discover.sites import CrossAttentionSite, JointAttentionSite, Site, expanded, mechanism_of
from safeguard.instrument.discover.text_encoding import TextEncoding
from safeguard.instrument.discover.text_layers import LinearTextLayers
from safeguard.instrument.hooks import denoiser_hooks, sdpa
from safeguard.plan.calibration import Calibration
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
from safeguard.sdk.fingerprint import Fingerprint
from safeguard.sdk.pipeline import EncodedText, FeatureSite, TextLayers, TextSite
from safeguard.sdk.seams import Seam

OFFERED: Final = frozenset(Seam)


class Attachment:
    """The seams of one live pipeline (``safeguard.sdk.pipeline.Pipeline``), and the hooks that serve them.

    ``example`` is what a call of one prompt needs besides the prompt, for the trials by which the seams are found.
    ``plan`` is what protects calls of the denoiser that come from outside every guarded request: all rows, whole policy.
    ``on_direct`` is called once for every such run. Raises CapabilityError where the pipeline has no denoiser that reads text,
    or text reaches the image in a way that no eraser can get at.
    """

    def __init__(self, pipe: Any, example: Mapping[str, Any] | None = None) -> None:
        self.base: type = type(pipe)
        self.number = denoiser_hooks.register(self)
        self.plan: Plan | None = None
        self.on_direct: Callable[[Plan], None] | None = None
        self._pipe = weakref.ref(pipe)
        with quiet():  # a denoiser may carry the hooks of another guard
            found = find_denoisers(pipe, self.base, example or {})
            self.parts, self._sites = found.parts, found.sites
            self._encoding = TextEncoding(pipe, self.base, found.ways)
            self.roles = PromptBranches.find(pipe, self.base, *found.ways[self._encoding.main])
        self._linears = LinearTextLayers(self.parts, self._encoding)
        self.weight, self.inputs = self._linears.weight, self._linears.inputs
        self._handles, self._module_handles = denoiser_hooks.Handles(), module_edits.ModuleHooks(self)
        self._hooking = threading.Lock()
        self._direct_runs, self._fit = DirectRuns(), probing.CalibrationCheck()

    @property
    def name(self) -> str:
        return self.base.__name__

    @property
    def denoisers(self) -> dict[str, Any]:
        """The denoisers that were found, by name, as far as they still exist."""
        return {name: part.module for name, part in self.parts.items() if part.exists}

    @property
    def sites(self) -> Sequence[TextSite]:
        return [site.info for site in self._sites]

    @property
    def mechanism(self) -> str:
        """How its text sites are served, with their number: "4 separate", "5 joint"."""
        return mechanism_of(self._sites)

    @property
    def reads_pooled(self) -> bool:
        """Whether a denoiser reads the text as one vector besides."""
        return any(part.text.pooled for part in self.parts.values())

    @property
    def main(self) -> str:
        """The denoiser that makes the image."""
        return self._encoding.main

    @property
    def main_sites(self) -> Sequence[TextSite]:
        return [site.info for site in self.watched_sites]

    @property
    def watched_sites(self) -> list[Site]:
        """The text sites at which evidence is taken: those of the main denoiser."""
        return [site for site in self._sites if site.owner == self.main]

    @cached_property
    def middle(self) -> FeatureSite | None:
        return find_mid_block(self.parts[self.main])

    @property
    def fingerprint(self) -> Fingerprint:
        return probing.fingerprint_of(self.name, self.watched_sites)

    def require(self, calibration: Calibration) -> None:
        """Raises CapabilityError for a calibration that does not fit, or does no more."""
        self._fit.require(calibration, self.name, self.watched_sites)

    @property
    def encoding_lock(self) -> AbstractContextManager[object]:
        """Held while texts are encoded, by erasers and by requests."""
        return self._encoding.lock

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return self._encoding.encode(texts)

    def pooled(self, texts: Sequence[str]) -> Tensor | None:
        return self._encoding.pooled(texts) if self.reads_pooled else None

    @property
    def text_layers(self) -> Sequence[TextLayers]:
        return self._linears.found

    def keys(self, texts: Sequence[EncodedText]) -> TextKVCache:
        return TextKVCache(texts, self._encoding.rows, lambda: self._sites)

    def known_texts(self, texts: Sequence[str | None], against: Sequence[str | None]) -> tuple[list[Any], list[Any]]:
        """What a request's texts will be in the denoiser's arguments, for a pipeline that does not say when it encodes."""
        if self.roles.positive:
            return [], []
        return [self._encoding.states(texts)], [self._encoding.states(against)]

    def install(self) -> None:
        """Put the hooks in. Whatever torch compiled before is compiled anew, since it would run without them."""
        denoiser_hooks.forget_graphs()
        for name, part in self.parts.items():
            denoiser_hooks.hook_denoiser(self._handles, part.module, name, part.text, self)
        for site in self._sites:
            if isinstance(site, CrossAttentionSite):
                denoiser_hooks.hook_site(self._handles, site, self)
        sdpa.tap(self._handles, [site for site in self._sites if isinstance(site, JointAttentionSite)], self.number)

    def remove(self) -> None:
        """Take the hooks off, and let graphs be compiled anew without them."""
        with self._hooking:
            self._handles.remove()
            self._module_handles.remove()
            sdpa.close_tap(self.number)
            denoiser_hooks.forget_graphs()

    def serve(self, plan: Plan) -> None:
        """Hook the modules that the plan's edits of linear layers and features name."""
        with self._hooking:
            self._module_handles.serve(plan)

    def ensure(self, pipe: Any) -> None:
        """Check before a request that every hook is in force; put them back where modules were replaced.

        ``pipe`` is the pipeline that is called: the one that was protected, or a copy of it. Raises CapabilityError if one of
        its denoisers is neither the one that was tested nor a copy that carries its hooks.
        """
        denoisers = self.denoisers
        for name in self.parts:
            live, denoiser = inner(getattr(pipe, name, None)), denoisers.get(name)
            sites = [site for site in self._sites if site.owner == name]
            same = denoiser is not None and isinstance(live, type(denoiser))
            if not same or (live is not denoiser and not denoiser_hooks.carries(live, sites, self.number)):
                raise CapabilityError(
                    f"component {name!r} was replaced after protect(); release the guard and protect the pipeline again",
                    pipeline=self.name,
                    missing=name,
                )
        if not self._in_force():
            with self._hooking:
                if not self._in_force():  # unless another request has mended them meanwhile
                    self._handles.remove()
                    self._refresh()
                    self.install()

    def _in_force(self) -> bool:
        joint = [site for site in self._sites if isinstance(site, JointAttentionSite)]
        if joint and not sdpa.is_open():
            return False
        there = all(self.parts[site.owner].module.get_submodule(site.name) is site.module for site in joint)
        separate = all(site.hooked for site in self._sites if isinstance(site, CrossAttentionSite))
        return there and separate and self._handles.intact and self._module_handles.intact

    def _refresh(self) -> None:
        """Find the sites' modules anew where a pipeline operation has replaced them."""
        for site in self._sites:
            module = self.parts[site.owner].module.get_submodule(site.name)
            if isinstance(site, CrossAttentionSite):
                site.attention = module
            else:
                site.module = module
        self._module_handles.refresh()
        self._linears.forget()

    def on_enter(self, name: str, values: Values, *, whole: bool = True) -> Values | None:
        """A denoiser call begins: tell its rows apart, then let the text-states edits act. None: nothing changed."""
        sdpa.leave_attention()
        part = self.parts[name]
        given = pick(values, part.text.states)
        if current_context().quiet or given is None:
            return None
        states = stacked(given)
        time = part.time_of(values)
        state = self._request() or self._begin_direct(states, time)
        if state is None or not state.plan.edits:
            return None
        state.log.calls += 1
        scheduler = state.facts.scheduler  # not every one has a length, by which it would be true or false
        locate(state, time, getattr(self._pipe(), "scheduler", None) if scheduler is None else scheduler)
        frame = CallFrame(rows_of(state, states), fresh(values) if whole else None, grid=part.grid_of(values))
        state.frame = frame
        state.log.unmatched += UNKNOWN in frame.rows and not state.facts.direct
        changed = values
        if name == self.main:
            probing.begin(state, values, part, states.device)
        for edit in state.plan.states_edits:
            active = active_edit(state, edit, frame.rows, states.device, unconditional=edit.unconditional)
            if active is None:
                continue
            made = attempt(state, edit, text_states.edited, state, edit, active, changed, part, self._encoding)
            if made is not None:
                active.answer(state.log.step, acted=made is not changed)
                changed = made
        frame.edited = frame.values if changed is values or not whole else fresh(changed)
        self._prepare(state, part, changed, states.device)
        return None if changed is values else changed

    def _prepare(self, state: RequestState, part: Denoiser, values: Values, device: torch.device) -> None:
        """Where text-site edits will act at joint sites: know where the text stands, and have erasure prompts recorded."""
        acting = self._site_edits(state, state.rows, device)
        recorded = any(site.recorded and site.owner == part.name for site in self._sites)
        if not recorded or not (acting or state.looks):
            return
        wanted = (*(state.plan.tokens if acting else ()), *(state.plan.watch_tokens if state.looks else ()))
        caches = state.caches
        if part.name not in caches.stamps:  # weights do not change while a request runs
            caches.stamps[part.name] = part.stamp
        with quiet():
            caches.shapes = part.learn(self._sites, values)
            numbers = numbers_of(values, len(state.rows), part.text.every)
            for tokens in wanted:
                if isinstance(tokens, TextKVCache):
                    tokens.prepare(part, numbers, caches.stamps[part.name])

    def at_site(self, index: int, output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None) -> Tensor | None:
        """A separate attention is done: add what the text-site edits find. None: nothing changed."""
        state = self._visiting()
        if state is None:
            return None
        site = self._sites[index]
        assert isinstance(site, CrossAttentionSite)
        rows = self._rows(state, site, len(output))
        if query is None or states is None:
            if not self._concerns(state, rows, output.device):
                return None
            raise CapabilityError(
                f"the attention {site.info.name} was run in parts, past its own call; call it as a whole",
                pipeline=self.name,
                missing="query and text",
            )
        return self._act(state, rows, CrossAttentionView(site, output, query, states, mask))

    def at_call(self, site: int, turn: int, call: denoiser_hooks.AttentionCall) -> Tensor | None:
        """A joint attention is done: add what the text-site edits find. None: nothing changed."""
        state = self._visiting()
        if state is None:
            return None
        live = self._sites[site]
        assert isinstance(live, JointAttentionSite)
        rows = self._rows(state, live, len(call.output), turn)
        if not self._concerns(state, rows, call.output.device):
            return None
        layout = live.layout(state.caches.shapes, turn)
        if layout is None:
            raise CapabilityError(
                f"attention {live.info.name} was reached past the call of its denoiser; call the denoiser as a whole",
                pipeline=self.name,
                missing="a call of the denoiser",
            )
        return self._act(state, rows, JointAttentionView(live, layout, call))

    def at_module(self, name: str, inputs: Tensor | None, output: Tensor) -> Tensor | None:
        """A named module is done: let the edits of linear layers and features act. None: nothing changed."""
        state = None if current_context().quiet else self._request() or self._outside() or self._unentered()
        return None if state is None else module_edits.edited(state, name, inputs, output)

    def _visiting(self) -> RequestState | None:
        if current_context().quiet:
            return None
        state = self._request() or self._outside() or self._unentered()
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
        kept = None if state.frame is None else state.frame.site_edits
        key = tuple(rows)
        if kept is None or key not in kept:
            edits = (active_edit(state, edit, key, device) for edit in state.plan.site_edits)
            found = [active for active in edits if active is not None]
            if kept is None:
                return found
            kept[key] = found
        return kept[key]

    def _require_sites_only(self, state: RequestState) -> None:
        """``forward`` was called past the hooks of the denoiser itself, so what acts there cannot protect this call."""
        past = [edit for edit in (*state.plan.states_edits, *state.plan.prediction_edits) if any(state.plan.strengths_of(edit))]
        if past:
            raise CapabilityError(
                f"forward() of the denoiser was called by itself, where concept {past[0].concepts[0]!r} cannot be erased; call "
                "the denoiser, or choose an eraser that acts at the text sites",
                pipeline=self.name,
                missing="a call of the denoiser",
            )

    def on_leave(self, name: str, prediction: Tensor | None, *, compiled: bool = False) -> Tensor | None:
        """A denoiser call ends: read the evidence, let the prediction edits act. None: nothing changed."""
        if current_context().quiet:
            return None
        state = self._request() or self._outside()
        set_direct(None)
        if state is None or state.frame is None:
            return None
        again = probing.read(state, prediction, self.parts[name], compiled=compiled)
        if again is not None:
            return again
        module_edits.require_reached(state, name)
        changed = None
        if prediction is not None and state.plan.prediction_edits:
            changed = text_states.predicted(state, prediction, self.parts[name], self._encoding, compiled=compiled)
        state.frame = None
        return changed

    def _request(self) -> RequestState | None:
        """The request that runs here. One that runs on another pipeline, which calls this one meanwhile, does not count."""
        return self._own(current_context().request)

    def _outside(self) -> RequestState | None:
        return self._own(current_context().direct)

    def _own(self, state: RequestState | None) -> RequestState | None:
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
