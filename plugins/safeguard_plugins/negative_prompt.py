"""``negative_prompt``: the baseline everyone knows. The concept's words join the text of the unconditional branch.

What ``pipe(prompt, negative_prompt="blood")`` does, as an eraser: active per row, swapped at run time, recorded. It costs
nothing, and needs classifier-free guidance. The method has no scale of its own beyond the guidance: any strength above 0
is the same act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from safeguard.erasing import PROTOCOL, Edit, Pipeline, Seam, StatesCall, TextStatesEdit
from safeguard.policy import Concept

if TYPE_CHECKING:
    from torch import Tensor


class _NegativeText(TextStatesEdit):
    unconditional = True

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self.concepts = tuple(concept.id for concept in concepts)
        self._phrases = [", ".join(concept.phrases) for concept in concepts]

    def __call__(self, call: StatesCall) -> Tensor:
        """States of each row's negative text with the phrases of its active concepts behind it: [R, L, D]."""
        texts = [
            ", ".join([*([text] if text else []), *(p for p, on in zip(self._phrases, line, strict=True) if on)])
            for text, line in zip(call.texts, call.strengths.tolist(), strict=True)
        ]
        return call.encode(texts)


class NegativePrompt:
    """The eraser; see the module."""

    protocol: ClassVar[int] = PROTOCOL
    name: ClassVar[str] = "negative_prompt"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_STATES})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 1.0, "medium": 1.0, "strong": 1.0, "max": 1.0}
    params: ClassVar[Mapping[str, Any]] = {}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_NegativeText(concepts)]
