"""Finding by trial where a denoiser reads text: one pass in which every text token is not a number.

A text token that is NaN stays NaN wherever it goes, so at every attention the columns of the keys that are NaN are text, and
the queries that are NaN are its own. The attention is then computed without them, so that no image token is ever touched: if
the denoiser's output is a number in the end, no other way leads from the text tokens to the image, and the sites that were
found are all there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from safeguard.instrument.call_values import TextArguments, Values, fresh, pick, put, stacked
from safeguard.instrument.hooks import sdpa
from safeguard.instrument.hooks.denoiser_hooks import Handles

Span = slice | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the text stands in one attention call: its columns among the keys, and the image tokens among the queries."""

    text: Span
    image: Span


@dataclass(frozen=True, slots=True, eq=False)
class FoundSite:
    """One attention call at which image tokens read text: of which module, in which turn, and what it looks like."""

    module: str
    turn: int
    heads: int
    head_dim: int
    scale: float
    batch: int
    layout: Layout


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a trace found: sites, and whether the output was a number in the end."""

    sites: tuple[FoundSite, ...]
    closed: bool
    strange: tuple[str, ...] = ()  # attentions that read text in a way that was not understood


def trace(denoiser: Any, values: Values, text: TextArguments, separate: Collection[str]) -> Found:
    """Find the text sites of ``denoiser`` for arguments like ``values``; ``separate`` are attentions known to read text only,
    by name: they are given zeros instead. Where tokens that are all zeros stand for places without text, these are left.
    """
    trace = _traced(denoiser, values, text, separate, zeros=True)
    return trace if trace.closed else _traced(denoiser, values, text, separate, zeros=False)


def _traced(denoiser: Any, values: Values, text: TextArguments, separate: Collection[str], *, zeros: bool) -> Found:
    for path in text.tokens:
        values = put(values, path, _spoiled(pick(values, path), zeros))
    tracer = _Tracer()
    with _listening(denoiser, tracer, separate), _NumbersOnly(), torch.no_grad():
        output = denoiser.forward(**fresh(values))
    rows = len(stacked(pick(values, text.states)))
    predictions = [part for part in tensors_of(output, rows) if part.dtype.is_floating_point]
    closed = bool(predictions) and all(map(_is_number, predictions[:1])) and any(map(_is_number, predictions))
    return Found(tuple(tracer.sites), closed, tuple(tracer.strange))


def _is_number(output: Tensor) -> bool:
    """Whether an output is all numbers, or has whole tokens that are none: the text's, which some denoisers give back."""
    wrong = output.isnan()
    if not wrong.any():
        return True
    tokens = wrong.flatten(2).any(-1) if output.dim() > 2 else wrong
    return output.dim() == 3 and bool((tokens == wrong.all(-1)).all()) and not bool(tokens.all(1).any())


def batch_order(
    denoiser: Any, values: Values, text: TextArguments, separate: Collection[str], row: int
) -> dict[Any, list[int]]:
    """Which rows of each site's own batch belong to one row of the call: by (module, turn), or by name for separate ones."""
    for path in text.tokens:
        current = pick(values, path)
        spoiled = _spoiled(current, False)
        row_values = [spoiled[place] if place == row else current[place] for place in range(len(current))]
        values = put(values, path, torch.stack(row_values) if isinstance(current, Tensor) else row_values)
    tracer = _Tracer()
    with _listening(denoiser, tracer, separate), _NumbersOnly(), torch.no_grad():
        denoiser.forward(**fresh(values))
    return tracer.rows


def tensors_of(output: Any, rows: int) -> list[Tensor]:
    """Every tensor of a denoiser's output, rows first: most give one, a ControlNet one a level, some a list of rows."""
    if isinstance(output, Tensor):
        return [output]
    parts = list(output.values()) if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else []
    alike = all(isinstance(part, Tensor) and part.shape == parts[0].shape and part.dim() > 1 for part in parts)
    if len(parts) == rows and alike and len(parts[0]) != rows:
        return [torch.stack(list(parts))]
    return [tensor for part in parts for tensor in tensors_of(part, rows)]


def _spoiled(value: Any, zeros: bool) -> Any:
    """Text in which no token is a number; tokens that are all zeros are left as they are, unless ``zeros``."""
    if not isinstance(value, Tensor):
        return type(value)(_spoiled(part, zeros) for part in value)
    told = torch.ones_like(value, dtype=torch.bool) if zeros else (value != 0).any(-1, keepdim=True)
    return torch.where(told, torch.full_like(value, float("nan")), value)


