"""``esd``: linear layers that were taught to guide away from a concept (Erasing Concepts, arXiv 2303.07345).

The denoiser is fine-tuned until, told the concept, it predicts what the unchanged one predicts with guidance away from it
(``safeguard_plugins.esd.train``). What that changes in its layers comes as deltas in an adapter, one for each concept. The
weights stay as they are: y + s (x down^T up^T) is added in the rows in which the concept is active, and so not on the
unconditional branch, which the published fine-tuning changes as well. s = 1 is as it was trained; deltas of several concepts
add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import DeltaEraser, Edit, Pipeline, edits_per_concept


class ESD(DeltaEraser):
    """The eraser; see the module."""

    name: ClassVar[str] = "esd"
    version: ClassVar[str] = "1.0"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return edits_per_concept(concepts, self.name, params["adapter"], pipeline)
