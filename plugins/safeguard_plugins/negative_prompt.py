"""``negative_prompt``: the baseline everyone knows. The concept's words join the text of the unconditional branch.

What ``pipe(prompt, negative_prompt="blood")`` does, as an eraser: active per row, swapped at run time, recorded. It costs
nothing, and needs classifier-free guidance. The method has no scale of its own beyond the guidance: any strength above 0
is the same act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, Seam
from safeguard.sdk.negative_text import NegativeText


class NegativePrompt:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "negative_prompt"
    version: ClassVar[str] = "1.1"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_STATES})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 1.0, "medium": 1.0, "strong": 1.0, "max": 1.0}
    params: ClassVar[Mapping[str, Any]] = {}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [NegativeText(concepts)]
