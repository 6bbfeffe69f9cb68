"""The hooks: installed once, holding no policy, reading the plan of the request that is running.

In eager mode a hook calls its Python function. While ``torch.compile`` traces, it calls a custom operator instead, which calls
the same function at run time: so a graph holds the operator and nothing of any plan, and a swap recompiles nothing.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from safeguard.attaching.sites import Site, is_text_site

_stash = threading.local()  # what the hooks of one attention hand on to each other within one call
_numbers = itertools.count()
_hosts: Final[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()


class Host(Protocol):
    """What the hooks call: the attachment. Each gives back None where nothing changed."""

    number: int

    def on_enter(self, call: Entering) -> tuple[Tensor, Tensor | None] | None: ...

    def at_site(self, index: int, output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None) -> Tensor | None: ...

    def on_leave(self, prediction: Tensor | None, inputs: Any) -> Tensor | None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Entering:
    """A denoiser call as it begins: ``states`` [B, L, D] of its text, ``pooled`` [B, P] where it reads one, and its step."""

    states: Tensor
    pooled: Tensor | None
    timestep: Any
    grid: tuple[int, int] | None


def register(host: Any) -> int:
    """Give an attachment the number by which compiled graphs name it."""
    number = next(_numbers)
    _hosts[number] = host
    return number


def forget_graphs() -> None:
    """Make torch compile anew whatever it compiled: it looks for hooks only then, so an older graph holds none of ours."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _host(number: int) -> Host | None:
    host: Host | None = _hosts.get(number)
    return host


# Run in Python on every call, so no CUDA graph may hold them: a replay would repeat the plan of the request that was recorded.
_op = functools.partial(torch.library.custom_op, mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))


@_op("safeguard::text_site", schema="(Tensor output, Tensor query, Tensor states, Tensor? mask, int host, int site) -> Tensor")
def _text_site(output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None, host: int, site: int) -> Tensor:
    owner = _host(host)
    changed = None if owner is None else owner.at_site(site, output, query, states, mask)
    return output.clone() if changed is None else changed


@_text_site.register_fake
def _(output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None, host: int, site: int) -> Tensor:
    return torch.empty_like(output)


@_op(
    "safeguard::enter",
    schema="(Tensor states, Tensor? pooled, Tensor timestep, int height, int width, int host) -> (Tensor, Tensor)",
)
def _enter(
    states: Tensor, pooled: Tensor | None, timestep: Tensor, height: int, width: int, host: int
) -> tuple[Tensor, Tensor]:
    owner = _host(host)
    call = Entering(states, pooled, timestep, (height, width) if height else None)
    changed = None if owner is None else owner.on_enter(call)
    new, new_pooled = (states, pooled) if changed is None else changed
    return _fresh(new, states), states.new_empty(0) if pooled is None else _fresh(_or(new_pooled, pooled), pooled)


