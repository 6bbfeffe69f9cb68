"""Concepts where a denoiser reads the text as one vector besides its tokens: directions among these vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from safeguard.policy import Concept
from safeguard.sdk.contrast_attention import Pair, pairs_of
from safeguard.sdk.overlap import overlap_factors
from safeguard.sdk.pipeline import Pipeline

if TYPE_CHECKING:
    from torch import Tensor

ORDINARY: Final = ("a picture of a person", "a picture of a house in the mountains", "a tree", "a dog on a street at night")


class PooledDirections:
    """Concepts as directions among texts that are one vector each: ``directions`` [C, P], and the ``mean`` [P] of ordinary
    texts.
    """

    def __init__(self, directions: Tensor, mean: Tensor) -> None:
        self.directions, self.mean = directions, mean

    @classmethod
    def of(cls, concepts: Sequence[Concept], pipeline: Pipeline) -> PooledDirections | None:
        """What each concept makes of texts, in the mean over its pairs. None where the denoiser reads no such vector.

        The pairs are `ORDINARY` texts, each with every phrase behind it and without; of a concept with ``contrasts`` or an
        ``anchor`` they are those of `pairs_of`.
        """
        import torch

        bare = pipeline.pooled(ORDINARY)
        if bare is None:
            return None
        pairs = [_pairs(concept) for concept in concepts]
        shown = _vectors(pipeline, [shown for own in pairs for shown, _ in own])
        known = dict(zip(ORDINARY, bare.float(), strict=True))
        others = list(dict.fromkeys(text for own in pairs for _, text in own if text not in known))
        if others:
            known |= zip(others, _vectors(pipeline, others), strict=True)
        directions = []
        for concept, own, vectors in zip(concepts, pairs, shown.split([len(own) for own in pairs]), strict=True):
            shifts = vectors - torch.stack([known[without] for _, without in own])
            if not _has_own_pairs(concept):
                shifts = shifts.unflatten(0, (-1, len(ORDINARY))).mean(1)  # of each phrase
            directions.append(shifts.mean(0))
        return cls(torch.stack(directions), bare.float().mean(0))

    def components(self, pooled: Tensor) -> Tensor:
        """<p - mu, d> / <d, d> of vectors [R, P] for every concept: [R, C]."""
        import torch

        beside = pooled - self.mean.to(pooled)
        along = [beside @ direction / direction.square().sum().clamp_min(1e-12) for direction in self.directions.to(pooled)]
        return torch.stack(along, 1)

    def together(self, components: Tensor) -> Tensor:
        """How much of each concept is needed where several with these ``components`` [R, C] act: `factors`, [R, C]."""
        directions = self.directions.to(components)
        return overlap_factors(components[:, :, None] * (directions @ directions.T) * components[:, None, :])


def _has_own_pairs(concept: Concept) -> bool:
    return bool(concept.contrasts) or concept.anchor is not None


def _pairs(concept: Concept) -> list[Pair]:
    if _has_own_pairs(concept):
        return pairs_of(concept)
    return [(f"{text}, {phrase}", text) for phrase in concept.phrases for text in ORDINARY]


def _vectors(pipeline: Pipeline, texts: Sequence[str]) -> Tensor:
    vectors = pipeline.pooled(texts)
    assert vectors is not None
    return vectors.float()
