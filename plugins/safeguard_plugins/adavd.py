"""``adavd``: the prompt's values lose what they have of the concept's (Adaptive Value Decomposer, arXiv 2412.06143).

At an attention, with v the value of one of the prompt's tokens and v_E that of the concept's last word, heads side by side:

    v <- v - s g(cos(v_E, v)) (<v_E, v> / <v_E, v_E>) v_E,  g(x) = 1 / (1 + exp(-slope (x - threshold)))

The token that opens a text keeps its value. Several concepts of a row (and several phrases of one) are made orthogonal in their
order first, Gram-Schmidt, each with the gate of its own cosine.

The strength is the authors' factor, which they set to 2. Their slope and threshold (100 and 0.93) belong to vectors in which
the unconditional branch stands beside the conditional one, equal for concept and prompt, so that all are alike; here each row
is its own, and both were chosen anew. Where a text has parts of several encoders, one after the other (Stable Diffusion 3), a
concept has a last word in each. In joint attention values change from step to step, the concept's as well; the paper knows
cross-attention alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, Seam, SiteCall, SiteEffect, TextSiteEdit, param_number
from safeguard.sdk.pipeline import EncodedText, TokenKeys

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Part:
    """What one encoder gave of a text: its first place, the places of what opens it, and which token is its last word."""

    start: int
    opening: tuple[int, ...]
    last: int

    @classmethod
    def of(cls, text: EncodedText) -> list[_Part]:
        """Padding sets the parts apart."""
        places, words = text.places, set(text.content)
        starts = [spot for spot in range(len(places)) if spot == 0 or places[spot] != places[spot - 1] + 1]
        directions = []
        for first, end in zip(starts, [*starts[1:], len(places)], strict=True):
            own = [spot for spot in range(first, end) if spot in words]
            if own:
                directions.append(cls(places[first], tuple(places[first : own[0]]), own[-1]))
        return directions


@dataclass(frozen=True, slots=True)
class _Targets:
    """K phrases: the concept of each, and for each part of a text the tokens [parts, K] that are their last words."""

    owners: Sequence[int]
    spots: Sequence[Sequence[int]]
    starts: Sequence[int]  # of the parts in a prompt
    opening: Sequence[int]  # places in a prompt whose values stay

    @classmethod
    def of(cls, concepts: Sequence[Concept], texts: Sequence[EncodedText]) -> _Targets:
        owners = [column for column, concept in enumerate(concepts) for _ in concept.phrases]
        parts = [_Part.of(text) for text in texts]
        behind = list(accumulate((len(text.states) for text in texts), initial=0))
        shape = max(parts, key=len)
        spots = [
            [start + own[min(place, len(own) - 1)].last for start, own in zip(behind, parts, strict=False)]
            for place in range(len(shape))
        ]
        return cls(owners, spots, [part.start for part in shape], [place for part in shape for place in part.opening])

    def select(self, columns: Sequence[int]) -> _Targets:
        chosen = [(new, k) for new, column in enumerate(columns) for k, owner in enumerate(self.owners) if owner == column]
        spots = [[part[k] for _, k in chosen] for part in self.spots]
        return _Targets([new for new, _ in chosen], spots, self.starts, self.opening)


class _Decompose(TextSiteEdit):
    def __init__(self, concepts: Sequence[str], targets: _Targets, keys: TokenKeys, slope: float, threshold: float) -> None:
        self.concepts = tuple(concepts)
        self._targets, self._keys, self._slope, self._threshold = targets, keys, slope, threshold

    def select(self, columns: Sequence[int]) -> _Decompose:
        names = [self.concepts[column] for column in columns]
        return _Decompose(names, self._targets.select(columns), self._keys, self._slope, self._threshold)

    def __call__(self, call: SiteCall) -> SiteEffect:
        import torch

        values = call.prompt_values.transpose(1, 2).flatten(2).float()  # [R, L, H * d]
        strengths = call.strengths.float()[:, list(self._targets.owners)]  # [R, K]
        own = self._keys.at(call.site)[1].transpose(0, 1).flatten(1).float()
        lost = torch.zeros_like(values)
        edges = [0, *self._targets.starts[1:], values.shape[1]]
        for (first, end), spots in zip(pairwise(edges), self._targets.spots, strict=True):
            lost[:, first:end] = self._component(values[:, first:end], own[list(spots)], strengths)
        lost[:, list(self._targets.opening)] = 0
        heads = lost.unflatten(-1, (call.site.heads, call.site.head_dim)).transpose(1, 2).to(call.prompt_values.dtype)
        answer, share = call.answered(heads)
        return SiteEffect(-call.merge(answer if share is None else answer * share[..., None]))

    def _component(self, values: Tensor, targets: Tensor, strengths: Tensor) -> Tensor:
        """What values [R, L, D] have along targets [K, D], as much as their gates and strengths [R, K] say: [R, L, D]."""
        import torch
        from torch.nn.functional import normalize

        likeness = normalize(values, dim=-1) @ normalize(targets, dim=-1).T  # [R, L, K]
        amount = strengths[:, None] * (self._slope * (likeness - self._threshold)).sigmoid()
        basis = targets * (strengths != 0)[..., None]  # [R, K, D]: a row's concepts among themselves
        component = torch.zeros_like(values)
        for k in range(len(targets)):
            past = basis[:, :k]
            left = basis[:, k] - ((basis[:, k, None] @ past.transpose(1, 2)) @ past)[:, 0]
            # What lies within the others, but for rounding, has no direction of its own.
            alone = left.norm(dim=-1) > 1e-4 * basis[:, k].norm(dim=-1)
            direction = normalize(left, dim=-1) * alone[:, None]
            basis = torch.cat([past, direction[:, None], basis[:, k + 1 :]], 1)
            component += (amount[..., k] * (values @ direction[..., None])[..., 0])[..., None] * direction[:, None]
        return component


class AdaVD:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "adavd"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 2.0}
    params: ClassVar[Mapping[str, Any]] = {"slope": 20.0, "threshold": 0.5}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        slope = param_number(concepts[0], self, params, "slope", least=0)
        threshold = param_number(concepts[0], self, params, "threshold", least=-2, most=2)
        texts = pipeline.encode([phrase for concept in concepts for phrase in concept.phrases])
        targets = _Targets.of(concepts, texts)
        return [_Decompose([concept.id for concept in concepts], targets, pipeline.keys(texts), slope, threshold)]
