"""Trainings of some updates on tiny pipelines, which the tests of trained deltas share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from safeguard.sdk.adapter import Adapter
from safeguard.sdk.fingerprint import Fingerprint
from safeguard.training.distillation import Distillation, DistillationSettings, Recipe
from safeguard.training.frozen_pipeline import FrozenPipeline
from safeguard.training.holdout import Holdout
from safeguard.training.text_pairs import TextPair
from tests.support.families import FAMILIES

PAIRS: Final = (TextPair("a red boat", "a red boat with blood"), TextPair("a tree", "a tree, blood"))
FEW: Final = DistillationSettings(updates=3, batch=2, rate=1e-2, steps=2, reuse=2)
BOUND: Final = Fingerprint("Pipe", (("site", 2),), (1.0,))


class Pipe:
    """What an eraser asks of a pipeline before it looks at an adapter."""

    name = "Pipe"
    fingerprint = BOUND


def frozen(family: str = "sd1") -> FrozenPipeline:
    pipe = FAMILIES[family]()
    return FrozenPipeline(pipe, {"max_sequence_length": 0} if hasattr(pipe, "transformer") else {})


def training(
    recipe: Recipe, beside: FrozenPipeline | None = None, pairs: Sequence[TextPair] = PAIRS, /, more: Any = None, **changes: Any
) -> Distillation:
    return Distillation(beside or frozen(), "blood", pairs, replace(FEW, **changes), recipe, **(more or {}))


def exam(beside: FrozenPipeline, pairs: Sequence[TextPair] = PAIRS) -> Holdout:
    return Holdout(beside, "blood", pairs, count=2, steps=2, seed=0)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(layer: str = "unet.a", inside: int = 4, outside: int = 3, rank: int = 2) -> dict[str, torch.Tensor]:
    """The delta of one layer as an adapter has it."""
    return {f"{layer}.down": numbers(rank, inside), f"{layer}.up": numbers(outside, rank, seed=1)}


def adapter(method: str, **changes: Any) -> Adapter:
    options = {"method": method, "tensors": factors(), "settings": {"concept": "blood", "sequence": ["blood", "weapon"]}}
    return Adapter(**{**options, "fingerprint": BOUND, **changes})
