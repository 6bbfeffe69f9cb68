"""A concept's words in the negative prompt: the baseline, and a part of some methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safeguard.policy import Concept
from safeguard.sdk.calls import StatesCall
from safeguard.sdk.seams import TextStatesEdit

if TYPE_CHECKING:
    from torch import Tensor


class NegativeText(TextStatesEdit):
    """An edit of the unconditional branch: puts the phrases of a row's active concepts before its negative text. Stable.

    The encoder cuts off the end of the negative text if it does not fit.

    Args:
        concepts: The concepts, in the order of the columns of strengths.
    """

    unconditional = True

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self.concepts = tuple(concept.id for concept in concepts)
        self._phrases = [", ".join(concept.phrases) for concept in concepts]

    def __call__(self, call: StatesCall) -> Tensor:
        """States of each row's negative text with the phrases of its active concepts before it: [R, L, D]. Raises
        CapabilityError where the encoder does not read all these phrases.
        """
        active = [
            ", ".join(phrase for phrase, on in zip(self._phrases, line, strict=True) if on) for line in call.strengths.tolist()
        ]
        return call.encode(active, call.texts)
