"""The linear layers of a live denoiser that read the text and nothing else, found by trial.

A layer reads the text alone if what comes into it changes with the text, and not with the image, the time or any other number
of the call. Some of these read what others of them made (the second layer of a projection, keys behind it): only the first of
each chain are offered, so that no edit works on what another has already changed. At cross-attention these are the layers that
make keys and values, or the projection of the text before them; in joint attention the embedder of the text, since behind it
the time has its part; and wherever the text comes as one vector, the layer that takes that up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor, nn

from safeguard.errors import CapabilityError
from safeguard.instrument.call_values import Path, TextRow, Values, leaves, pick, put, stacked
from safeguard.instrument.discover.denoiser import TIMES, Denoiser, call_with
from safeguard.instrument.discover.text_encoding import BATCH, TextEncoding
from safeguard.instrument.hooks.denoiser_hooks import Handles
from safeguard.plan.request_state import quiet
from safeguard.sdk.pipeline import TextLayers

# Whether this context spoils what layers give: other requests may run through the same hooks meanwhile.
_spoiling: Final[ContextVar[bool]] = ContextVar("safeguard_spoiling", default=False)
Inputs = dict[str, Tensor]


class LinearTextLayers:
    """The layers of some denoisers, and what these are given of a text. Found when first asked for."""

    def __init__(self, parts: Mapping[str, Denoiser], encoding: TextEncoding) -> None:
        self._parts, self._encoding = parts, encoding
        self._found: list[tuple[TextLayers, Path | None]] | None = None  # with the argument that comes to them as it is
        self._lock = threading.RLock()

    @property
    def found(self) -> Sequence[TextLayers]:
        """In groups that are given the same."""
        return [layers for layers, _ in self._groups]

    @property
    def _groups(self) -> list[tuple[TextLayers, Path | None]]:
        with self._lock:
            if self._found is None:
                self._found = [group for part in self._parts.values() for group in _groups(part)]
            return self._found

    def forget(self) -> None:
        """Modules were replaced: find them anew when next asked."""
        self._found = None

    def weight(self, module: str) -> Tensor:
        """The weight of a layer as it works now, [out, in], float64, a copy; adapters (LoRA) are in it."""
        owner, _, inside = module.partition(".")
        with torch.inference_mode(False), torch.no_grad(), quiet():
            return weight_of(self._parts[owner].module.get_submodule(inside))

    def inputs(self, layers: TextLayers, texts: Sequence[str]) -> list[Tensor]:
        """What comes into the layers of a group for each text, untrimmed, [L, in], float64; one row where it is a vector."""
        owner, _, inside = layers.modules[0].partition(".")
        argument = next(path for group, path in self._groups if group.modules == layers.modules)
        inputs: list[Tensor] = []
        for first in range(0, len(texts), BATCH):
            batch = list(texts[first : first + BATCH])
            rows = self._encoding.rows(owner, batch)
            raw = [row[argument] for row in rows] if argument else self._worked(self._parts[owner], inside, rows)
            inputs += [_precise(row.reshape(-1, row.shape[-1])) for row in raw]
        return inputs

    def _worked(self, part: Denoiser, layer: str, rows: Sequence[TextRow]) -> list[Tensor]:
        """What the denoiser itself makes of texts until they come to a layer."""
        with torch.inference_mode(False):
            seen = _seen(part, call_with(part, rows), [layer])
        if layer not in seen:
            raise CapabilityError(f"layer {part.name}.{layer} was not reached with the texts of a policy", missing=layer)
        return list(seen[layer][:: len(seen[layer]) // len(rows)])


def weight_of(layer: Any) -> Tensor:
    """[out, in], float64. Of a layer that is more than its weight (adapters, quantized, offloaded) by what it does."""
    if type(layer) is nn.Linear and not layer.weight.is_meta:
        return _precise(layer.weight.detach()).clone()
    like = next((tensor for tensor in (*layer.parameters(), *layer.buffers()) if tensor.is_floating_point()), torch.empty(0))
    device = torch.device("cpu") if like.is_meta else like.device
    units = torch.eye(layer.in_features, dtype=like.dtype, device=device)
    nothing = torch.zeros(1, layer.in_features, dtype=like.dtype, device=device)
    weight: Tensor = (_precise(layer(units)) - _precise(layer(nothing))).T.contiguous()
    return weight


def _precise(part: Tensor) -> Tensor:
    """In float64, where the device has that; else on the CPU."""
    return (part.cpu() if part.device.type == "mps" else part).double()


def linears_in(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers inside a module by name; not those inside another one, which adapters are made of."""
    outer = ""
    for name, part in module.named_modules():
        if outer and name.startswith(outer):
            continue
        if all(isinstance(getattr(part, width, None), int) for width in ("in_features", "out_features")):
            outer = f"{name}."
            yield name, part


