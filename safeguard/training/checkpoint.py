"""Where a training stands, in a file: from it a run that was stopped goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from safeguard._io import write_whole
from safeguard._tensor_files import packed, unpacked

SAVED = 50
"""Updates between checkpoints, at least."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file of one training; ``said`` is all that makes it this one. Without a file nothing is kept."""

    file: Path | None
    said: str

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the file, whole or not at all."""
        if self.file is not None:
            write_whole(self.file, packed(tensors, {"step": str(step), "said": self.said}))

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """The step and the tensors of the file. None where there is none, or one of another training."""
        if self.file is None or not self.file.is_file():
            return None
        texts, tensors = unpacked(self.file)
        return (int(texts["step"]), tensors) if texts.get("said") == self.said else None


def state_of(weights: Mapping[str, Tensor], optimiser: torch.optim.Adam) -> dict[str, Tensor]:
    """Weights and what Adam knows of each, for a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        state = optimiser.state[weight]
        tensors |= {name: weight, f"{name}:mean": state["exp_avg"], f"{name}:square": state["exp_avg_sq"]}
    return tensors


def restore_state(weights: Mapping[str, Tensor], optimiser: torch.optim.Adam, step: int, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `state_of`, into the same weights and a new optimiser."""
    for name, weight in weights.items():
        weight.data.copy_(tensors[name])
        mean, square = (tensors[f"{name}:{part}"].to(weight) for part in ("mean", "square"))
        optimiser.state[weight] = {"step": torch.tensor(float(step)), "exp_avg": mean, "exp_avg_sq": square}
