"""Calls an edit and checks what it gives back: a wrong edit is its eraser's fault, and is refused as that.

Types, shapes and devices are checked in every call. In the self-test, which is run before a plan may serve, an edit that acts
is called once more with every strength 0 (at the first text site where it acts): one that answers the same ignores its
strengths.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from safeguard.errors import PluginError, SafeguardError
from safeguard.plan.compile import Plan
from safeguard.plan.request_state import RequestState
from safeguard.sdk.calls import EditCall, FeatureCall, LinearCall, PredictionCall, SiteCall, SiteEffect, StatesCall
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.seams import Edit, FeatureEdit, LinearEdit, PredictionEdit, TextSiteEdit, TextStatesEdit

C = TypeVar("C", bound=EditCall)


def edit_fault(plan: Plan, edit: Edit, what: str, *, site: str = "", shape: Sequence[int] = ()) -> PluginError:
    """The error that blames an edit's eraser, with its concepts, seam, site and shape."""
    planned = plan.concepts[plan.columns[edit.concepts[0]]]
    concepts = ", ".join(edit.concepts)
    place = f"the {edit.seam.value} seam" + (f", {site}" if site else "")
    return PluginError(
        f"its edit of concept {concepts!r} at {place}: {what}",
        name=planned.eraser.name,
        distribution=planned.distribution,
        concept=concepts,
        seam=edit.seam.value,
        site=site,
        shape=tuple(shape),
    )


def selected(plan: Plan, edit: TextSiteEdit, columns: Sequence[int]) -> TextSiteEdit:
    """A text-site edit for some of its concepts. Raises PluginError where ``select`` gives an edit for others."""
    narrow: Any = edit.select(columns)
    wanted = tuple(edit.concepts[column] for column in columns)
    if not isinstance(narrow, TextSiteEdit):
        raise edit_fault(plan, edit, f"select({list(columns)}) gave back a {_kind(narrow)}, not a TextSiteEdit")
    if tuple(narrow.concepts) != wanted:
        what = f"select({list(columns)}) gave back an edit of {', '.join(narrow.concepts)!r}, not of {', '.join(wanted)!r}"
        raise edit_fault(plan, edit, what)
    return narrow


def site_effect(state: RequestState, edit: TextSiteEdit, call: SiteCall) -> SiteEffect:
    """What a text-site edit adds. Raises PluginError for anything but a `SiteEffect` that fits the output of the site."""
    site = call.site.name
    effect = _called(state, edit, functools.partial(edit, call), site)
    if not isinstance(effect, SiteEffect):
        raise edit_fault(state.plan, edit, f"gave back a {_kind(effect)}, not a SiteEffect", site=site)
    _require_like(state, edit, effect.delta, call.output, site, "a delta")
    if effect.mass is not None:
        _require_mass(state, edit, effect.mass, call)
    if state.facts.trial and _key(edit) not in state.caches.tried:
        one, alone, delta = _first_concept(state, edit, call, effect)
        _require_strengths(state, edit, lambda: one(_idle(alone)).delta, delta, torch.zeros_like(delta), site)
    return effect


def new_states(
    state: RequestState, edit: TextStatesEdit, call: StatesCall, encoded: Callable[[Any], bool]
) -> Tensor | tuple[Tensor, Tensor | None]:
    """What a text-states edit makes of a text. Raises PluginError for anything but states, and pooled vectors, of one shape.

    ``encoded`` says whether a tensor is what ``call.encode`` gave for every row: such a text may have another length.
    """
    answer: Tensor | tuple[Tensor, Tensor | None] = _called(state, edit, functools.partial(edit, call))
    states, pooled = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if not encoded(states):
        _require_like(state, edit, states, call.states, "", "text states")
    if pooled is not None and call.pooled is not None:
        _require_like(state, edit, pooled, call.pooled, "", "pooled vectors")
    if state.facts.trial and pooled is None:

        def at_zero() -> Any:
            idle = edit(_idle(call))
            return idle[0] if isinstance(idle, tuple) else idle

        _require_strengths(state, edit, at_zero, states, call.states)
    return answer


def new_prediction(state: RequestState, edit: PredictionEdit, call: PredictionCall) -> Tensor:
    """What a prediction edit makes of a prediction. Raises PluginError for anything but a tensor of the same shape."""
    if state.facts.trial:  # the trial at strength 0 asks for the same texts: the denoiser need not be run for them again
        known = functools.cache(call.predict)
        call = replace(call, predict=lambda texts: known(tuple(texts)))
    answer: Tensor = _called(state, edit, functools.partial(edit, call))
    _require_like(state, edit, answer, call.prediction, "", "a prediction")
    if state.facts.trial:
        _require_strengths(state, edit, lambda: edit(_idle(call)), answer, call.prediction)
    return answer


