"""One denoiser: what it is called with, which of that is text, and finding the sites at which it reads it."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.call_values import (
    Path,
    TextArguments,
    TextRow,
    Values,
    collected,
    fresh,
    is_text_list,
    leaves,
    pick,
    put,
    row_count,
    stacked,
)
from safeguard.instrument.discover import nan_trace
from safeguard.instrument.discover.nan_trace import FoundSite
from safeguard.instrument.discover.sites import CrossAttentionSite, JointAttentionSite, Site, is_separate, layer_stamp
from safeguard.instrument.hooks.denoiser_hooks import Handles, hook_site

TIMES: Final = ("timestep", "timesteps", "t", "timestep_ratio", "r")
_CLOSE: Final = 0.02  # relative error below which a separate attention is what its own layers say

Numbers = tuple[tuple[Path, float], ...]  # what a row is told in single numbers: its time, its guidance


class Denoiser:
    """One denoiser of a pipeline: what it is called with, which of that is text, and the sites at which it reads it."""

    def __init__(self, name: str, module: Any, values: Values, text: TextArguments, stride: int) -> None:
        self.name = name
        self.values, self.text = values, text  # a small call, caught from the pipeline
        self.rows = len(stacked(pick(values, text.states)))
        self.stride = stride  # a text stands at every so manieth row
        self._module = weakref.ref(module)
        self._shapes: set[Any] = set()

    @property
    def exists(self) -> bool:
        return self._module() is not None

    @property
    def module(self) -> Any:
        module = self._module()
        if module is None:
            raise CapabilityError(f"the denoiser {self.name!r} is gone; protect the pipeline again", missing=self.name)
        return module

    def forward(self, values: Values) -> Any:
        """Run it past its own hooks, and past any graph: for passes of the guard's own."""
        return run_eagerly(self.module, values)

    def again(self, values: Values, *, eagerly: bool) -> Any:
        """Run it with its hooks once more, past any graph where that is asked for."""
        with _eagerly() if eagerly else contextlib.nullcontext():
            return self.module(**fresh(values))

    def time_of(self, values: Values) -> Any:
        """The argument that says the time: by its name, or the first single number a row; 0 where there is none."""
        time = next((pick(values, (name,)) for name in TIMES if pick(values, (name,)) is not None), None)
        if time is None:
            numbers = (
                value for _, value in leaves(values, 0) if isinstance(value, Tensor) and value.dim() <= 1 and value.numel()
            )
            time = next((value for value in numbers if value.dtype.is_floating_point), 0.0)
        return time

    @property
    def stamp(self) -> tuple[Any, ...] | None:
        """Changes whenever its weights may have changed. None where that cannot be told."""
        return layer_stamp(self.module)

    def find(self, first: int) -> list[Site]:
        """Find its text sites, numbered from ``first`` on. Raises CapabilityError where not all of them can be found."""
        module = self.module
        with torch.no_grad():
            outputs = nan_trace.tensors_of(self.forward(self.values), self.rows)
        if not all(bool(torch.isfinite(part).all()) for part in outputs):
            raise CapabilityError(
                f"{type(module).__name__} gives numbers that are not finite, whatever is done to it; mend its weights",
                missing="finite output",
            )
        separate = self._separate(first)
        trace = self._traced(self.values, separate)
        sites: list[Site] = list(separate.values())
        each = self._one_by_one(trace)
        for site in trace.sites:
            if site.module not in each or site.turn == 0:
                attention = module.get_submodule(site.module)
                sites.append(JointAttentionSite(self.name, site, attention, first + len(sites), each=site.module in each))
        if not sites:
            raise CapabilityError(
                f"{type(module).__name__} has no attention at which image tokens read text, so there is nothing to erase at",
                missing="text site",
            )
        self._orders(sites, separate)
        self.learn(sites, self.values, trace)
        return sites

    def _one_by_one(self, trace: nan_trace.Found) -> set[str]:
        """The modules that attend to the rows of a batch in turn."""
        turns: dict[str, list[FoundSite]] = {}
        for site in trace.sites:
            turns.setdefault(site.module, []).append(site)
        return {
            name
            for name, calls in turns.items()
            if self.rows > 1
            and [site.turn for site in calls] == list(range(self.rows))
            and all(site.batch == 1 for site in calls)
        }

    def _traced(self, values: Values, separate: Mapping[str, Any]) -> nan_trace.Found:
        module = self.module
        with _eagerly():
            trace = nan_trace.trace(module, values, self.text, separate)
        if trace.strange or not trace.closed:
            where = f"attention {trace.strange[0]}" if trace.strange else "something other than attention"
            raise CapabilityError(
                f"in {type(module).__name__}, {where} carries text tokens to the image in a way that no eraser here can reach; "
                "it would run half protected, so it is refused",
                missing="text sites",
            )
        return trace

    def _separate(self, first: int) -> dict[str, CrossAttentionSite]:
        """The separate cross-attentions whose output is what their own layers say: tried on the caught call."""
        module = self.module
        named = [(name, part) for name, part in module.named_modules() if is_separate(part)]
        sites = [CrossAttentionSite(self.name, name, part, place) for place, (name, part) in enumerate(named)]
        if not sites:
            return {}
        checker, handles = _Checker(sites, stacked(pick(self.values, self.text.states))), Handles()
        try:
            for site in sites:
                hook_site(handles, site, checker)
            with torch.no_grad():
                self.forward(self.values)
        finally:
            handles.remove()
        good = [site for site in sites if checker.errors.get(site.info.index, 1.0) < _CLOSE]
        by_name = {}
        for place, site in enumerate(good):
            by_name[site.name] = new_site = CrossAttentionSite(self.name, site.name, site.attention, first + place)
            new_site.recorded = site.info.index not in checker.direct
        return by_name

    def _orders(self, sites: Sequence[Site], separate: Mapping[str, Any]) -> None:
        """Which rows of each site's own batch belong to row 1: an attention may see frames as rows."""
        with _eagerly():
            seen = nan_trace.batch_order(self.module, self.values, self.text, separate, 1)
        for site in sites:
            if isinstance(site, JointAttentionSite) and site.each:
                continue
            site.order = seen.get((site.name, site.turn) if isinstance(site, JointAttentionSite) else site.name, [])
            if site.order and not _understood(site.order, self.rows):
                raise CapabilityError(
                    f"attention {site.info.name} mixes the images of a batch, so none can be told from another",
                    missing="rows",
                )

    def grid_of(self, values: Values) -> tuple[int, int] | None:
        """Height and width of the latent, where it is an image of that shape."""
        for path, value in leaves(values, 0):
            if isinstance(value, Tensor) and value.dim() == 4 and path not in self.text.every:
                return (int(value.shape[-2]), int(value.shape[-1]))
        return None

    def _signature(self, values: Values) -> Any:
        """The shapes of a call's arguments, the batch left out: what the layouts of joint sites depend on."""
        return tuple(
            (path, tuple(map(tuple, (part.shape for part in value))) if is_text_list(value) else tuple(value.shape[1:]))
            for path, value in leaves(values, 0)
            if isinstance(value, Tensor) or is_text_list(value)
        )

    def learn(self, sites: Sequence[Site], values: Values, trace: nan_trace.Found | None = None) -> Any:
        """Know the layouts of joint sites for arguments of these shapes; unknown shapes are traced, once. Gives the shapes."""
        shapes = self._signature(values)
        if shapes in self._shapes and trace is None:
            return shapes
        joint = {
            (site.name, site.turn): site for site in sites if isinstance(site, JointAttentionSite) and site.owner == self.name
        }
        each = {site.name: site for site in joint.values() if site.each}
        if not joint:
            return shapes
        separate = {site.name: site for site in sites if isinstance(site, CrossAttentionSite) and site.owner == self.name}
        trace = self._traced(values, separate) if trace is None else trace
        seen = {(traced.module, traced.turn): traced for traced in trace.sites}
        if {key for key in seen if key[0] not in each or key[1] == 0} != joint.keys():
            raise CapabilityError(
                f"{type(self.module).__name__} reads text at other attentions for this call than when it was protected; "
                "release the guard and protect the pipeline again",
                missing="text sites",
            )
        for key, traced in seen.items():
            site = each.get(traced.module) or joint[key]
            site.layouts[shapes, traced.turn if site.each else 0] = traced.layout
        self._shapes.add(shapes)
        return shapes


