"""What texts with a concept answer the image that the same texts without it do not: a concept's direction in context.

A text encoder mixes. In "a dog covered in blood" the state of every token carries the blood, and the state of "blood" alone
stands in no prompt. So the direction is taken between pairs of texts that differ in the concept only. With W_k and O_k what an
image token would be answered by text k of K pairs with and without it, D = mean_k (W_k - O_k) is what the concept adds, and
B = mean_k O_k what ordinary texts say at that place.

What is asked of a text is asked of a *side*: the texts with a concept, or those without it, which concepts mostly share. So
the answers of a side's texts are one product, each text's weights times its part in the mean.

Shapes, besides those of `safeguard.sdk.seams`: P = R * N, image tokens of all rows; S sides, first one with each concept, then
every one without; M texts of the side that has most; E tokens of the longest text.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from safeguard.policy import Concept
from safeguard.sdk.calls import SiteCall
from safeguard.sdk.concept_attention import kept_selection
from safeguard.sdk.overlap import overlap_factors
from safeguard.sdk.pipeline import EncodedText, Pipeline, TextSite, TokenKeys

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[str, str]  # a text with the concept, and the same without it
ORDINARY: Final = ("a person", "a house", "a dog", "a tree", "a boat", "a car")
RELATIONS: Final = frozenset({
    "about", "above", "across", "after", "against", "among", "around", "at", "before", "behind", "below", "beside", "between",
    "by", "covered", "during", "from", "full", "holding", "in", "inside", "made", "near", "of", "on", "over", "showing",
    "through", "under", "wearing", "with", "without",
})  # fmt: skip
"""Words that a phrase may follow a text by."""
HIGHEST: Final = 0.1  # the share of image tokens that tell whether a concept stands somewhere


def pairs_of(concept: Concept) -> list[Pair]:
    """The concept's own ``contrasts``, or else ordinary texts with each of its phrases, and without: "a person with blood", "a
    house in the style of ...". The texts without it have the ``anchor`` instead, if there is one.

    Args:
        concept: The concept. A phrase, or an anchor, that begins with a relation ("in", "by", "covered") follows the text as it
            is; any other follows "with".

    Returns:
        Its contrasts; or as many pairs as there are ordinary texts, or as phrases where these are more: each phrase, and each
        text, in turn.
    """
    if concept.contrasts:
        pairs = [(pair["with"], pair["without"]) for pair in concept.contrasts]
    else:
        count = max(len(ORDINARY), len(concept.phrases))
        texts = [ORDINARY[place % len(ORDINARY)] for place in range(count)]
        pairs = [(_beside(text, concept.phrases[place % len(concept.phrases)]), text) for place, text in enumerate(texts)]
    return [(shown, text if concept.anchor is None else _beside(text, concept.anchor)) for shown, text in pairs]


def _beside(text: str, phrase: str) -> str:
    """A text, and a phrase that follows it."""
    if not text:
        return phrase
    related = phrase.lower().partition(" ")[0] in RELATIONS
    return f"{text} {phrase}" if related else f"{text} with {phrase}"


@dataclass(frozen=True, slots=True)
class _Sides:
    """The sides of some concepts' pairs: of each its texts and their parts in the mean; and of every concept the side without
    it.
    """

    texts: list[dict[int, float]]
    without: list[int]

    @classmethod
    def of(cls, pairs: Sequence[Sequence[tuple[int, int]]]) -> _Sides:
        with_it, without = ([_means(pair[side] for pair in own) for own in pairs] for side in (0, 1))
        distinct = {tuple(sorted(side.items())): side for side in without}
        places = {key: len(pairs) + place for place, key in enumerate(distinct)}
        return cls([*with_it, *distinct.values()], [places[tuple(sorted(side.items()))] for side in without])


def _means(texts: Iterable[int]) -> dict[int, float]:
    """The part of each text in a mean over all of them."""
    counts = Counter(texts)
    return {text: count / counts.total() for text, count in counts.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _AtSite:
    """One site's keys and values of the sides' texts, each side filled up to M texts and each text to E tokens."""

    keys: Tensor  # [H, d, E * S * M], scaled
    bias: Tensor | None  # [E, S * M], of the scores: -inf where nothing stands; None where every place is a token
    values: Tensor  # [H, S, M * E, d]
    shares: Tensor  # [S * M], of each text in its side's mean
    without: Tensor  # [C], of every concept the side without it, behind those with one


class ContrastAttention:
    """The texts of some concepts' pairs as every text site sees them. Make it with `of`, in `Eraser.edits`, and `read` it there
    where an edit is called.

    Args:
        concepts: Their ids.
        pairs: Of each concept, the places of its texts with and without it.
        lengths: Of each text, its tokens.
        keys: Of all texts, one after another.
    """

    def __init__(
        self, concepts: Sequence[str], pairs: Sequence[Sequence[tuple[int, int]]], lengths: Sequence[int], keys: TokenKeys
    ) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self.concepts = tuple(concepts)
        self._pairs = [tuple(own) for own in pairs]
        self._lengths, self._sides = tuple(lengths), _Sides.of(pairs)
        self.keys = keys
        self._kept: Any = WeakTensorKeyDictionary()  # by the keys that it was made from: one a site and time
        self._narrowed: dict[tuple[int, ...], ContrastAttention] = {}

    @classmethod
    def of(cls, concepts: Sequence[Concept], pairs: Sequence[Sequence[Pair]], pipeline: Pipeline) -> ContrastAttention:
        """The pairs of each concept, encoded by the pipeline's own encoders.

        Args:
            concepts: The concepts, in the order of the columns of strengths.
            pairs: Of each concept, at least one.
            pipeline: The pipeline that `Eraser.edits` was given.
        """
        places: dict[str, int] = {}
        for text in (text for own in pairs for pair in own for text in pair):
            places.setdefault(text, len(places))
        encoded: Sequence[EncodedText] = pipeline.encode(list(places))
        placed = [[(places[with_it], places[without]) for with_it, without in own] for own in pairs]
        lengths = [len(text.states) for text in encoded]
        return cls([concept.id for concept in concepts], placed, lengths, pipeline.keys(encoded))

    def select(self, columns: Sequence[int]) -> ContrastAttention:
        """The same for some of the concepts, with no texts but theirs.

        Args:
            columns: Which of them, in which order.
        """

        def narrowed() -> ContrastAttention:
            names, pairs = [self.concepts[c] for c in columns], [self._pairs[c] for c in columns]
            texts = sorted({place for own in pairs for pair in own for place in pair})
            places = {text: place for place, text in enumerate(texts)}
            own_pairs = [[(places[with_it], places[without]) for with_it, without in own] for own in pairs]
            return ContrastAttention(names, own_pairs, [self._lengths[text] for text in texts], self.keys.select(texts))

        return kept_selection(self._narrowed, columns, narrowed)

    def read(self, call: SiteCall) -> ContrastReading:
        """What the image tokens of a call read of the concepts.

        Args:
            call: The call of a text-site edit.
        """
        return ContrastReading(call, self._at(call.site))

    def _at(self, site: TextSite) -> _AtSite:
        keys, values = self.keys.at(site)
        known: _AtSite | None = self._kept.get(keys)
        if known is None:
            known = self._kept[keys] = self._make(site, keys, values)
        return known

    def _make(self, site: TextSite, keys: Tensor, values: Tensor) -> _AtSite:
        """Made of ordinary tensors, whatever mode the asking call runs in: others will ask too."""
        import torch

        sides = len(self._sides.texts)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
            places, real, shares = self._layout()
            laid = places.to(keys.device)  # [S, M, E]
            own_keys = keys[:, laid.movedim(-1, 0).flatten()].transpose(-1, -2) * site.scale
            bias = torch.zeros(real.shape).masked_fill(~real, float("-inf")).movedim(-1, 0).flatten(1)
            own_values = values[:, laid.flatten()].unflatten(1, (sides, -1))
            without = torch.tensor(self._sides.without, device=keys.device)
            every = bool(real.all())
            return _AtSite(own_keys, None if every else bias.to(keys.device), own_values, shares.to(keys.device), without)

    def _layout(self) -> tuple[Tensor, Tensor, Tensor]:
        """The places of the tokens of every side's texts, and which of them there are, [S, M, E]; the texts' parts [S * M]."""
        import torch

        starts = list(itertools.accumulate(self._lengths, initial=0))
        most = max(map(len, self._sides.texts))
        filled = [[*side, *[next(iter(side))] * (most - len(side))] for side in self._sides.texts]
        first, length = (
            torch.tensor([[numbers[text] for text in side] for side in filled])[..., None]
            for numbers in (starts, self._lengths)
        )
        spots = torch.arange(int(length.max()))
        shares = [[*side.values(), *[0.0] * (most - len(side))] for side in self._sides.texts]
        return first + spots.minimum(length - 1), spots < length, torch.tensor(shares).flatten()


class ContrastReading:
    """What the image tokens of one call read of some concepts' pairs. Made by `ContrastAttention.read`. Nothing is worked out
    before it is asked for, and nothing twice.
    """

    def __init__(self, call: SiteCall, at: _AtSite) -> None:
        self._call, self._at = call, at
        self._rows, self._heads, self._pixels, _ = call.query.shape
        self._count = len(at.without)

    @cached_property
    def direction(self) -> Tensor:
        """D of each concept; in joint attention times the share t of attention that the prompt's tokens have.

        Shapes:
            returns: [H, P, C, d].
        """
        direction: Tensor = self._flat.unflatten(-1, (self._heads, -1)).movedim(2, 0)
        return direction

    @cached_property
    def component(self) -> Tensor:
        """max(0, <t (A - B), t D> / <t D, t D>) of each image token and concept, all heads taken together, with A what the
        prompt's tokens answer: how far the prompt goes the concept's way, past what ordinary texts do.

        Shapes:
            returns: [P, C].
        """
        said, ordinary = self._along
        component: Tensor = ((said - ordinary) / self._length.clamp_min(1e-12)).clamp_min(0)
        return component

    def components(self) -> Tensor:
        """The same head by head, with its sign and in the mean over the image tokens.

        Shapes:
            returns: [R, H, C].
        """
        beside = self._said[:, None] - self._answers[:, self._at.without]  # [P, C, H * d]
        along = (beside * self._flat).unflatten(-1, (self._heads, -1)).sum(-1)  # [P, C, H]
        length = self._flat.square().unflatten(-1, (self._heads, -1)).sum(-1)
        numerator, denominator = (part.unflatten(0, (self._rows, self._pixels)).mean(1) for part in (along, length))
        components: Tensor = (numerator / denominator.clamp_min(1e-12)).transpose(1, 2)
        return components

    def leaning(self) -> Tensor:
        """How much rather the image tokens attend to the texts with the concept than to those without, whatever the prompt
        says: mean_k (log sum exp of the scores over W_k, less that over O_k). First its mean over the image tokens, head by
        head, then its mean over the tenth of them in which it is highest.

        Shapes:
            returns: [R, 2 * H, C].
        """
        import torch

        _, total, top = self._softmax
        sides = ((total.log() + top)[:, :, 0] * self._at.shares).unflatten(-1, (-1, self._texts)).sum(-1)  # [H, P, S]
        pulled = sides[..., : self._count] - sides[..., self._at.without]
        apart = pulled.unflatten(1, (self._rows, self._pixels))
        most = apart.topk(max(1, round(HIGHEST * self._pixels)), dim=2).values
        return torch.cat([apart.mean(2), most.mean(2)]).transpose(0, 1)

    def mass(self) -> Tensor:
        """The share of the prompt's answer that goes each concept's way, as the masses of an effect: with v = c t D,
        and c of `component`, |v| / (|v| + |t A - v|), all heads taken together: [R, 1, N, C].
        """
        taken = self.component.square() * self._length
        rest = self._said.square().sum(-1, keepdim=True) - 2 * self.component * self._along[0] + taken
        own, beside = (part.clamp_min(1e-24).sqrt() for part in (taken, rest))
        mass: Tensor = (own / (own + beside)).unflatten(0, (self._rows, 1, self._pixels))
        return mass

    def taken(self, strengths: Tensor) -> Tensor:
        """The change of the output that takes the component of every concept back, times its strength. What several concepts
        have in common is taken once.

        Args:
            strengths: Of the call.

        Shapes:
            strengths: [R, C].
            returns: [R, N, H * d].
        """
        rows = strengths.repeat_interleave(self._pixels, 0)  # [P, C]
        amount = self.component * (rows > 0)
        if self._count > 1:
            products = self._flat @ self._flat.transpose(1, 2)
            amount = amount * overlap_factors(amount[..., None] * products * amount[..., None, :])
        change = (-(rows * amount)[:, None] @ self._flat)[:, 0]
        delta: Tensor = change.to(self._call.output.dtype).unflatten(0, (self._rows, self._pixels))
        return delta

    @property
    def _texts(self) -> int:
        """M."""
        return len(self._at.shares) // self._at.values.shape[1]

    @cached_property
    def _softmax(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the scores of every text: exp of each less the largest, their sum, and the largest.

        Shapes:
            returns: [H, P, E, S * M], and two [H, P, 1, S * M].
        """
        flat = self._call.query.transpose(0, 1).flatten(1, 2)
        scores = (flat @ self._at.keys).float().unflatten(-1, (-1, len(self._at.shares)))
        if self._at.bias is not None:
            scores = scores + self._at.bias
        top = scores.amax(-2, keepdim=True)  # sums over a short last axis are slow, so tokens are not the last one
        raw = (scores - top).exp_()
        return raw, raw.sum(-2, keepdim=True), top

    @cached_property
    def _answers(self) -> Tensor:
        """What the texts of every side answer, in the mean and times t: [P, S, H * d]."""
        raw, total, _ = self._softmax
        weights = (raw * (self._at.shares / total)).unflatten(-1, (-1, self._texts))  # [H, P, E, S, M]
        apart = weights.to(self._at.values.dtype).permute(0, 3, 1, 4, 2).flatten(-2)  # [H, S, P, M * E]
        answers = (apart @ self._at.values).float() if self._share is None else (apart @ self._at.values) * self._share
        joined: Tensor = answers.permute(2, 1, 0, 3).flatten(2)
        return joined

    @cached_property
    def _flat(self) -> Tensor:
        """t D: [P, C, H * d]."""
        return self._answers[:, : self._count] - self._answers[:, self._at.without]

    @cached_property
    def _share(self) -> Tensor | None:
        """t: [H, 1, P, 1]. None: 1."""
        share = self._call.from_text[1]
        return None if share is None else share.transpose(0, 1).flatten(1)[:, None, :, None]

    @cached_property
    def _said(self) -> Tensor:
        """t A, what the prompt's tokens answer: [P, H * d]."""
        answer = self._call.from_text[0].transpose(1, 2).flatten(0, 1).float()  # [P, H, d]
        return (answer if self._share is None else answer * self._share[:, 0].transpose(0, 1)).flatten(1)

    @cached_property
    def _along(self) -> tuple[Tensor, Tensor]:
        """<t A, t D> and <t B, t D>: [P, C] each."""
        import torch

        ordinary = self._answers[:, self._count :]
        along = self._flat @ torch.cat([self._said[:, None], ordinary], 1).transpose(1, 2)  # [P, C, 1 + sides without]
        own = 1 + self._at.without - self._count
        return along[..., 0], along.gather(-1, own[None, :, None].expand(len(along), -1, 1))[..., 0]

    @cached_property
    def _length(self) -> Tensor:
        """<t D, t D>, all heads taken together: [P, C]."""
        return self._flat.square().sum(-1)