def new_feature(state: RequestState, edit: FeatureEdit, call: FeatureCall) -> Tensor:
    """What a feature edit makes of a module's output. Raises PluginError for anything but a tensor of the same shape."""
    answer: Tensor = _called(state, edit, functools.partial(edit, call), edit.module)
    _require_like(state, edit, answer, call.feature, edit.module, "a feature")
    if state.facts.trial:
        _require_strengths(state, edit, lambda: edit(_idle(call)), answer, call.feature, edit.module)
    return answer


def linear_delta(state: RequestState, edit: LinearEdit, call: LinearCall, output: Tensor) -> Tensor:
    """What a linear edit adds to a layer's output. Raises PluginError for anything but a tensor of the output's shape."""
    answer: Tensor = _called(state, edit, functools.partial(edit, call), edit.module)
    _require_like(state, edit, answer, output, edit.module, "a delta")
    if state.facts.trial:
        _require_strengths(state, edit, lambda: edit(_idle(call)), answer, torch.zeros_like(answer), edit.module)
    return answer


def _called(state: RequestState, edit: Edit, act: Callable[[], Any], site: str = "") -> Any:
    """What an edit answers. What it raises in the self-test is told as its own; in a request it is told as it is."""
    try:
        return act()
    except (SafeguardError, torch.OutOfMemoryError):
        raise
    except Exception as fault:
        if not state.facts.trial:
            raise
        raise edit_fault(state.plan, edit, f"failed ({type(fault).__name__}: {fault})", site=site) from fault


def _require_like(state: RequestState, edit: Edit, answer: Any, expected: Tensor, site: str, what: str) -> None:
    """Raises PluginError unless ``answer`` is a tensor of floating-point numbers of the shape and device of ``expected``."""
    if not isinstance(answer, Tensor):
        raise edit_fault(state.plan, edit, f"gave back a {_kind(answer)}, not {what} as a tensor", site=site)
    shape = tuple(answer.shape)
    if shape != tuple(expected.shape):
        message = f"gave back {what} of the shape {list(shape)}, not {list(expected.shape)}"
        raise edit_fault(state.plan, edit, message, site=site, shape=shape)
    if not answer.is_floating_point():
        raise edit_fault(state.plan, edit, f"gave back {what} of {answer.dtype}, not {expected.dtype}", site=site, shape=shape)
    if answer.device != expected.device:
        raise edit_fault(
            state.plan, edit, f"gave back {what} on {answer.device}, not {expected.device}", site=site, shape=shape
        )


def _require_mass(state: RequestState, edit: Edit, mass: Any, call: SiteCall) -> None:
    """Raises PluginError unless there is one mass a row, image token and concept."""
    rows, tokens, concepts = len(call.output), call.output.shape[1], call.strengths.shape[1]
    shape = tuple(mass.shape) if isinstance(mass, Tensor) else ()
    if len(shape) != 4 or (shape[0], shape[2], shape[3]) != (rows, tokens, concepts):
        message = (
            f"gave back a mass of the shape {list(shape)}, not [{rows}, heads, {tokens}, {concepts}]; where the last number is "
            "wrong, its select does not narrow what it keeps to the columns that it is asked for"
        )
        raise edit_fault(state.plan, edit, message, site=call.site.name, shape=shape)


def _require_strengths(
    state: RequestState, edit: Edit, at_zero: Callable[[], Any], answer: Tensor, unchanged: Tensor, site: str = ""
) -> None:
    """Raises PluginError where an edit does at strength 0 just what it does at the policy's strengths. One text site tells."""
    if answer.shape != unchanged.shape or torch.equal(answer, unchanged):
        return
    state.caches.tried.add(_key(edit))
    ignored = False
    with contextlib.suppress(Exception):  # no row is ever asked for at strength 0 alone, and some methods cannot answer
        ignored = torch.equal(at_zero(), answer)
    if ignored:
        what = "does the same at strength 0 as at the policy's strength; multiply what it does by call.strengths"
        raise edit_fault(state.plan, edit, what, site=site, shape=tuple(answer.shape))


def _key(edit: Edit) -> tuple[str, ...]:
    return (edit.seam.value, getattr(edit, "module", ""), *edit.concepts)


def _first_concept(
    state: RequestState, edit: TextSiteEdit, call: SiteCall, effect: SiteEffect
) -> tuple[TextSiteEdit, SiteCall, Tensor]:
    """A text-site edit of the first of its concepts that has a strength, alone, its call, and what it adds: of a hundred, one
    tells as much.
    """
    if len(edit.concepts) == 1:
        return edit, call, effect.delta
    column = int((call.strengths != 0).any(0).int().argmax())
    one = selected(state.plan, edit, [column])
    strengths = call.strengths[:, column : column + 1]
    alone = replace(call, strengths=strengths, memory=EditMemory.empty(len(strengths), 1))
    return one, alone, _called(state, edit, functools.partial(one, alone), call.site.name).delta


def _idle(call: C) -> C:
    """The same call with every strength 0, and nothing remembered."""
    return replace(call, strengths=torch.zeros_like(call.strengths), memory=EditMemory.empty(*call.strengths.shape))


def _kind(value: object) -> str:
    return type(value).__name__