def run_eagerly(module: Any, values: Values) -> Any:
    """Run a denoiser past its own hooks, and past any graph."""
    with _eagerly(), torch.no_grad():
        return module.forward(**fresh(values))


def _eagerly() -> AbstractContextManager[Any]:
    """Graphs that torch compiled are passed by inside."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _understood(order: Sequence[int], rows: int) -> bool:
    """Whether the places of row 1 are those of a batch whose rows are repeated one by one, or as a whole."""
    count = len(order)
    return list(order) in (list(range(count, 2 * count)), list(range(1, 1 + rows * count, rows)))


class _Checker:
    """Compares the output of separate attentions with what their layers say."""

    number = -1

    def __init__(self, sites: Sequence[CrossAttentionSite], text: Tensor) -> None:
        self._sites, self._text = sites, text
        self.errors: dict[int, float] = {}
        self.direct: set[int] = set()  # sites that read the text just as the denoiser is given it

    def at_site(self, index: int, output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None) -> None:
        if query is not None and states is not None and output.dim() == 3 and states.shape[1] == self._text.shape[1]:
            if states.shape == self._text.shape and torch.equal(states, self._text):
                self.direct.add(index)
            try:
                self.errors[index] = self._sites[index].error(output, query, states, mask)
            except (RuntimeError, ValueError):  # shapes that do not fit are an answer too
                self.errors[index] = 1.0


def call_with(denoiser: Denoiser, rows: Sequence[TextRow], numbers: Numbers = ()) -> Values:
    """The caught call on other texts, untrimmed, each beside the same small image; at the time that ``numbers`` say."""
    count = len(rows)
    values = dict(denoiser.values)
    for path, value in leaves(denoiser.values, denoiser.rows):
        if path in denoiser.text.every:
            lengths = [len(row[denoiser.text.states]) for row in rows]
            values = put(values, path, collected([row[path] for row in rows], value, lengths))
        elif row_count(value) == denoiser.rows and (isinstance(value, Tensor) or _one_a_row(value)):
            repeated: Any = [value[0]] * count
            if isinstance(value, Tensor):
                repeated = value[:1].expand(count, *value.shape[1:]).clone()
            values = put(values, path, repeated)
    for path, number in numbers:
        value = pick(values, path)
        if isinstance(value, Tensor):
            values = put(values, path, torch.full_like(value, number))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values = put(values, path, type(value)(number))
    return values


def _one_a_row(value: Any) -> bool:
    """Whether a list may hold one thing a row: latents, and not axes or sizes."""
    return is_text_list(value) and all(part.dim() > 1 for part in value)
