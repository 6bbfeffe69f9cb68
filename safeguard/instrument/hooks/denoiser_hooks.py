"""The hooks: installed once, holding no policy, reading the plan of the request that is running.

In eager mode a hook calls its Python function. While ``torch.compile`` traces, it calls a custom operator instead, which calls
the same function at run time: so a graph holds the operator and nothing of any plan, and a swap recompiles nothing.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from safeguard.instrument.call_values import TextArguments, Values, argument_names, named
from safeguard.instrument.hooks.graph_values import exchanged, flatten, rest_of, restore, unflatten
from safeguard.sdk.pipeline import TextSite

_stash = threading.local()  # what the hooks of one attention hand on to each other within one call
_numbers = itertools.count()
_hosts: Final[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()


class AttentionCall(NamedTuple):
    """One call of torch's attention, everything [B, H, S, d], with what it gave; and log sum exp of each query's scores,
    [B, H, N], where its kernel gave that.
    """

    output: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    log_mass: Tensor | None = None


class NamedSite(Protocol):
    """A text site that is told from others by the name of its module."""

    @property
    def name(self) -> str: ...

    @property
    def joint(self) -> bool: ...


class HookedAttention(Protocol):
    """A separate text site: the attention that hooks are put on."""

    info: TextSite
    attention: Any

    def mark(self) -> None: ...


class SiteHost(Protocol):
    """What the hooks of a separate text site call. It gives back None where nothing changed."""

    @property
    def number(self) -> int: ...

    def at_site(self, index: int, output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None) -> Tensor | None: ...


class Host(SiteHost, Protocol):
    """What the hooks call. Each gives back None where nothing changed. ``whole``: ``values`` are all arguments
    of the call, so that it can be run again.
    """

    def on_enter(self, name: str, values: Values, *, whole: bool = True) -> Values | None: ...

    def at_call(self, site: int, turn: int, call: AttentionCall) -> Tensor | None: ...

    def at_module(self, name: str, inputs: Tensor | None, output: Tensor) -> Tensor | None: ...

    def on_leave(self, name: str, prediction: Tensor | None, *, compiled: bool = False) -> Tensor | None: ...

    def on_failure(self) -> None: ...


def register(host: Any) -> int:
    """Give a host the number by which compiled graphs name it."""
    number = next(_numbers)
    _hosts[number] = host
    return number


def forget_graphs() -> None:
    """Make torch compile anew whatever it compiled: it looks for hooks only then, so an older graph holds none of ours."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@contextlib.contextmanager
def serving(number: int) -> Iterator[Host | None]:
    """The host of a number, while it lives. It learns of an exception: compiled graphs call no hook then."""
    host: Host | None = _hosts.get(number)
    try:
        yield host
    except BaseException:
        if host is not None:
            host.on_failure()
        raise


# Run in Python on every call, so no CUDA graph may hold them: a replay would repeat the plan of the request that was recorded.
register_op = functools.partial(torch.library.custom_op, mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))


@register_op(
    "safeguard::text_site", schema="(Tensor output, Tensor query, Tensor states, Tensor? mask, int host, int site) -> Tensor"
)
def _text_site(output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None, host: int, site: int) -> Tensor:
    with serving(host) as owner:
        changed = None if owner is None else owner.at_site(site, output, query, states, mask)
    return output.clone() if changed is None else changed


@_text_site.register_fake
def _(output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None, host: int, site: int) -> Tensor:
    return torch.empty_like(output)


@register_op("safeguard::enter", schema="(Tensor[] given, str paths, str changing, str rest, str name, int host) -> Tensor[]")
def _enter(tensors: list[Tensor], paths: str, changing: str, rest: str, name: str, host: int) -> list[Tensor]:
    values = unflatten(tensors, paths)
    if rest:
        restore(values, ast.literal_eval(rest))
    with serving(host) as owner:
        changed = None if owner is None else owner.on_enter(name, values, whole=bool(rest))
    before, after = dict(zip(paths.split(), tensors, strict=True)), dict(flatten(values if changed is None else changed))
    return [_fresh(after[path], before[path]) for path in changing.split()]


@_enter.register_fake
def _(given: list[Tensor], paths: str, changing: str, rest: str, name: str, host: int) -> list[Tensor]:
    before = dict(zip(paths.split(), given, strict=True))
    return [torch.empty_like(before[path]) for path in changing.split()]


@register_op("safeguard::leave", schema="(Tensor prediction, str name, int host) -> Tensor")
def _leave(prediction: Tensor, name: str, host: int) -> Tensor:
    with serving(host) as owner:
        changed = None if owner is None else owner.on_leave(name, prediction, compiled=True)
    return prediction.clone() if changed is None else changed


@_leave.register_fake
def _(prediction: Tensor, name: str, host: int) -> Tensor:
    return torch.empty_like(prediction)


def _fresh(value: Tensor, before: Tensor) -> Tensor:
    """An operator may not give back what it was given."""
    return before.clone() if value is before else value


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