def _groups(part: Denoiser) -> list[tuple[TextLayers, Path | None]]:
    names = [name for name, _ in linears_in(part.module)]
    with torch.inference_mode(False):
        one, other = _seen(part, part.values, names), _seen(part, _otherwise(part), names)
        alone = [name for name in one if name in other and _text_alone(part, one[name], other[name])]
        as_given = {name: _argument(part, one[name]) for name in alone}
        worked = [name for name in alone if as_given[name] is None]
        with _spoilt(part, alone):
            again = _seen(part, part.values, worked) if worked else {}
    groups: list[tuple[Tensor, list[str]]] = []
    for name in alone:
        if name in worked and (name not in again or again[name].isnan().any()):
            continue
        given = one[name]
        mates = next((names for same, names in groups if same.shape == given.shape and torch.equal(same, given)), None)
        if mates is None:
            groups.append((given, mates := []))
        mates.append(f"{part.name}.{name}")
    return [
        (TextLayers(tuple(names), tokens=given.dim() == 3), as_given[names[0].partition(".")[2]]) for given, names in groups
    ]


def _argument(part: Denoiser, values: Tensor) -> Path | None:
    """The text argument that comes to a layer just as the denoiser is given it."""
    return next(
        (
            path
            for path in (*part.text.tokens, *part.text.pooled)
            if isinstance(value := pick(part.values, path), Tensor)
            and value.numel() == values.numel()
            and value.shape[-1] == values.shape[-1]
            and torch.equal(value.reshape(values.shape), values)
        ),
        None,
    )


def _text_alone(part: Denoiser, left: Tensor, right: Tensor) -> bool:
    """Whether an input has the rows of the call, the tokens of its text or one vector each, and depends on the text alone."""
    rows, length = part.rows, stacked(pick(part.values, part.text.states)).shape[1]
    if len(left) % rows or left.dim() not in (2, 3) or (left.dim() == 3 and left.shape[1] != length):
        return False
    each = len(left) // rows * part.stride  # TEXTS[0] and TEXTS[1] are different texts
    return left.shape == right.shape and torch.equal(left, right) and not torch.equal(left[0], left[each])


def _otherwise(part: Denoiser) -> Values:
    """The same texts in a call that is otherwise another: every number in it is half of what it was."""
    values = part.values
    for path, value in leaves(values, part.rows):
        if path in part.text.every or isinstance(value, bool):
            continue
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            values = put(values, path, value * 0.5)
        elif path[-1] in TIMES and isinstance(value, Tensor):
            values = put(values, path, value // 2)
        elif path[-1] in TIMES and isinstance(value, (int, float)):
            values = put(values, path, type(value)(value / 2))
    return values


def _seen(part: Denoiser, values: Values, names: Sequence[str]) -> Inputs:
    """What first comes into the layers of these names in a call."""
    seen: Inputs = {}
    here = threading.get_ident()  # another request may run through these hooks meanwhile

    def look(name: str) -> Callable[..., None]:
        def on_call(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            tensor = next((argument for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor)), None)
            if tensor is not None and name not in seen and threading.get_ident() == here:
                seen[name] = tensor.detach().clone()

        return on_call

    handles = Handles()
    try:
        for name in names:
            handles.add(part.module.get_submodule(name), "forward_pre", look(name), with_kwargs=True)
        with torch.no_grad(), quiet():
            part.forward(values)
    finally:
        handles.remove()
    return seen


@contextmanager
def _spoilt(part: Denoiser, names: Sequence[str]) -> Iterator[None]:
    """Inside, what these layers give is not a number: whatever reads it is not the first to read the text."""

    def spoil(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        return torch.full_like(output, float("nan")) if _spoiling.get() and isinstance(output, Tensor) else None

    handles, token = Handles(), _spoiling.set(True)
    try:
        for name in names:
            handles.add(part.module.get_submodule(name), "forward", spoil)
        yield
    finally:
        handles.remove()
        _spoiling.reset(token)
