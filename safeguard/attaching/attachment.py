"""One pipeline with hooks at its seams: what the running plan asks for is done here, row by row."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final

from torch import Tensor

from safeguard.attaching import hooks
from safeguard.attaching.acting import active_edit, add_to_rows, attempt, note, site_call, twins_of
from safeguard.attaching.encode import TextEncoding
from safeguard.attaching.rows import UNKNOWN, rows_of
from safeguard.attaching.sites import Site, SiteTable, SiteTokens, find_denoisers, inner
from safeguard.attaching.timing import DirectRuns, locate, moment_of
from safeguard.erasing import (
    EncodedText,
    Plan,
    PredictionCall,
    Seam,
    SiteEffect,
    StatesCall,
    TextSite,
    TextStatesEdit,
)
from safeguard.erasing.activation import ActiveEdit, Running, current
from safeguard.errors import CapabilityError

OFFERED: Final = frozenset({Seam.TEXT_STATES, Seam.TEXT_SITE, Seam.PREDICTION})
_suspended: Final[ContextVar[bool]] = ContextVar("safeguard_suspended", default=False)
_direct: Final[ContextVar[Running | None]] = ContextVar("safeguard_direct", default=None)


class Attachment:
    """The seams of one live pipeline (``safeguard.erasing.Pipeline``), and the hooks that serve them.

    ``plan`` is what protects calls of the denoiser that come from outside every guarded request: all rows, whole policy.
    ``on_direct`` is called once for every such run.
    """

    def __init__(self, pipe: Any) -> None:
        self.base: type = type(pipe)
        self.denoisers = find_denoisers(pipe)
        self.number = hooks.register(self)
        self.plan: Plan | None = None
        self.on_direct: Callable[[Plan], None] | None = None
        self._pipe = weakref.ref(pipe)
        self._table = SiteTable(self.denoisers)
        self._encoding = TextEncoding(pipe, self.base)
        self._handles = hooks.Handles()
        self._hooking = threading.Lock()
        self._direct_runs = DirectRuns()

    # what erasers ask for

    @property
    def name(self) -> str:
        return self.base.__name__

    @property
    def sites(self) -> Sequence[TextSite]:
        return [site.info for site in self._table.sites]

    @property
    def encoding_lock(self) -> AbstractContextManager[object]:
        """Held while texts are encoded, by erasers and by requests."""
        return self._encoding.lock

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return self._encoding.encode(texts)

    def keys(self, states: Tensor) -> SiteTokens:
        return self._table.tokens(states)

    @property
    def offered(self) -> frozenset[Seam]:
        """The seams that this pipeline offers now. An eraser at the prediction calls the denoiser again, which no graph can."""
        pipe = self._pipe()
        compiled = any(
            getattr(denoiser, "_compiled_call_impl", None) is not None or getattr(pipe, name, denoiser) is not denoiser
            for name, denoiser in self.denoisers.items()
        )
        return OFFERED - {Seam.PREDICTION} if compiled else OFFERED

    # hooks

    def install(self) -> None:
        """Put the hooks in. Whatever torch compiled before is compiled anew, since it would run without them."""
        hooks.forget_graphs()
        for denoiser in self.denoisers.values():
            hooks.hook_denoiser(self._handles, denoiser, self)
        for site in self._table.sites:
            hooks.hook_site(self._handles, site, self)

    def remove(self) -> None:
        """Take the hooks off, and let graphs be compiled anew without them."""
        with self._hooking:
            self._handles.remove()
            hooks.forget_graphs()

    def ensure(self, pipe: Any) -> None:
        """Check before a request that every hook is in force; put them back where modules were replaced.

        ``pipe`` is the pipeline that is called: the one that was protected, or a copy of it. Raises CapabilityError if one of
        its denoisers is neither the one that was tested nor a copy that carries its hooks.
        """
        for name, denoiser in self.denoisers.items():
            live = inner(getattr(pipe, name, None))
            if live is not denoiser and not (isinstance(live, type(denoiser)) and hooks.carries(live, self.number)):
                raise CapabilityError(
                    f"component {name!r} was replaced after protect(); release the guard and protect the pipeline again",
                    pipeline=self.name,
                    missing=name,
                )
        if not self._in_force():
            with self._hooking:
                if not self._in_force():  # unless another request has mended them meanwhile
                    self._handles.remove()
                    self._table.refresh()
                    self.install()

    def _in_force(self) -> bool:
        return self._handles.intact and all(site.hooked for site in self._table.sites)

    # the walk of one denoiser call

    def on_enter(self, call: hooks.Entering) -> tuple[Tensor, Tensor | None] | None:
        """A denoiser call begins: tell its rows apart, then let the text-states edits act. None: nothing changed."""
        if _suspended.get():
            return None
        state = self._request() or self._begin_direct(call)
        if state is None or not state.plan.edits:
            return None
        state.calls += 1
        locate(state, call.timestep, state.scheduler or getattr(self._pipe(), "scheduler", None))
        state.rows, state.site_edits, state.grid = rows_of(state, call.states), None, call.grid
        state.unmatched += UNKNOWN in state.rows and not state.direct
        states, pooled = call.states, call.pooled
        for edit in state.plan.states_edits:
            active = active_edit(state, edit, state.rows, states.device, unconditional=edit.unconditional)
            made = None if active is None else attempt(state, edit, self._states, state, edit, active, states, pooled)
            if made is not None and active is not None:
                states, pooled = made
                active.note(state.step)
        return None if states is call.states else (states, pooled)

    def _states(
        self, state: Running, edit: TextStatesEdit, active: ActiveEdit, states: Tensor, pooled: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The text with what one edit makes of its rows, and the pooled text with it where the edit set whole texts."""
        texts = state.negative_texts if edit.unconditional else state.texts
        given: list[tuple[Tensor, Tensor | None]] = []

        def encode(wanted: Sequence[str]) -> Tensor:
            given.append(self._text(state, wanted, states))
            return given[-1][0]

        made = edit(
            StatesCall(
                states[active.index],
                active.strengths,
                [texts[image] if image is not None and image < len(texts) else None for image in active.images],
                edit.unconditional,
                state.progress,
                encode,
            )
        )
        changed = states.clone()
        changed[active.index] = made.to(states.dtype)
        whole = next((pool for text, pool in given if text is made), None)
        if pooled is not None and whole is not None:
            pooled = pooled.clone()
            pooled[active.index] = whole.to(pooled)
        return changed, pooled

    def _text(self, state: Running, texts: Sequence[str], like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Texts as the denoiser would get them; encoded once a request, since every step asks again."""
        key = ("text", tuple(texts))
        if key not in state.memory:
            states, pooled = self._encoding.states(texts)
            state.memory[key] = (states.to(like), pooled)
        found: tuple[Tensor, Tensor | None] = state.memory[key]
        return found

    def at_site(self, index: int, output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None) -> Tensor | None:
        """An attention of image tokens over text is done: add what the text-site edits find. None: nothing changed."""
        if _suspended.get():
            return None
        state = self._request() or self._outside() or self._unentered()
        if state is None:
            return None
        state.visits += 1
        if state.rows is None:
            self._require_sites_only(state)
        edits = self._site_edits(state, output)
        if edits and (query is None or states is None):
            raise CapabilityError(
                f"the attention {self._table.sites[index].info.name} was run in parts, past its own call; call it as a whole",
                pipeline=self.name,
                missing="query and text",
            )
        changed: Tensor | None = None
        for active in edits:
            so_far = output if changed is None else changed
            site = self._table.sites[index]
            effect = attempt(state, active.edit, self._effect, state, site, active, so_far, query, states, mask)
            if effect is None:
                continue
            note(state, active, index, effect, so_far[active.index])
            changed = output.clone() if changed is None else changed
            add_to_rows(changed, active.index, effect.delta)
        return changed

    def _require_sites_only(self, state: Running) -> None:
        """``forward`` was called past the hooks of the denoiser itself, so what acts there cannot protect this call."""
        past = [edit for edit in (*state.plan.states_edits, *state.plan.prediction_edits) if any(state.plan.strengths_of(edit))]
        if past:
            raise CapabilityError(
                f"forward() of the denoiser was called by itself, where concept {past[0].concepts[0]!r} cannot be erased; call "
                "the denoiser, or choose an eraser that acts at the text sites",
                pipeline=self.name,
                missing="a call of the denoiser",
            )

    def _effect(
        self,
        state: Running,
        site: Site,
        active: ActiveEdit,
        output: Tensor,
        query: Tensor,
        states: Tensor,
        mask: Tensor | None,
    ) -> SiteEffect:
        effect: SiteEffect = active.edit(site_call(state, site, active, output, query, states, mask))
        return effect

    def _site_edits(self, state: Running, output: Tensor) -> list[ActiveEdit]:
        """What acts at the text sites of this denoiser call: worked out at its first site."""
        if state.site_edits is not None and state.rows is not None and len(state.rows) == len(output):
            return state.site_edits
        known = state.rows is not None and len(state.rows) == len(output)
        rows = state.rows if known and state.rows is not None else (UNKNOWN,) * len(output)
        edits = (active_edit(state, edit, rows, output.device) for edit in state.plan.site_edits)
        found = [active for active in edits if active is not None]
        if known:
            state.site_edits = found
        return found

    def on_leave(self, prediction: Tensor | None, inputs: Any) -> Tensor | None:
        """A denoiser call ends: let the prediction edits act. None: nothing changed."""
        if _suspended.get():
            return None
        state = self._request() or self._outside()
        _direct.set(None)
        if state is None or state.rows is None:
            return None
        changed = None if prediction is None else self._predictions(state, prediction, inputs)
        state.leave()
        return changed

    def _predictions(self, state: Running, prediction: Tensor, inputs: Any) -> Tensor | None:
        changed: Tensor | None = None
        for edit in state.plan.prediction_edits:
            active = active_edit(state, edit, state.rows or (), prediction.device)
            if active is None:
                continue
            if inputs is None:
                raise CapabilityError(
                    "an eraser at the prediction seam calls the denoiser again, which a compiled denoiser does not allow; "
                    "choose another eraser or do not compile",
                    pipeline=self.name,
                    missing="prediction seam under torch.compile",
                )
            so_far = prediction if changed is None else changed
            made = attempt(state, edit, edit, self._prediction_call(state, active, so_far, inputs))
            if made is not None:
                changed = prediction.clone() if changed is None else changed
                changed[active.index] = made.to(prediction.dtype)
                active.note(state.step)
        return changed

    def _prediction_call(self, state: Running, active: ActiveEdit, prediction: Tensor, inputs: Any) -> PredictionCall:
        twins = twins_of(state.rows or (), active.rows)

        def predict(texts: Sequence[str]) -> Tensor:
            module, args, kwargs = inputs  # the whole batch again: some attentions (PAG) count on all its branches
            args, kwargs = self._with_texts(state, texts, active, hooks.Arguments(module), args, kwargs)
            token = _suspended.set(True)
            try:
                made: Tensor = module(*args, **kwargs)[0]
            finally:
                _suspended.reset(token)
            return made[active.index]

        return PredictionCall(
            prediction[active.index], None if twins is None else prediction[twins], active.strengths, state.progress, predict
        )

    def _with_texts(
        self,
        state: Running,
        texts: Sequence[str],
        active: ActiveEdit,
        arguments: hooks.Arguments,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a denoiser call with other texts in the active rows."""
        states = arguments.get("encoder_hidden_states", args, kwargs)
        text, pooled = self._text(state, texts, states)
        if len(active.rows) == len(states):
            states = text  # of any length: no other row has to fit beside it
        else:
            states = states.clone()
            states[active.index] = text
        added = arguments.get("added_cond_kwargs", args, kwargs)
        if pooled is not None and added is not None and "text_embeds" in added:
            added = {**added, "text_embeds": added["text_embeds"].clone()}
            added["text_embeds"][active.index] = pooled.to(added["text_embeds"])
            args, kwargs = arguments.put("added_cond_kwargs", added, args, kwargs)
        return arguments.put("encoder_hidden_states", states, args, kwargs)

    # whose call it is

    def _request(self) -> Running | None:
        """The request that runs here. One that runs on another pipeline, which calls this one meanwhile, does not count."""
        state = current()
        return state if state is not None and state.host == self.number else None

    def _outside(self) -> Running | None:
        state = _direct.get()
        return state if state is not None and state.host == self.number else None

    def _begin_direct(self, call: hooks.Entering) -> Running | None:
        """A call from outside every request: every row gets the whole policy, and a new run is reported."""
        state = self._unentered()
        if state is None:
            return None
        _direct.set(state)
        if self._direct_runs.begins(call.states, moment_of(call.timestep)) and self.on_direct is not None:
            self.on_direct(state.plan)
        return state

    def _unentered(self) -> Running | None:
        """``forward`` called directly: no call of the denoiser was seen, so nothing is known, so everything is protected."""
        if self.plan is None:
            return None
        allowed = self.plan.policy.settings.on_error == "allow"
        return Running(self.plan, (), self.number, direct=True, skip_errors=allowed)
