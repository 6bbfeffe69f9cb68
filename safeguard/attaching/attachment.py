"""One pipeline with hooks at its seams: what the running plan asks for is done here, row by row."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.attaching import hooks
from safeguard.attaching.encode import TextEncoding
from safeguard.attaching.rows import rows_of
from safeguard.attaching.sites import SiteTable, SiteTokens, find_denoisers, inner
from safeguard.erasing import (
    EncodedText,
    Plan,
    PredictionCall,
    PredictionEdit,
    Seam,
    SiteCall,
    SiteEffect,
    StatesCall,
    TextSite,
    TextSiteEdit,
    TextStatesEdit,
)
from safeguard.erasing.activation import ActiveEdit, Row, Running, current
from safeguard.errors import CapabilityError

OFFERED: Final = frozenset({Seam.TEXT_STATES, Seam.TEXT_SITE, Seam.PREDICTION})
_suspended: Final[ContextVar[bool]] = ContextVar("safeguard_suspended", default=False)


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
        self.on_direct: Any = None
        self._pipe = weakref.ref(pipe)
        self._table = SiteTable(self.denoisers)
        self._encoding = TextEncoding(pipe, self.base)
        self._handles = hooks.Handles()
        self._direct: ContextVar[Running | None] = ContextVar("safeguard_direct", default=None)
        self._last_direct: float = float("-inf")

    # what erasers ask for

    @property
    def name(self) -> str:
        return self.base.__name__

    @property
    def sites(self) -> Sequence[TextSite]:
        return [site.info for site in self._table.sites]

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return self._encoding.encode(texts)

    def keys(self, states: Tensor) -> SiteTokens:
        return self._table.tokens(states)

    # hooks

    def install(self) -> None:
        for denoiser in self.denoisers.values():
            hooks.hook_denoiser(self._handles, denoiser, self)
        for site in self._table.sites:
            hooks.hook_site(self._handles, site, self)

    def remove(self) -> None:
        self._handles.remove()

    def ensure(self) -> None:
        """Check before a request that every hook is in force; put them back where modules were replaced.

        Raises CapabilityError if a denoiser was exchanged for one that was never tested.
        """
        pipe = self._pipe()
        for name, denoiser in self.denoisers.items():
            if pipe is not None and inner(getattr(pipe, name, None)) is not denoiser:
                raise CapabilityError(
                    f"component {name!r} was replaced after protect(); release the guard and protect the pipeline again",
                    pipeline=self.name,
                    missing=name,
                )
        if self._handles.intact and self._current():
            return
        self._handles.remove()
        self._table.refresh()
        self.install()

    def _current(self) -> bool:
        return all(site.hooked for site in self._table.sites)

    # the walk of one denoiser call

    def on_enter(self, states: Tensor, timestep: Any, inputs: Any, grid: tuple[int, int] | None) -> Tensor | None:
        """A denoiser call begins: tell its rows apart, then let the text-states edits act. None: nothing changed."""
        if _suspended.get() or states is None:
            return None
        state = current()
        if state is None:
            state = self._begin_direct(timestep)
        if state is None or state.idle:
            return None
        self._locate(state, timestep)
        state.rows = rows_of(state, states)
        state.grid, state.inputs = grid, inputs
        changed: Tensor | None = None
        for edit in state.plan.of(TextStatesEdit):
            active = self._active(state, edit, state.rows, states, unconditional=edit.unconditional)
            if edit.unconditional:
                self._require_twin(state, edit)
            if active is None:
                continue
            changed = states.clone() if changed is None else changed
            texts = state.negative_texts if edit.unconditional else state.texts
            rows = [state.rows[index].image for index in active.rows]
            call = StatesCall(
                changed[active.index],
                active.strengths,
                [texts[image] if image is not None and image < len(texts) else None for image in rows],
                edit.unconditional,
                state.progress,
                lambda wanted: self._encoding.states(wanted).to(states),
            )
            changed[active.index] = edit(call).to(states.dtype)
            active.note(state.step)
        return changed

    def _require_twin(self, state: Running, edit: TextStatesEdit) -> None:
        """An edit of the unconditional branch cannot protect a call that has none: raise rather than pass it by."""
        rows = state.rows or ()
        wanting = {rows[index].image for index in state.active(edit, rows)[0]}
        if wanting and not wanting <= {row.image for row in rows if row.unconditional}:
            raise CapabilityError(
                f"concept {edit.concepts[0]!r} is erased on the unconditional branch, and this call has none; "
                "use guidance_scale > 1, or another eraser",
                pipeline=self.name,
                missing="unconditional rows",
            )

    def at_site(self, index: int, output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None) -> Tensor | None:
        """An attention of image tokens over text is done: add what the text-site edits find. None: nothing changed."""
        if _suspended.get():
            return None
        state = current() or self._direct.get() or self._unentered()
        if state is None or state.idle:
            return None
        rows = state.rows if state.rows is not None and len(state.rows) == len(output) else (Row(None),) * len(output)
        site = self._table.sites[index]
        changed: Tensor | None = None
        for edit in state.plan.of(TextSiteEdit):
            active = self._active(state, edit, rows, output)
            if active is None:
                continue
            part = output[active.index]
            text = states[active.index]
            call = SiteCall(
                site.info,
                part,
                site.query(query[active.index]),
                lambda text=text: (site.keys(text), site.values(text)),  # type: ignore[misc]
                None if mask is None else _mask_rows(mask, active.index, len(output)),
                active.strengths,
                state.progress,
            )
            effect = active.edit(call)
            changed = output.clone() if changed is None else changed
            changed[active.index] += effect.delta
            self._note(state, active, index, effect, part)
        return changed

    def on_leave(self, prediction: Tensor, inputs: Any) -> Tensor | None:
        """A denoiser call ends: let the prediction edits act. None: nothing changed."""
        if _suspended.get():
            return None
        state = current() or self._direct.get()
        self._direct.set(None)
        if state is None or state.idle or state.rows is None:
            return None
        changed: Tensor | None = None
        for edit in state.plan.of(PredictionEdit):
            active = self._active(state, edit, state.rows, prediction)
            if active is None:
                continue
            if inputs is None:
                raise CapabilityError(
                    "an eraser at the prediction seam calls the denoiser again, which a compiled denoiser does not allow; "
                    "choose another eraser or do not compile",
                    pipeline=self.name,
                    missing="prediction seam under torch.compile",
                )
            changed = prediction.clone() if changed is None else changed
            changed[active.index] = edit(self._prediction_call(state, active, changed, inputs)).to(prediction.dtype)
            active.note(state.step)
        state.rows = state.inputs = None
        return changed

    def _prediction_call(self, state: Running, active: ActiveEdit, prediction: Tensor, inputs: Any) -> PredictionCall:
        rows = state.rows or ()
        twins = {row.image: place for place, row in enumerate(rows) if row.unconditional}
        places = [twins.get(rows[index].image) for index in active.rows]
        twin = None if None in places else prediction[places]

        def predict(texts: Sequence[str]) -> Tensor:
            module, args, kwargs = inputs
            args = hooks.with_rows(args, active.index, len(prediction))
            kwargs = hooks.with_rows(kwargs, active.index, len(prediction))
            text = self._encoding.states(texts)
            found = hooks.Arguments(module)
            args, kwargs = found.put(
                "encoder_hidden_states", text.to(found.get("encoder_hidden_states", args, kwargs)), args, kwargs
            )
            token = _suspended.set(True)
            try:
                made: Tensor = module(*args, **kwargs)[0]
            finally:
                _suspended.reset(token)
            return made

        return PredictionCall(prediction[active.index], twin, active.strengths, state.progress, predict)

    # state of a call

    def _begin_direct(self, timestep: Any) -> Running | None:
        """A call from outside every request: every row gets the whole policy, and a new run is reported."""
        if self.plan is None:
            return None
        state = Running(self.plan, (), direct=True)
        self._direct.set(state)
        moment = _moment(timestep)
        if moment >= self._last_direct and self.on_direct is not None:
            self.on_direct(self.plan)
        self._last_direct = moment
        return state

    def _unentered(self) -> Running | None:
        """``forward`` called directly: no call of the denoiser was seen, so nothing is known, so everything is protected."""
        return None if self.plan is None else Running(self.plan, (), direct=True)

    def _locate(self, state: Running, timestep: Any) -> None:
        moment = _moment(timestep)
        pipe = self._pipe()
        schedule = state.memory.get("schedule")
        if schedule is None and not state.direct and pipe is not None:
            times = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
            schedule = {} if times is None else {float(time): place for place, time in enumerate(times.tolist())}
            state.memory["schedule"] = schedule
        if schedule and moment in schedule:
            state.step, state.progress = schedule[moment], schedule[moment] / len(schedule)
        else:
            total = getattr(getattr(getattr(pipe, "scheduler", None), "config", None), "num_train_timesteps", 1000)
            state.step, state.progress = state.step + 1, min(max(1.0 - moment / total, 0.0), 0.999)

    def _active(
        self, state: Running, edit: Any, rows: Sequence[Row], like: Tensor, *, unconditional: bool = False
    ) -> ActiveEdit | None:
        key = ("active", id(edit), rows, unconditional, state.window(edit), like.device)
        if key not in state.memory:
            picked, used, table = state.active(edit, rows, unconditional=unconditional)
            state.memory[key] = None
            if picked:
                narrow = edit if len(used) == len(edit.concepts) or not isinstance(edit, TextSiteEdit) else edit.select(used)
                strengths = torch.tensor(table, dtype=torch.float32, device=like.device)
                if narrow is edit and len(used) < len(edit.concepts):
                    strengths = _spread(strengths, used, len(edit.concepts))
                    used = list(range(len(edit.concepts)))
                columns = [state.plan.columns[edit.concepts[place]] for place in used]
                images = [rows[index].image for index in picked]
                act = ActiveEdit(narrow, picked, images, _index(picked, like.device), columns, strengths)
                state.acts.append(act)
                state.memory[key] = act
        found: ActiveEdit | None = state.memory[key]
        return found

    def _note(self, state: Running, active: ActiveEdit, site: int, effect: SiteEffect, part: Tensor) -> None:
        """Keep the evidence of one act at a text site; and the maps, where they were asked for."""
        change = effect.delta.float().norm(dim=(1, 2)) / part.float().norm(dim=(1, 2)).clamp_min(1e-12)
        active.note(state.step, site, change, None if effect.mass is None else effect.mass.mean((1, 2)))
        if state.maps is None or effect.mass is None:
            return
        for place, image in enumerate(active.images):
            for spot, column in enumerate(active.columns):
                if image is not None:
                    _add_map(state.maps, state.grid, (image, column), effect.mass[place, :, :, spot].mean(0))


def _add_map(maps: dict[tuple[int, int], Any], grid: tuple[int, int] | None, key: tuple[int, int], mass: Tensor) -> None:
    """Add one site's mass per image token [N], brought to the latent's own grid."""
    if grid is None:
        return
    height, width = grid
    shrink = max(1, round((height * width / mass.numel()) ** 0.5))
    shape = (-(-height // shrink), -(-width // shrink))
    if shape[0] * shape[1] == mass.numel():
        drawn = torch.nn.functional.interpolate(mass.float().reshape(1, 1, *shape), size=grid, mode="bilinear")[0, 0]
        maps[key] = maps.get(key, 0.0) + drawn


def _index(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """A slice where the rows stand together, since that copies nothing."""
    first, last = rows[0], rows[-1] + 1
    return slice(first, last) if last - first == len(rows) else torch.tensor(rows, device=device)


def _spread(strengths: Tensor, used: Sequence[int], width: int) -> Tensor:
    whole = strengths.new_zeros(len(strengths), width)
    whole[:, list(used)] = strengths
    return whole


def _mask_rows(mask: Tensor, index: slice | Tensor, count: int) -> Tensor:
    """An attention bias [B or 1, 1, L] for some rows: [R or 1, 1, 1, L]."""
    picked = mask[index] if len(mask) == count else mask
    return picked.unsqueeze(1) if picked.dim() == 3 else picked


def _moment(timestep: Any) -> float:
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
