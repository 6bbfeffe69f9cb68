"""What the tests of the closed-form erasers share: edits as whole weights, and the solution written out as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.support.worded_denoisers import TEXT, WordPipeline, concepts_of

MODULES = ("net.k", "net.v")


def edits_of(eraser: Any, *phrases: str, pipeline: Any = None, **params: Any) -> dict[str, Any]:
    """By module."""
    made = eraser().edits(concepts_of(*phrases), {**eraser.params, **params}, pipeline or WordPipeline())
    return {edit.module: edit for edit in made}


def weight_of(edit: Any, *active: int) -> Tensor:
    """The layer's weight with some concepts active, in float64, of an edit that replaces texts."""
    places, down = edit.solved.of(active)
    weight = WordPipeline().weight(edit.module)
    return weight + weight @ edit.solved.change[places].T @ down


def rows_of(text: str) -> Tensor:
    """What a layer is given of a text, [L, D]."""
    (rows,) = WordPipeline().inputs(WordPipeline.text_layers[0], [text])
    return rows


def words_of(text: str) -> int:
    return len(text.split())


def solution(weight: Tensor, rows: Tensor, targets: Tensor, kept: Tensor, a: float, b: float, lamb: float) -> Tensor:
    """(l W + a sum v c^T + b sum W p p^T) (l I + a sum c c^T + b sum p p^T)^-1, of rows [n, D] and targets [n, out]."""
    left = lamb * weight + a * targets.T @ rows + b * weight @ kept.T @ kept
    return left @ torch.linalg.inv(lamb * torch.eye(TEXT, dtype=torch.float64) + a * rows.T @ rows + b * kept.T @ kept)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())


def stacked(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))
