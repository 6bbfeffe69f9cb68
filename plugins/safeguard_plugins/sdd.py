"""``sdd``: linear layers taught to answer a concept as they answer nothing (Safe Self-Distillation, arXiv 2307.05977).

The denoiser is fine-tuned until, told the concept, it predicts what it predicts untold (``safeguard.training.sdd``). What that
changes in its layers comes as deltas in an adapter, one for each concept. The weights stay as they are: y + s (x down^T up^T)
is added in the rows in which the concept is active, and so not on the unconditional branch, which the published fine-tuning
changes as well. s = 1 is as it was trained; deltas of several concepts add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from safeguard.erasing import Edit, OfDeltas, Pipeline, own_edits
from safeguard.policy import Concept

SHIPPED: Final = Path(__file__).with_name("assets")


class SDD(OfDeltas):
    """The eraser; see the module."""

    name: ClassVar[str] = "sdd"
    version: ClassVar[str] = "1.0"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return own_edits(concepts, self.name, params["adapter"], pipeline, SHIPPED)
