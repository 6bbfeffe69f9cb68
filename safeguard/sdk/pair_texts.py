"""Pairs of texts with and without a concept, token by token: the ``texts: pairs`` of erasers that take a concept's phrases.

A published method reads a concept off its phrases, each a text by itself. In the place of these it may have the phrases *in
context*: "a person with blood", and what the same text is without it, "a person" (`safeguard.sdk.contrast_attention.pairs_of`).
An encoder that mixes writes the concept into the states of all words of the text, and into its padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Final

from safeguard.policy import Concept
from safeguard.sdk.contrast_attention import pairs_of
from safeguard.sdk.eraser import Eraser, param_choice
from safeguard.sdk.pipeline import EncodedText, Pipeline

TEXTS: Final = ("phrases", "pairs")


def wants_pairs(concept: Concept, eraser: Eraser, params: Mapping[str, Any]) -> bool:
    """Whether ``params.texts`` is ``pairs``, and not ``phrases``, the published method.

    Args:
        concept: The concept, for the message.
        eraser: The eraser, for the message.
        params: The parameters that `Eraser.edits` was given.

    Raises:
        CapabilityError: For any other word.
    """
    return param_choice(concept, eraser, params, "texts", TEXTS) == "pairs"


@dataclass(frozen=True, slots=True)
class TextPart:
    """What one encoder gave of a text: the spots in ``EncodedText.states`` of all its tokens, and of its words."""

    tokens: Sequence[int]
    words: Sequence[int]


def text_parts(text: EncodedText) -> list[TextPart]:
    """The parts that several encoders gave, one after another; padding sets them apart.

    Args:
        text: As `Pipeline.encode` gives it.
    """
    places, words = text.places, set(text.content)
    starts = [spot for spot in range(len(places)) if spot == 0 or places[spot] != places[spot - 1] + 1]
    return [
        TextPart(range(first, end), [spot for spot in range(first, end) if spot in words])
        for first, end in zip(starts, [*starts[1:], len(places)], strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A text with a concept, and the same without it.

    Attributes:
        shown: The text with it.
        without: The text without it.
        same: Spots of words that both have: in the one, and in the other.
        own: Spots of the words that only ``shown`` has.
        beside: For each of ``own``, the spots of all words that the same encoder gave of ``without``; of a text without words
            that of the token that opens it.
    """

    shown: EncodedText
    without: EncodedText
    same: Sequence[tuple[int, int]]
    own: Sequence[int]
    beside: Sequence[Sequence[int]]

    @property
    def texts(self) -> tuple[EncodedText, EncodedText]:
        """Both, the one with the concept first."""
        return self.shown, self.without

    @property
    def named(self) -> EncodedText:
        """The text with the concept, of which only the words that name it count as words."""
        return replace(self.shown, content=self.own)


def encoded_pairs(concept: Concept, pipeline: Pipeline) -> list[EncodedPair]:
    """The concept's pairs, by the pipeline's own encoders.

    Args:
        concept: The concept.
        pipeline: The pipeline that `Eraser.edits` was given.
    """
    return [_encoded(*pair, pipeline) for pair in pairs_of(concept)]


def _encoded(shown: str, without: str, pipeline: Pipeline) -> EncodedPair:
    words, others = shown.split(), without.split()
    front = _common(words, others)
    back = _common(words[front:][::-1], others[front:][::-1])
    texts = [shown, without, " ".join(words[:front]), " ".join(words[len(words) - back :])]
    one, other, *edges = pipeline.encode(texts)
    same: list[tuple[int, int]] = []
    own: list[int] = []
    beside: list[Sequence[int]] = []
    for mine, its, first, last in zip(*map(text_parts, (one, other, *edges)), strict=False):
        begins, ends = len(first.words), len(mine.words) - len(last.words)
        same += zip(mine.words[:begins], its.words[:begins], strict=False)
        same += zip(mine.words[ends:], its.words[len(its.words) - len(last.words) :], strict=False)
        own += mine.words[begins:ends]
        beside += [its.words or its.tokens[:1]] * (ends - begins)
    return EncodedPair(one, other, same, own, beside)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words two lists begin with alike."""
    return len(list(takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False))))
