"""The arguments of a denoiser call, addressed by *paths*: the name of an argument of ``forward``, then keys of the dictionaries
inside it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Path = tuple[str, ...]
Values = dict[str, Any]
TextRow = Mapping[Path, Any]  # what one text is in the arguments of a denoiser call


def inner(module: Any) -> Any:
    """The module itself, where ``torch.compile`` has wrapped it."""
    return getattr(module, "_orig_mod", module)


def leaves(values: Mapping[str, Any], rows: int, above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every argument with its path. Dictionaries are walked, and lists of batches; a list of one thing a row is an argument."""
    for name, value in values.items():
        path = (*above, name)
        if isinstance(value, dict):
            yield from leaves(value, rows, path)
        elif is_text_list(value) and len(value) != rows and all(part.dim() and len(part) == rows for part in value):
            yield from (((*path, f"#{place}"), part) for place, part in enumerate(value))
        else:
            yield path, value


def pick(values: Any, path: Path) -> Any:
    """The argument at a path; None where there is none."""
    for name in path:
        if isinstance(values, Mapping):
            values = values.get(name)
        elif isinstance(values, (list, tuple)) and name[0] == "#" and int(name[1:]) < len(values):
            values = values[int(name[1:])]
        else:
            return None
    return values


def put(values: Any, path: Path, value: Any) -> Any:
    """The arguments with another one at a path; what was given stays as it was."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if isinstance(values, Mapping):
        return {**values, name: put(values.get(name), rest, value)}
    place = int(name[1:])
    return type(values)(put(part, rest, value) if spot == place else part for spot, part in enumerate(values))


def is_text_list(value: Any) -> bool:
    """Whether a text is given as one tensor [L, D] a row, each of its own length."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(part, Tensor) for part in value)


def row_count(value: Any) -> int:
    if isinstance(value, Tensor):
        return len(value) if value.dim() else 0
    return len(value) if isinstance(value, (list, tuple)) else 0


def argument_names(denoiser: Any) -> list[str]:
    """The arguments of ``forward``, in order."""
    return list(inspect.signature(type(denoiser).forward).parameters)[1:]


def named(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Values:
    """The arguments of a call of ``forward`` by their names."""
    # Not by zip: torch 2.8 cannot compile `dict(zip(..., strict=False))`.
    return {**{names[place]: args[place] for place in range(min(len(names), len(args)))}, **kwargs}


@dataclass(frozen=True, slots=True)
class TextArguments:
    """Which arguments of a denoiser say the text, by path.

    ``states`` the token states that it reads first, [B, L, D] or a list of [L, D]; ``more`` further token states; ``pooled``
    vectors [B, P]; ``rest`` masks, lengths and whatever else depends on the text.
    """

    states: Path
    more: tuple[Path, ...] = ()
    pooled: tuple[Path, ...] = ()
    rest: tuple[Path, ...] = ()

    @property
    def tokens(self) -> tuple[Path, ...]:
        return (self.states, *self.more)

    @property
    def every(self) -> tuple[Path, ...]:
        return (*self.tokens, *self.pooled, *self.rest)


def stacked(value: Any) -> Tensor:
    """A text as one tensor [B, L, D]; a list of texts of different lengths gets zeros behind the shorter ones."""
    if isinstance(value, Tensor):
        return value
    return nn.utils.rnn.pad_sequence(list(value), batch_first=True)


def unstacked(value: Tensor, like: Any) -> Any:
    """[B, L, D] in the form in which ``like`` was given."""
    if isinstance(like, Tensor):
        return value
    return type(like)(row[: len(template)] for row, template in zip(value, like, strict=True))


def collected(rows: Sequence[Any], like: Any, lengths: Sequence[int]) -> Any:
    """One argument of several texts, encoded at different times, as one: zeros behind the shorter ones. A mask that a pipeline
    leaves out where it would hide nothing is all ones over a text's own length.
    """
    if is_text_list(like) or not isinstance(like, Tensor):
        return list(rows)
    tensors = [torch.ones(length) if row is None else torch.as_tensor(row) for row, length in zip(rows, lengths, strict=True)]
    padded = tensors[0].dim() > 0 and len({len(row) for row in tensors}) > 1
    whole = nn.utils.rnn.pad_sequence(tensors, batch_first=True) if padded else torch.stack(tensors)
    return whole.to(like)


def fresh(values: Values) -> Values:
    """The same arguments in lists of their own: some denoisers use up the lists that they are given."""
    return {name: list(value) if isinstance(value, list) else value for name, value in values.items()}
