"""What every training is given, and which methods have one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from safeguard.erasing import Adapter
from safeguard.errors import SafeguardError
from safeguard.evaluation.studio import Studio
from safeguard.policy import Concept, Policy

METHODS: Final = {"gie": "safeguard.training.gie:train"}
"""Each eraser that can be trained, and by what: a function of a `Task` that gives back an `Adapter`."""

Advance = Callable[[str, int], None]


@dataclass(frozen=True, eq=False)
class Task:
    """What to train on: a pipeline with a judge of its pictures (``studio``), the concepts of ``policy``, and how many prompts
    of each kind; all that is drawn comes from ``seed``. ``advance`` is told what is under way, and how many pictures it gave.
    """

    studio: Studio
    policy: Policy
    count: int = 16
    seed: int = 0
    batch: int = 20
    advance: Advance = lambda what, pictures: None

    @property
    def concepts(self) -> Sequence[Concept]:
        return list(self.policy.concepts.values())


def train(method: str, task: Task) -> Adapter:
    """Train what the eraser ``method`` needs. Raises SafeguardError for one that has no training."""
    if method not in METHODS:
        raise SafeguardError(f"eraser {method!r} has no training; there is one for {', '.join(METHODS)}")
    module, _, name = METHODS[method].partition(":")
    made: Adapter = getattr(importlib.import_module(module), name)(task)
    return made
