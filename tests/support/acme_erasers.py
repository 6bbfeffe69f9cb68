"""Erasers as a stranger would write them, one a seam: they prove that a plugin needs the seams and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from safeguard.policy import Concept
from safeguard.sdk import (
    Edit,
    FeatureCall,
    FeatureEdit,
    LinearEdit,
    Pipeline,
    PredictionCall,
    PredictionEdit,
    Seam,
    SiteCall,
    SiteEffect,
    StatesCall,
    TextSiteEdit,
    TextStatesEdit,
)
from safeguard.sdk.pipeline import TokenKeys

WORDS: Mapping[str, float] = {"weak": 0.5, "medium": 1.0, "strong": 2.0, "max": 4.0}


class _Slide(PredictionEdit):
    """p <- p - s mu (e - u), mu large where the row leans towards the concept (after SLD, arXiv 2211.05105)."""

    def __init__(self, concepts: Sequence[Concept], scale: float) -> None:
        self.concepts = tuple(concept.id for concept in concepts)
        self._texts = [", ".join(concept.phrases) for concept in concepts]
        self._scale = scale

    def __call__(self, call: PredictionCall) -> Tensor:
        base = call.prediction if call.unconditional is None else call.unconditional
        slid = call.prediction
        for column, text in enumerate(self._texts):
            concept = call.predict([text] * len(slid))
            lean = ((call.prediction - concept).abs() * self._scale).clamp(max=1.0)
            slid = slid - call.strengths[:, column, None, None, None].to(slid.dtype) * lean * (concept - base)
        return slid


class _Push(TextSiteEdit):
    """O <- O + s / 10 (A_P - A_E): away from what the concept's tokens would give, towards what the prompt's give."""

    def __init__(self, concepts: Sequence[str], keys: Sequence[TokenKeys]) -> None:
        self.concepts = tuple(concepts)
        self._keys = list(keys)

    def select(self, columns: Sequence[int]) -> _Push:
        return _Push([self.concepts[column] for column in columns], [self._keys[column] for column in columns])

    def __call__(self, call: SiteCall) -> SiteEffect:
        scores = call.scores(call.prompt_keys)
        weights = (scores if call.mask is None else scores + call.mask).softmax(-1)
        delta = torch.zeros_like(call.output)
        for column, tokens in enumerate(self._keys):
            keys, values = tokens.at(call.site)
            concept = call.scores(keys).softmax(-1).to(values.dtype) @ values
            heads = weights.to(values.dtype) @ call.prompt_values - concept
            delta = delta + 0.1 * call.strengths[:, column, None, None].to(delta.dtype) * call.merge(heads)
        return SiteEffect(delta)


class _Blend(TextStatesEdit):
    """Takes the concept's mean direction out of the prompt's own states."""

    def __init__(self, concepts: Sequence[Concept], directions: Tensor) -> None:
        self.concepts = tuple(concept.id for concept in concepts)
        self._directions = directions  # [C, D], of length 1

    def __call__(self, call: StatesCall) -> Tensor:
        directions = self._directions.to(call.states)
        along = call.states @ directions.T  # [R, L, C]
        return call.states - (along * call.strengths[:, None, :].to(along)) @ directions


class _Dim(FeatureEdit):
    """F <- F - s / 10 (F - its mean over the tokens), at the first text site's own output."""

    def __init__(self, concepts: Sequence[str], module: str) -> None:
        self.concepts = tuple(concepts)
        self.module = module

    def __call__(self, call: FeatureCall) -> Tensor:
        strength = 0.1 * call.strengths.amax(1).to(call.feature)[:, None, None]
        return call.feature - strength * (call.feature - call.feature.mean(1, keepdim=True))


class _Acme:
    api: ClassVar[tuple[int, int]] = (1, 0)
    version: ClassVar[str] = "1.0"
    strengths: ClassVar[Mapping[str, float]] = WORDS
    params: ClassVar[Mapping[str, Any]] = {}


class Slide(_Acme):
    name: ClassVar[str] = "acme_slide"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.PREDICTION})
    params: ClassVar[Mapping[str, Any]] = {"scale": 10.0}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_Slide(concepts, params["scale"])]


class Push(_Acme):
    name: ClassVar[str] = "acme_push"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE})

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        texts = pipeline.encode([", ".join(concept.phrases) for concept in concepts])
        return [_Push([concept.id for concept in concepts], [pipeline.keys([text]) for text in texts])]


class Blend(_Acme):
    name: ClassVar[str] = "acme_blend"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_STATES})

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        texts = pipeline.encode([", ".join(concept.phrases) for concept in concepts])
        means = torch.stack([text.states[text.content].float().mean(0) for text in texts])
        return [_Blend(concepts, means / means.norm(dim=-1, keepdim=True))]


class Dim(_Acme):
    name: ClassVar[str] = "acme_dim"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.FEATURE})

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_Dim([concept.id], pipeline.sites[0].name) for concept in concepts]


class Delta(_Acme):
    """A weight delta of rank one, made from the concept's words (as closed-form and trained erasers make theirs)."""

    name: ClassVar[str] = "acme_delta"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.LINEAR})

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        site = pipeline.sites[0]
        width = site.heads * site.head_dim
        made = []
        for concept in concepts:
            generator = torch.Generator().manual_seed(len(concept.id))
            down, up = (torch.randn(shape, generator=generator) / width**0.5 for shape in ((1, width), (width, 1)))
            made.append(LinearEdit(f"{site.name}.to_out.0", (concept.id,), down, up))
        return made


ERASERS: tuple[type, ...] = (Blend, Delta, Dim, Push, Slide)

ONE_PER_SEAM = tuple(kind.name for kind in ERASERS)
