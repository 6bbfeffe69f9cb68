"""``sdd``: linear layers taught to answer a concept as they answer nothing (Safe Self-Distillation, arXiv 2307.05977).

The denoiser is fine-tuned until, told the concept, it predicts what it predicts untold (``safeguard_plugins.sdd.train``). What
that changes in its layers comes as deltas in an adapter, one for each concept. The weights stay as they are: y + s (x down^T
up^T) is added in the rows in which the concept is active, and so not on the unconditional branch, which the published
fine-tuning changes as well. s = 1 is as it was trained; deltas of several concepts add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import DeltaEraser, Edit, Pipeline, edits_per_concept


class SDD(DeltaEraser):
    """The eraser; see the module."""

    name: ClassVar[str] = "sdd"
    version: ClassVar[str] = "1.0"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return edits_per_concept(concepts, self.name, params["adapter"], pipeline)
