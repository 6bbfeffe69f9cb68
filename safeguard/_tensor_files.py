"""Files of tensors with words beside them: safetensors, whose reading runs no code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

_KEY: Final = "safeguard"  # of the metadata, which safetensors keeps as text by name


def to_bytes(tensors: Mapping[str, Tensor], said: Any) -> bytes:
    """The file of some tensors, with ``said``, in terms of JSON, beside them. The same gives the same bytes."""
    return packed(tensors, {_KEY: json.dumps(said)})


def load(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Tensor]]:
    """What stands beside the tensors of a file, and these. Raises ValueError or KeyError for a file of another kind, and what
    `unpacked` raises.
    """
    texts, tensors = unpacked(path)
    return json.loads(texts[_KEY]), tensors


def digest_of(tensors: Mapping[str, Tensor], said: Any) -> str:
    """Names what such a file holds: hex SHA-256 over ``said`` and the tensors as float32, in the order of their names."""
    total = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].detach().cpu().contiguous().float().numpy().tobytes())
    return total.hexdigest()


def packed(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> bytes:
    """A file of tensors, as they are on the CPU, with texts by name."""
    from safetensors.torch import save

    return save({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, dict(texts))


def unpacked(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The texts and the tensors of a file. Raises OSError where it cannot be read, and ValueError where it holds no tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as fault:
        raise ValueError(str(fault)) from fault