class _At:
    """The module that a tracer listens to."""

    def __init__(self, tracer: _Tracer, name: str) -> None:
        self._tracer, self._name = tracer, name

    def attend(
        self, turn: int, compute: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor:
        return self._tracer.attend(self._name, turn, compute, query, key, value, options)


class _Tracer:
    def __init__(self) -> None:
        self.sites: list[FoundSite] = []
        self.strange: list[str] = []
        self.rows: dict[Any, list[int]] = {}

    def attend(
        self,
        name: str,
        turn: int,
        compute: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        columns = (key.isnan() | value.isnan() if key.shape == value.shape else key.isnan()).any(-1)
        own = query.isnan().any(-1)
        if not columns.any():
            return compute(query, key, value, **options)
        hit = columns.flatten(1).any(1)  # the rows that have text which is not a number
        bare = torch.zeros_like(query[..., :1]).expand(*query.shape[:-1], value.shape[-1]).clone()
        if not own[hit].all():
            if query.dim() != 4:
                self.strange.append(name)
                return bare
            self._note(name, turn, query, columns, own, options)
        if not columns.all():
            mask = _without(columns, options["attn_mask"], query, key, options.pop("is_causal", False))
            clean = [part.nan_to_num(0.0) for part in (query, key, value)]
            bare = compute(*clean, **{**options, "attn_mask": mask}).nan_to_num(0.0)
        return bare.masked_fill(own[..., None], float("nan"))

    def _note(self, name: str, turn: int, query: Tensor, columns: Tensor, own: Tensor, options: dict[str, Any]) -> None:
        hit = columns.flatten(1).any(1)
        text = columns[hit].flatten(0, 1).any(0)
        image = ~own[hit].flatten(0, 1).any(0)
        scale = options.get("scale") or query.shape[-1] ** -0.5
        layout = Layout(_span(text), _span(image))
        self.rows[name, turn] = hit.nonzero().flatten().tolist()
        self.sites.append(FoundSite(name, turn, query.shape[1], query.shape[-1], float(scale), len(query), layout))


def _without(columns: Tensor, mask: Tensor | None, query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """A mask that hides some keys: [B, 1, 1 or N, S]."""
    hidden = columns.any(1)[:, None, None, :]
    if causal:
        hidden = hidden | ~torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril().to(hidden.device)
    if mask is not None and mask.dtype == torch.bool:
        return mask & ~hidden
    bias = torch.zeros_like(hidden, dtype=query.dtype).masked_fill(hidden, float("-inf"))
    return bias if mask is None else mask.nan_to_num(0.0, neginf=float("-inf")) + bias


def _span(flags: Tensor) -> Span:
    """The true places, as a slice where they stand together."""
    places = flags.nonzero().flatten()
    first, last = int(places[0]), int(places[-1]) + 1
    return slice(first, last) if last - first == len(places) else places


@contextmanager
def _listening(denoiser: Any, tracer: _Tracer, separate: Collection[str]) -> Iterator[None]:
    """Listen to every module's own attention calls; separate attentions get zeros for text that is not a number."""
    handles = Handles()
    stack: list[_At] = []

    def enter(place: _At) -> Callable[..., None]:
        def on_call(module: Any, args: tuple[Any, ...]) -> None:
            stack.append(place)
            sdpa.begin(place)

        return on_call

    def leave(module: Any, args: tuple[Any, ...], output: Any) -> None:
        stack.pop()
        sdpa.resume(stack[-1] if stack else None)

    def clean(name: str) -> Callable[..., Any]:
        def on_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            flat = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)]
            bad = [part.flatten(1).isnan().any(1) for part in flat if part.dtype.is_floating_point and part.dim() == 3]
            tracer.rows[name] = sorted({int(row) for part in bad for row in part.nonzero().flatten()})
            return tuple(map(_clean, args)), {key: _clean(value) for key, value in kwargs.items()}

        return on_call

    try:
        for name, module in denoiser.named_modules():
            if name in separate:
                handles.add(module, "forward_pre", clean(name), with_kwargs=True)
            place = _At(tracer, name.removesuffix(".processor"))
            handles.add(module, "forward_pre", enter(place))
            handles.add(module, "forward", leave)
        sdpa.open_tap(-1)
        yield
    finally:
        handles.remove()
        sdpa.close_tap(-1)
        sdpa.leave_attention()


def _clean(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype.is_floating_point:
        return value.nan_to_num(0.0) if value.isnan().any() else value
    return tuple(map(_clean, value)) if isinstance(value, tuple) else value


class _NumbersOnly(TorchFunctionMode):
    """Means and sums over the tokens of a text leave out what is not a number: a pooled text is no text token."""

    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in ("mean", "sum") and args and isinstance(args[0], Tensor) and args[0].dim() > 2:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(dim, int) and dim not in (-1, args[0].dim() - 1):
                args = (args[0].nan_to_num(0.0), *args[1:])
        return function(*args, **kwargs)
