"""``hfi``: linear layers taught to answer what people object to as they answer nothing (human feedback inversion, arXiv
2407.21032).

What people said of pictures is made a learned word, and the denoiser is fine-tuned until, told that word, it predicts what it
predicts untold (``safeguard_plugins.hfi.train``). What that changes in its layers comes as deltas in an adapter, one for each
concept, and acts as those of ``sdd`` do. The word itself is not needed here; any eraser can be given it in place of a phrase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import DeltaEraser, Edit, Pipeline, edits_per_concept


class HFI(DeltaEraser):
    """The eraser; see the module."""

    name: ClassVar[str] = "hfi"
    version: ClassVar[str] = "1.0"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return edits_per_concept(concepts, self.name, params["adapter"], pipeline)
