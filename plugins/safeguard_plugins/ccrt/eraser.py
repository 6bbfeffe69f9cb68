"""``ccrt``: concepts that were taken out one after another (Continuous Concepts Removal, arXiv 2412.00580).

As ``esd`` (or ``sdd``), but each concept of a sequence is learnt on top of those before it, while what the denoiser makes of
other prompts is held where it was (``safeguard_plugins.ccrt.train``). So there is one adapter for the whole sequence, and one
delta of a layer takes all its concepts: y + s (x down^T up^T) in the rows in which any of them is active, s the largest of
their strengths. The weights stay as they are, and nothing is added on the unconditional branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk import DeltaEraser, Edit, Pipeline, find_adapter
from safeguard.sdk.delta_eraser import delta_edits


class CCRT(DeltaEraser):
    """The eraser; see the module."""

    name: ClassVar[str] = "ccrt"
    version: ClassVar[str] = "1.0"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        adapter = find_adapter(params["adapter"], concepts[0], self.name, pipeline)
        sequence = adapter.settings.get("sequence")
        if not isinstance(sequence, list):
            raise adapter.malformed("it does not say which concepts it takes", pipeline.name)
        missing = [concept.id for concept in concepts if concept.id not in sequence]
        if missing:
            raise CapabilityError(
                f"concept {missing[0]!r}: {adapter.origin or 'the adapter'} takes {', '.join(map(str, sequence))}; train one "
                f"with safeguard train {self.name} --concept for each, or choose another eraser",
                pipeline=pipeline.name,
                eraser=self.name,
                missing=missing[0],
            )
        return delta_edits(adapter, concepts, pipeline)
