"""The arguments of a denoiser call as a compiled graph can hand them on: tensors with their paths, and the rest spelt out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from safeguard.instrument.call_values import Values


def flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a call with its path in one word: keys behind dots, places in lists behind a number sign; numbers as
    tensors, with their kind behind an exclamation mark.
    """
    for name, value in values.items():
        if isinstance(value, Tensor):
            yield above + name, value
        elif isinstance(value, dict):
            yield from flatten(value, f"{above}{name}.")
        elif isinstance(value, (list, tuple)):
            for place, part in enumerate(value):
                if isinstance(part, Tensor):
                    yield f"{above}{name}#{place}", part
        elif _is_number(value):
            yield (
                above + name + ("!int" if isinstance(value, int) else "!float"),
                torch.tensor(float(value), dtype=torch.float64),
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def unflatten(tensors: Sequence[Tensor], paths: str) -> Values:
    values: Values = {}
    for path, tensor in zip(paths.split(), tensors, strict=True):
        path, _, kind = path.partition("!")
        into, name = _holder(values, path)
        listed, _, place = name.partition("#")
        if place:
            into.setdefault(listed, []).append(tensor)
        else:
            into[name] = tensor if not kind else int(tensor) if kind == "int" else float(tensor)
    return values


def spell(value: Any) -> str:
    """A value without tensors as Python writes it; nothing for any other, and for what Python does not read back."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return ""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, dict):
        inside = [(spell(key), spell(item)) for key, item in value.items()]
        return "{" + ", ".join(f"{key}: {item}" for key, item in inside) + "}" if all(item for _, item in inside) else ""
    if isinstance(value, (list, tuple)):
        parts = [spell(item) for item in value]
        form = "[{}]" if isinstance(value, list) else "({},)" if parts else "()"
        return form.format(", ".join(parts)) if all(parts) else ""
    return ""


def rest_of(values: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """What `flatten` leaves out, by its path, as `spell` has it."""
    parts = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            parts += rest_of(value, f"{above}{name}.")
        elif not isinstance(value, Tensor) and not _is_number(value):
            tensors = isinstance(value, (list, tuple)) and value and all(isinstance(item, Tensor) for item in value)
            if not tensors:
                parts.append((above + name, spell(value)))
    return parts


def restore(values: Values, rest: Mapping[str, Any]) -> None:
    for path, value in rest.items():
        into, name = _holder(values, path)
        into[name] = value


def _holder(values: Values, path: str) -> tuple[Values, str]:
    """The dictionary that holds what a path leads to, made where there is none, and its key there."""
    *above, name = path.split(".")
    for part in above:
        values = values.setdefault(part, {})
    return values, name


def exchanged(values: Mapping[str, Any], changed: Mapping[str, Tensor], above: str = "") -> Values:
    """The arguments with some tensors replaced, by their paths in one word."""
    replaced: Values = {}
    for name, value in values.items():
        path = above + name
        if isinstance(value, dict):
            replaced[name] = exchanged(value, changed, f"{path}.")
        elif isinstance(value, (list, tuple)):
            replaced[name] = type(value)(changed.get(f"{path}#{place}", part) for place, part in enumerate(value))
        else:
            replaced[name] = changed.get(path, value)
    return replaced