@_enter.register_fake
def _(states: Tensor, pooled: Tensor | None, timestep: Tensor, height: int, width: int, host: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(states), states.new_empty(0) if pooled is None else torch.empty_like(pooled)


@_op("safeguard::leave", schema="(Tensor prediction, int host) -> Tensor")
def _leave(prediction: Tensor, host: int) -> Tensor:
    owner = _host(host)
    changed = None if owner is None else owner.on_leave(prediction, None)
    return prediction.clone() if changed is None else changed


@_leave.register_fake
def _(prediction: Tensor, host: int) -> Tensor:
    return torch.empty_like(prediction)


def _or(value: Tensor | None, other: Tensor) -> Tensor:
    return other if value is None else value


def _fresh(value: Tensor, given: Tensor) -> Tensor:
    """An operator may not give back what it was given."""
    return given.clone() if value is given else value


class Handles:
    """Hooks on some modules, which can be checked and taken off."""

    def __init__(self) -> None:
        self._hooks: list[tuple[Any, str, int, Any]] = []

    def add(self, module: Any, kind: str, hook: Callable[..., Any], **options: Any) -> None:
        """``kind`` is ``forward_pre`` or ``forward``."""
        handle = getattr(module, f"register_{kind}_hook")(hook, **options)
        self._hooks.append((module, f"_{kind}_hooks", handle.id, handle))

    @property
    def intact(self) -> bool:
        """Whether every hook is still where it was put."""
        return bool(self._hooks) and all(number in getattr(module, table) for module, table, number, _ in self._hooks)

    def remove(self) -> None:
        for *_, handle in self._hooks:
            handle.remove()
        self._hooks.clear()


def hook_site(handles: Handles, site: Site, host: Host) -> None:
    """Hooks on one attention: its text is seen as it is called, its query as it is made, its output is changed at the end."""
    number, index = host.number, site.info.index  # the hook holds the host, so protection lives as long as the module

    def on_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        _stash.states = states[0] if isinstance(states, tuple) else states  # adapters add image embeddings behind the text
        _stash.mask = kwargs.get("attention_mask", args[2] if len(args) > 2 else None)

    def on_query(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        _stash.query = output

    def on_output(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        query, states, mask = _stash.query, _stash.states, _stash.mask
        _stash.query = _stash.states = _stash.mask = None
        if torch.compiler.is_compiling():
            return (torch.ops.safeguard.text_site(args[0], query, states, mask, number, index), *args[1:])
        changed = host.at_site(index, args[0], query, states, mask)
        return None if changed is None else (changed, *args[1:])

    handles.add(site.attention, "forward_pre", _ours(on_call, number), with_kwargs=True)
    handles.add(site.attention.to_q, "forward", _ours(on_query, number))
    handles.add(site.attention.to_out[0], "forward_pre", _ours(on_output, number))
    site.mark()


def _ours(hook: Callable[..., Any], number: int) -> Callable[..., Any]:
    hook.safeguard_host = number  # type: ignore[attr-defined]
    return hook


def carries(denoiser: Any, number: int) -> bool:
    """Whether a copy of a hooked denoiser carries every hook that the original has from host ``number``."""

    def hooked(module: Any, table: str) -> bool:
        return any(getattr(hook, "safeguard_host", None) == number for hook in getattr(module, table).values())

    sites = [part for part in denoiser.modules() if is_text_site(part)]
    return all(hooked(denoiser, table) for table in ("_forward_pre_hooks", "_forward_hooks")) and all(
        hooked(site, "_forward_pre_hooks")
        and hooked(site.to_q, "_forward_hooks")
        and hooked(site.to_out[0], "_forward_pre_hooks")
        for site in sites
    )


class Arguments:
    """Finding what a denoiser was called with, by the names in its signature."""

    def __init__(self, denoiser: Any) -> None:
        names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
        self._place = {name: index for index, name in enumerate(names)}

    def get(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in kwargs:
            return kwargs[name]
        index = self._place.get(name, len(args))
        return args[index] if index < len(args) else None

    def put(
        self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        index = self._place.get(name, len(args))
        if name in kwargs or index >= len(args):
            return args, {**kwargs, name: value}
        return (*args[:index], value, *args[index + 1 :]), kwargs


def hook_denoiser(handles: Handles, denoiser: Any, host: Host) -> None:
    """Hooks on a whole denoiser: its text may be changed as it is called, its prediction when it is done."""
    number = host.number
    arguments = Arguments(denoiser)

    def on_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        states = arguments.get("encoder_hidden_states", args, kwargs)
        if states is None:
            return None
        timestep = arguments.get("timestep", args, kwargs)
        added = arguments.get("added_cond_kwargs", args, kwargs)
        pooled = None if added is None else added.get("text_embeds")
        sample = arguments.get("sample", args, kwargs)
        height, width = sample.shape[-2:] if sample is not None and sample.dim() == 4 else (0, 0)
        changed: tuple[Tensor, Tensor | None] | None
        if torch.compiler.is_compiling():
            moment = timestep if isinstance(timestep, Tensor) else torch.tensor(float(timestep))
            changed = torch.ops.safeguard.enter(states, pooled, moment, height, width, number)
        else:
            changed = host.on_enter(Entering(states, pooled, timestep, (height, width) if height else None))
        if changed is None:
            return None
        if pooled is not None:
            args, kwargs = arguments.put("added_cond_kwargs", {**added, "text_embeds": changed[1]}, args, kwargs)
        return arguments.put("encoder_hidden_states", changed[0], args, kwargs)

    def on_done(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        prediction = output[0] if isinstance(output[0], Tensor) else None  # a ControlNet gives tuples of features
        if torch.compiler.is_compiling():
            return None if prediction is None else _with_prediction(output, torch.ops.safeguard.leave(prediction, number))
        changed = host.on_leave(prediction, (module, args, kwargs))
        return None if changed is None else _with_prediction(output, changed)

    handles.add(denoiser, "forward_pre", _ours(on_call, number), with_kwargs=True)
    handles.add(denoiser, "forward", _ours(on_done, number), with_kwargs=True)


def _with_prediction(output: Any, prediction: Tensor) -> Any:
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    return type(output)(**{**output, next(iter(output)): prediction})


def with_rows(value: Any, rows: Any, count: int) -> Any:
    """The same arguments for some rows only: every tensor whose first axis is the batch is indexed."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and value.shape[0] == count else value
    if isinstance(value, dict):
        return {key: with_rows(item, rows, count) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(with_rows(item, rows, count) for item in value)
    return value
