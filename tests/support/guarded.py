"""A pipeline under a guard that lasts as long as a module of tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import safeguard
from safeguard.audit import MemorySink
from safeguard.policy import Policy
from tests.support.families import PROMPTS, generate


@dataclass
class Guarded:
    """A pipeline under a guard that lasts: a test swaps in what it needs.

    Attributes:
        pipe: The pipeline.
        guard: Its guard.
        sink: Where its records go.
    """

    pipe: Any
    guard: safeguard.Guard
    sink: MemorySink

    def swap(self, policy: Policy) -> None:
        """Put another policy in the place of the last one, whose records are forgotten."""
        self.guard.swap(policy)
        self.sink.records.clear()

    def under(self, policy: Policy, prompts: Sequence[str] | None = PROMPTS, **changes: Any) -> torch.Tensor:
        """Latents of ``prompts`` under a policy."""
        self.swap(policy)
        return generate(self.pipe, prompts, **changes)
