"""A student beside the denoiser that it learns from: the same one, with deltas added in some of its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safeguard.errors import CapabilityError
from safeguard.instrument.discover.text_layers import linears_in
from safeguard.training.frozen_pipeline import FrozenPipeline

Deltas = Mapping[str, Tensor]
"""[out, in] by the name of a layer in its denoiser."""


def layers_of(frozen: FrozenPipeline, *, strict: bool) -> list[str]:
    """The layers to train, by their names in the denoiser: every linear one of an attention at which pictures read text, and
    those that are first to read the text, and nothing else; ``strict``: these last alone.
    """
    attachment, inside = frozen.attachment, f"{frozen.name}."
    first = [name.removeprefix(inside) for group in attachment.text_layers for name in group.modules if name.startswith(inside)]
    sites = dict.fromkeys(site.name.partition("#")[0].removeprefix(inside) for site in attachment.main_sites)
    names = [f"{site}.{name}" for site in sites for name, _ in linears_in(frozen.denoiser.get_submodule(site))]
    chosen = list(dict.fromkeys(first if strict else [*names, *first]))
    if not chosen:
        raise CapabilityError(
            f"{attachment.name} has no linear layer to train at the text; choose an eraser that trains none",
            pipeline=attachment.name,
            missing="linear layers",
        )
    return chosen


def require_rows(frozen: FrozenPipeline, names: Sequence[str], rows: int, call: Callable[[], object]) -> None:
    """Raises CapabilityError for a layer in which a change could not be kept to rows of a call: one that is not run in
    ``call``, which calls the denoiser with so many rows, or on something else than these rows.
    """
    seen: dict[str, int] = {}

    def look(name: str) -> Callable[..., None]:
        def on_call(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            seen[name] = len(_given(args, kwargs))

        return on_call

    with ExitStack() as stack, torch.no_grad():
        for name in names:
            handle = frozen.denoiser.get_submodule(name).register_forward_pre_hook(look(name), with_kwargs=True)
            stack.callback(handle.remove)
        call()
    for name in names:
        if name not in seen or seen[name] % rows:
            what = "runs on something else than the rows of a call" if name in seen else "is not run in a call of its denoiser"
            raise CapabilityError(
                f"layer {frozen.name}.{name} {what}, so no change of it can be kept to a concept's rows; unfuse layers, or "
                "train with --set strict=1",
                pipeline=frozen.attachment.name,
                missing=f"{frozen.name}.{name}",
            )


@contextmanager
def added(denoiser: Any, deltas: Deltas) -> Iterator[None]:
    """Inside, each of these layers gives y + x delta^T, in every row of a call."""

    def hook(delta: Tensor) -> Callable[..., Tensor]:
        def on_done(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
            states = _given(args, kwargs)
            return output + nn.functional.linear(states, delta.to(states))

        return on_done

    with ExitStack() as stack:
        for name, delta in deltas.items():
            handle = denoiser.get_submodule(name).register_forward_hook(hook(delta), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    return next(argument for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor))