def text_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The text states that a separate cross-attention is called with."""
    states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    return states[0] if isinstance(states, tuple) else states  # adapters add image embeddings behind the text


def hook_site(handles: Handles, site: HookedAttention, host: SiteHost) -> None:
    """Hooks on one attention: its text is seen as it is called, its query as it is made, its output is changed at the end."""
    number, index = host.number, site.info.index  # the hook holds the host, so protection lives as long as the module

    def on_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _stash.states = text_of(args, kwargs)
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

    handles.add(site.attention, "forward_pre", tag(on_call, number), with_kwargs=True)
    handles.add(site.attention.to_q, "forward", tag(on_query, number))
    handles.add(site.attention.to_out[0], "forward_pre", tag(on_output, number))
    site.mark()


def tag(hook: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Mark a hook as one of host ``number``."""
    hook.safeguard_host = number  # type: ignore[attr-defined]
    return hook


def carries(denoiser: Any, sites: Sequence[NamedSite], number: int) -> bool:
    """Whether a copy of a hooked denoiser carries every hook that the original has from host ``number``."""

    def hooked(module: Any, table: str) -> bool:
        return any(getattr(hook, "safeguard_host", None) == number for hook in getattr(module, table).values())

    def whole(site: NamedSite) -> bool:
        try:
            module = denoiser.get_submodule(site.name)
        except AttributeError:
            return False
        if site.joint:
            return hooked(module, "_forward_pre_hooks")
        inside = hooked(module.to_q, "_forward_hooks") and hooked(module.to_out[0], "_forward_pre_hooks")
        return inside and hooked(module, "_forward_pre_hooks")

    both = all(hooked(denoiser, table) for table in ("_forward_pre_hooks", "_forward_hooks"))
    return both and all(map(whole, sites))


def hook_module(handles: Handles, module: Any, name: str, host: Host) -> None:
    """A hook on the output of a named module, which edits of linear layers and of features may change; ``#1`` behind the name
    is the second of its outputs.
    """
    number, place = host.number, int(name.partition("#")[2] or 0)

    def on_done(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        tensor = output if isinstance(output, Tensor) else output[place]
        tensors = [argument for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor)]
        inputs = tensors[0] if tensors else None  # not by `next` with a default: torch 2.8 cannot compile that
        if torch.compiler.is_compiling():
            changed = torch.ops.safeguard.module(tensor, inputs, name, number)
        else:
            edited = host.at_module(name, inputs, tensor)
            if edited is None:
                return None
            changed = edited
        return changed if isinstance(output, Tensor) else (*output[:place], changed, *output[place + 1 :])

    handles.add(module, "forward", tag(on_done, number), with_kwargs=True)


@register_op("safeguard::module", schema="(Tensor output, Tensor? inputs, str name, int host) -> Tensor")
def _module(output: Tensor, inputs: Tensor | None, name: str, host: int) -> Tensor:
    with serving(host) as owner:
        changed = None if owner is None else owner.at_module(name, inputs, output)
    return output.clone() if changed is None else changed


@_module.register_fake
def _(output: Tensor, inputs: Tensor | None, name: str, host: int) -> Tensor:
    return torch.empty_like(output)


def hook_denoiser(handles: Handles, denoiser: Any, name: str, text: TextArguments, host: Host) -> None:
    """Hooks on a whole denoiser: its text may be changed as it is called, its prediction when it is done."""
    number = host.number
    names = argument_names(denoiser)
    texts = [".".join(path) for path in text.every]

    def on_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        values = named(names, args, kwargs)
        if torch.compiler.is_compiling():
            flat = dict(flatten(values))
            changing = [path for path in flat if path.partition("#")[0] in texts]
            rest = rest_of(values)
            spelled = (
                "{" + ", ".join(f"'{path}': {value}" for path, value in rest) + "}"
                if all(spelling for _, spelling in rest)
                else ""
            )
            tensors = torch.ops.safeguard.enter(list(flat.values()), " ".join(flat), " ".join(changing), spelled, name, number)
            changed: Values | None = exchanged(values, dict(zip(changing, tensors, strict=True)))
        else:
            changed = host.on_enter(name, values)
        return None if changed is None else ((), changed)

    def on_done(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if output is None:  # an exception ended the call: no denoiser gives nothing
            host.on_failure()
            return None
        first = output if isinstance(output, Tensor) else output[0]
        prediction = first if isinstance(first, Tensor) else None  # a ControlNet gives tuples of features, some models lists
        if torch.compiler.is_compiling():
            return None if prediction is None else _with_prediction(output, torch.ops.safeguard.leave(prediction, name, number))
        changed = host.on_leave(name, prediction)
        return None if changed is None else _with_prediction(output, changed)

    handles.add(denoiser, "forward_pre", tag(on_call, number), with_kwargs=True)
    handles.add(denoiser, "forward", tag(on_done, number), with_kwargs=True, always_call=True)


def _with_prediction(output: Any, prediction: Tensor) -> Any:
    if isinstance(output, Tensor):
        return prediction
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    return type(output)(**{**output, next(iter(output)): prediction})
