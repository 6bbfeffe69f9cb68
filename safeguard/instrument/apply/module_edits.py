"""Edits of linear layers and of features: hooks on the modules that they name, and what is done there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.apply import edit_checks
from safeguard.instrument.apply.dispatch import active_edit, attempt
from safeguard.instrument.discover.sites import expanded
from safeguard.instrument.hooks import denoiser_hooks
from safeguard.instrument.row_matching import UNKNOWN
from safeguard.plan.compile import Plan
from safeguard.plan.request_state import ActiveEdit, RequestState
from safeguard.sdk.calls import FeatureCall, LinearCall
from safeguard.sdk.seams import Edit, FeatureEdit, LinearEdit


class ModuleOwner(Protocol):
    """A pipeline whose denoisers hold the modules that edits name."""

    @property
    def name(self) -> str: ...

    @property
    def denoisers(self) -> Mapping[str, Any]: ...


class ModuleHooks:
    """Hooks on the modules that edits of some plan have named. They hold no plan; graphs are made anew when one is added."""

    def __init__(self, pipeline: ModuleOwner, host: denoiser_hooks.Host) -> None:
        self._pipeline, self._host = pipeline, host
        self._hooked: dict[str, Any] = {}
        self._handles = denoiser_hooks.Handles()

    def serve(self, plan: Plan) -> None:
        """Hook every module that the plan's edits name. Raises CapabilityError where there is none of that name."""
        wanted = {name: edits[0] for name, edits in plan.module_edits.items()}
        modules = {name: self._module(name, edit) for name, edit in wanted.items() if name not in self._hooked}
        for name, module in modules.items():
            denoiser_hooks.hook_module(self._handles, module, name, self._host)
        if modules:
            self._hooked |= modules
            denoiser_hooks.forget_graphs()

    def _module(self, name: str, edit: Any) -> Any:
        try:
            module = self._live(name)
        except (KeyError, AttributeError):
            raise CapabilityError(
                f"concept {edit.concepts[0]!r}: its eraser acts on module {name!r}, which {self._pipeline.name} does not have",
                pipeline=self._pipeline.name,
                missing=name,
            ) from None
        if isinstance(edit, LinearEdit):
            _require_shape(module, edit, self._pipeline.name)
        return module

    def _live(self, name: str) -> Any:
        """The module that has this name now. Raises KeyError or AttributeError where there is none."""
        owner, _, inside = name.partition("#")[0].partition(".")
        return self._pipeline.denoisers[owner].get_submodule(inside)

    @property
    def intact(self) -> bool:
        live = all(self._live(name) is module for name, module in self._hooked.items())
        return live and (not self._hooked or self._handles.intact)

    def refresh(self) -> None:
        """Hook the modules that now have the names."""
        self._handles.remove()
        for name in self._hooked:
            self._hooked[name] = module = self._live(name)
            denoiser_hooks.hook_module(self._handles, module, name, self._host)

    def remove(self) -> None:
        self._handles.remove()
        self._hooked.clear()


def _require_shape(module: Any, edit: LinearEdit, pipeline: str) -> None:
    """A delta has to fit its layer."""
    inside, outside = getattr(module, "in_features", None), getattr(module, "out_features", None)
    outputs = len(edit.down) if edit.up is None else len(edit.up)
    if edit.down.shape[-1] != inside or outputs != outside:
        raise CapabilityError(
            f"concept {edit.concepts[0]!r}: a delta from {edit.down.shape[-1]} to {outputs} features does not fit module "
            f"{edit.module!r}, which has {inside} and {outside}",
            pipeline=pipeline,
            missing=edit.module,
        )


def edited(state: RequestState, name: str, inputs: Tensor | None, output: Tensor) -> Tensor | None:
    """What the edits that name this module make of its output. None: nothing changed."""
    changed: Tensor | None = None
    if state.frame is not None:
        state.frame.reached.add(name)
    for edit in state.plan.module_edits.get(name, ()):
        rows = _rows(state, edit, len(output))
        active = active_edit(state, edit, rows, output.device)
        if active is None:
            continue
        so_far = output if changed is None else changed
        changed_rows = attempt(state, edit, _made, state, edit, active, inputs, so_far)
        if changed_rows is not None:
            changed = output.clone() if changed is None else changed
            changed[active.index] = changed_rows.to(output.dtype)
            active.note(state.log.step)
    return changed


def require_reached(state: RequestState, denoiser: str) -> None:
    """After a call of a denoiser: each of its layers that an active edit changes was run. Raises CapabilityError for one that
    was passed by (as by layers that were fused into one), so that protection is not lost without a word.
    """
    reached = set() if state.frame is None else state.frame.reached
    for edit in state.plan.linear_edits:
        missed = edit.module not in reached and edit.module.partition(".")[0] == denoiser
        if missed and state.active(edit, state.rows)[0]:
            attempt(state, edit, _passed_by, edit)


def _passed_by(edit: LinearEdit) -> None:
    raise CapabilityError(
        f"concept {edit.concepts[0]!r} is erased in layer {edit.module!r}, which was not run in a call of its denoiser; if "
        "layers were fused or replaced, protect the pipeline again",
        missing=edit.module,
    )


def _rows(state: RequestState, edit: Edit, count: int) -> Sequence[Any]:
    """The rows of a module's batch: those of the call, each several times where frames are rows."""
    if state.frame is None:
        return (UNKNOWN,) * count
    rows = expanded((0, 1), state.rows, count)
    if rows is None:
        raise CapabilityError(
            f"a module has a batch of {count} in a call of {len(state.rows)} rows, so none can be told from another",
            missing="rows",
        )
    return tuple(rows)


def _made(
    state: RequestState, edit: LinearEdit | FeatureEdit, active: ActiveEdit, inputs: Tensor | None, output: Tensor
) -> Tensor:
    so_far, strengths, progress, memory = output[active.index], active.strengths, state.log.progress, active.memory
    if isinstance(edit, FeatureEdit):
        feature = FeatureCall(so_far, strengths=strengths, progress=progress, memory=memory)
        return edit_checks.new_feature(state, edit, feature)
    if inputs is None:
        raise CapabilityError(f"module {edit.module!r} was called without its input", missing=edit.module)
    layer = LinearCall(inputs[active.index], strengths=strengths, progress=progress, memory=memory)
    return so_far + edit_checks.linear_delta(state, edit, layer, so_far)
