"""``adavd``: the prompt's values lose what they have of the concept's (Adaptive Value Decomposer, arXiv 2412.06143).

At an attention, with v the value of one of the prompt's tokens and v_E that of the concept's last word, heads side by side:

    v <- v - s g(cos(v_E, v)) (<v_E, v> / <v_E, v_E>) v_E,  g(x) = 1 / (1 + exp(-slope (x - threshold)))

The token that opens a text keeps its value. Several concepts of a row (and several phrases of one) are made orthogonal in their
order first, Gram-Schmidt, each with the gate of its own cosine.

``texts: pairs`` is a variant of ours, with the concept in context. v_E is the mean value of the words that name it in texts
with it ("a person with blood"), and both v and v_E are counted from the mean value of the words of the same texts without it.
So v_E is what the concept adds, and a word that says no more than ordinary ones has none of it.

The strength is the authors' factor, which they set to 2. Their slope and threshold (100 and 0.93) belong to vectors in which
the unconditional branch stands beside the conditional one, equal for concept and prompt, so that all are alike; here each row
is its own, and both were chosen anew. Where a text has parts of several encoders, one after the other (Stable Diffusion 3), a
concept has a last word in each. In joint attention values change from step to step, the concept's as well; the paper knows
cross-attention alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, Seam, SiteCall, SiteEffect, TextSiteEdit, param_number
from safeguard.sdk.pair_texts import EncodedPair, TextPart, encoded_pairs, text_parts, wants_pairs
from safeguard.sdk.pipeline import EncodedText, TokenKeys

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Target:
    """One direction: the ``owner``, a column of strengths, and for each part of a text the tokens whose mean value it is. With
    ``origin`` all values are counted from the mean of those tokens.
    """

    owner: int
    spots: Sequence[Sequence[int]]
    origin: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class _Targets:
    """The directions of some concepts; where in a prompt each part starts, and the places whose values stay."""

    own: Sequence[_Target]
    starts: Sequence[int]
    opening: Sequence[int]

    @classmethod
    def of_phrases(cls, concepts: Sequence[Concept], texts: Sequence[EncodedText]) -> _Targets:
        """The last word of each phrase."""
        owners = [column for column, concept in enumerate(concepts) for _ in concept.phrases]
        parts = [_worded(text) for text in texts]
        behind = accumulate((len(text.states) for text in texts), initial=0)
        count = max(map(len, parts))
        found = [
            _Target(owner, [[start + own[min(place, len(own) - 1)].words[-1]] for place in range(count)])
            for owner, start, own in zip(owners, behind, parts, strict=False)
        ]
        return cls(found, *_frame(texts))

    @classmethod
    def of_pairs(cls, pairs: Sequence[Sequence[EncodedPair]]) -> _Targets:
        """The words of each concept's texts with it that those without it have not, less the words of the latter."""
        found, start = [], 0
        count = max(len(_worded(pair.shown)) for own in pairs for pair in own)
        for owner, own in enumerate(pairs):
            spots: list[list[int]] = [[] for _ in range(count)]
            origin: list[list[int]] = [[] for _ in range(count)]
            for pair in own:
                for text, wanted, kept in ((pair.shown, set(pair.own), spots), (pair.without, None, origin)):
                    for place, part in enumerate(_worded(text)):
                        kept[place] += [start + spot for spot in part.words if wanted is None or spot in wanted]
                    start += len(text.states)
            found.append(_Target(owner, spots, origin))
        return cls(found, *_frame([pair.shown for own in pairs for pair in own]))

    def select(self, columns: Sequence[int]) -> _Targets:
        chosen = [
            replace(target, owner=new) for new, column in enumerate(columns) for target in self.own if target.owner == column
        ]
        return replace(self, own=chosen)


def _worded(text: EncodedText) -> list[TextPart]:
    """The parts that have words."""
    return [part for part in text_parts(text) if part.words]


def _frame(texts: Sequence[EncodedText]) -> tuple[list[int], list[int]]:
    """Where the parts of a prompt start, and the places of what opens them."""
    text = max(texts, key=lambda each: len(_worded(each)))
    parts = _worded(text)
    opening = [text.places[spot] for part in parts for spot in part.tokens if spot < part.words[0]]
    return [text.places[part.tokens[0]] for part in parts], opening


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
        strengths = call.strengths.float()[:, [target.owner for target in self._targets.own]]  # [R, K]
        own = self._keys.at(call.site)[1].transpose(0, 1).flatten(1).float()
        lost = torch.zeros_like(values)
        edges = [0, *self._targets.starts[1:], values.shape[1]]
        for place, (first, end) in enumerate(pairwise(edges)):
            targets = _means(own, [target.spots[place] for target in self._targets.own])
            origins = None
            if any(target.origin for target in self._targets.own):
                origins = _means(own, [target.origin[place] for target in self._targets.own])
                targets = targets - origins
            lost[:, first:end] = self._component(values[:, first:end], targets, origins, strengths)
        lost[:, list(self._targets.opening)] = 0
        heads = lost.unflatten(-1, (call.site.heads, call.site.head_dim)).transpose(1, 2).to(call.prompt_values.dtype)
        answer, share = call.answered(heads)
        return SiteEffect(-call.merge(answer if share is None else answer * share[..., None]))

    def _component(self, values: Tensor, targets: Tensor, origins: Tensor | None, strengths: Tensor) -> Tensor:
        """What values [R, L, D] have along targets [K, D], as much as their gates and strengths [R, K] say: [R, L, D]. With
        ``origins`` [K, D] values are counted from these.
        """
        import torch
        from torch.nn.functional import normalize

        likeness = _likeness(values, targets, origins)  # [R, L, K]
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
            counted = values if origins is None else values - origins[k]
            component += (amount[..., k] * (counted @ direction[..., None])[..., 0])[..., None] * direction[:, None]
        return component


def _means(values: Tensor, spots: Sequence[Sequence[int]]) -> Tensor:
    """The mean value of the tokens at each group of spots: [K, D]."""
    import torch

    return torch.stack([values[list(own)].mean(0) for own in spots])


def _likeness(values: Tensor, targets: Tensor, origins: Tensor | None) -> Tensor:
    """cos(v, v_E) of values [R, L, D] and targets [K, D], the values counted from ``origins`` [K, D]: [R, L, K]."""
    import torch
    from torch.nn.functional import normalize

    if origins is None:
        return normalize(values, dim=-1) @ normalize(targets, dim=-1).T
    both = zip(normalize(targets, dim=-1), origins, strict=True)
    return torch.stack([normalize(values - origin, dim=-1) @ target for target, origin in both], -1)


class AdaVD:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "adavd"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 2.0}
    params: ClassVar[Mapping[str, Any]] = {"slope": 20.0, "threshold": 0.5, "texts": "phrases"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        slope = param_number(concepts[0], self, params, "slope", least=0)
        threshold = param_number(concepts[0], self, params, "threshold", least=-2, most=2)
        if wants_pairs(concepts[0], self, params):
            pairs = [encoded_pairs(concept, pipeline) for concept in concepts]
            texts, targets = [text for own in pairs for pair in own for text in pair.texts], _Targets.of_pairs(pairs)
        else:
            texts = pipeline.encode([phrase for concept in concepts for phrase in concept.phrases])
            targets = _Targets.of_phrases(concepts, texts)
        return [_Decompose([concept.id for concept in concepts], targets, pipeline.keys(texts), slope, threshold)]
