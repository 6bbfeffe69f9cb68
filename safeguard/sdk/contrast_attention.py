"""What texts with a concept answer the image that the same texts without it do not: a concept's direction in context.

A text encoder mixes. In "a dog covered in blood" the state of every token carries the blood, and the state of "blood" alone
stands in no prompt. So the direction is taken between pairs of texts that differ in the concept only. With W_k and O_k what an
image token would be answered by text k of K pairs with and without it, D = mean_k (W_k - O_k) is what the concept adds, and
B = mean_k O_k what ordinary texts say at that place.

Shapes, besides those of `safeguard.sdk.seams`: P = R * N, image tokens of all rows; E tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True, eq=False)
class _AtSite:
    """One site's keys and values of all texts, each text filled up to E tokens."""

    keys: Tensor  # [H, d, n * E], scaled
    bias: Tensor  # [n, E], of the scores: -inf where nothing stands
    values: Tensor  # [H, n, E, d]
    shares: Tensor  # [2, C, n]: of each concept, the part of every text in its mean with the concept, and in that without


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
        import torch
        from torch.utils.weak import WeakTensorKeyDictionary

        self.concepts = tuple(concepts)
        self._pairs = [tuple(own) for own in pairs]
        self._lengths, self._keys = tuple(lengths), keys
        self._texts = sorted({place for own in self._pairs for pair in own for place in pair})
        self._shares = torch.zeros(2, len(self.concepts), len(self._texts))  # as at every site
        for column, own in enumerate(self._pairs):
            for pair in own:
                for side, text in enumerate(pair):
                    self._shares[side, column, self._texts.index(text)] += 1 / len(own)
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
        texts = list(dict.fromkeys(text for own in pairs for pair in own for text in pair))
        encoded: Sequence[EncodedText] = pipeline.encode(texts)
        places = [[(texts.index(with_it), texts.index(without)) for with_it, without in own] for own in pairs]
        lengths = [len(text.states) for text in encoded]
        return cls([concept.id for concept in concepts], places, lengths, pipeline.keys(encoded))

    def select(self, columns: Sequence[int]) -> ContrastAttention:
        """The same for some of the concepts.

        Args:
            columns: Which of them, in which order.
        """

        def narrowed() -> ContrastAttention:
            names, pairs = [self.concepts[c] for c in columns], [self._pairs[c] for c in columns]
            return ContrastAttention(names, pairs, self._lengths, self._keys)

        return kept_selection(self._narrowed, columns, narrowed)

    def read(self, call: SiteCall) -> ContrastReading:
        """What the image tokens of a call read of the concepts.

        Args:
            call: The call of a text-site edit.
        """
        return ContrastReading(call, self._at(call.site))

    def _at(self, site: TextSite) -> _AtSite:
        keys, values = self._keys.at(site)
        known: _AtSite | None = self._kept.get(keys)
        if known is None:
            known = self._kept[keys] = self._make(site, keys, values)
        return known

    def _make(self, site: TextSite, keys: Tensor, values: Tensor) -> _AtSite:
        """Made of ordinary tensors, whatever mode the asking call runs in: others will ask too."""
        import torch

        starts = [sum(self._lengths[:text]) for text in self._texts]
        width = max(self._lengths[text] for text in self._texts)
        rows = [
            [start + min(spot, self._lengths[text] - 1) for spot in range(width)]
            for start, text in zip(starts, self._texts, strict=True)
        ]
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
            places = torch.tensor(rows, device=keys.device)
            real = torch.tensor([[spot < self._lengths[text] for spot in range(width)] for text in self._texts])
            bias = torch.zeros(real.shape).masked_fill(~real, float("-inf")).to(keys.device)
            laid = keys[:, places.flatten()].transpose(-1, -2) * site.scale
            own_values = values[:, places.flatten()].unflatten(1, places.shape)
            return _AtSite(laid, bias, own_values, self._shares.to(keys.device, copy=True))


class ContrastReading:
    """What the image tokens of one call read of some concepts' pairs. Made by `ContrastAttention.read`.

    Attributes:
        direction: D of each concept; in joint attention times the share t of attention that the prompt's tokens have.

    Shapes:
        direction: [H, P, C, d].
    """

    def __init__(self, call: SiteCall, at: _AtSite) -> None:
        import torch

        self._call, self._at = call, at
        self._rows, _, self._pixels, _ = call.query.shape
        answers = self._scores().softmax(-1).to(at.values.dtype).transpose(1, 2) @ at.values  # [H, n, P, d]
        self._with, self._without = torch.einsum("scn,hnpd->shpcd", at.shares, answers.float())
        share = call.from_text[1]
        self._share = 1.0 if share is None else share.transpose(0, 1).flatten(1)[..., None, None]  # [H, P, 1, 1]
        self.direction: Tensor = (self._with - self._without) * self._share

    @cached_property
    def component(self) -> Tensor:
        """max(0, <t (A - B), t D> / <t D, t D>) of each image token and concept, all heads taken together, with A what the
        prompt's tokens answer: how far the prompt goes the concept's way, past what ordinary texts do.

        Shapes:
            returns: [P, C].
        """
        numerator = ((self._answer[:, :, None] - self._without) * self._share * self.direction).sum((0, -1))
        component: Tensor = (numerator / self._length.clamp_min(1e-12)).clamp_min(0)
        return component

    def components(self) -> Tensor:
        """The same head by head, with its sign and in the mean over the image tokens.

        Shapes:
            returns: [R, H, C].
        """
        along = ((self._answer[:, :, None] - self._without) * self._share * self.direction).sum(-1)  # [H, P, C]
        both = (along, self.direction.square().sum(-1))
        numerator, denominator = (part.unflatten(1, (self._rows, self._pixels)).mean(2) for part in both)
        components: Tensor = (numerator / denominator.clamp_min(1e-12)).transpose(0, 1)
        return components

    def leaning(self) -> Tensor:
        """How much rather the image tokens attend to the texts with the concept than to those without, whatever the prompt
        says: mean_k (log sum exp of the scores over W_k, less that over O_k). First its mean over the image tokens, head by
        head, then its mean over the tenth of them in which it is highest.

        Shapes:
            returns: [R, 2 * H, C].
        """
        import torch

        with_it, without = self._at.shares
        pulled = torch.einsum("cn,hpn->hpc", with_it - without, self._scores().logsumexp(-1))
        apart = pulled.unflatten(1, (self._rows, self._pixels))
        most = apart.topk(max(1, round(HIGHEST * self._pixels)), dim=2).values
        return torch.cat([apart.mean(2), most.mean(2)]).transpose(0, 1)

    @cached_property
    def _answer(self) -> Tensor:
        """A, what the prompt's tokens answer: [H, P, d]."""
        return self._call.from_text[0].transpose(0, 1).flatten(1, 2).float()

    @cached_property
    def _length(self) -> Tensor:
        """<t D, t D>, all heads taken together: [P, C]."""
        return self.direction.square().sum((0, -1))

    def _scores(self) -> Tensor:
        """Of every image token and text, token by token: [H, P, n, E]."""
        flat = self._call.query.transpose(0, 1).flatten(1, 2)
        scores: Tensor = (flat @ self._at.keys).float().unflatten(-1, self._at.bias.shape) + self._at.bias
        return scores

    def mass(self) -> Tensor:
        """The share of the prompt's answer that goes each concept's way, as the masses of an effect: with v = c t D,
        and c of `component`, |v| / (|v| + |t A - v|), all heads taken together: [R, 1, N, C].
        """
        import torch

        said = self._answer if isinstance(self._share, float) else self._answer * self._share[..., 0]  # t A: [H, P, d]
        along = torch.einsum("hpd,hpcd->pc", said, self.direction)
        taken = self.component.square() * self._length
        rest = said.square().sum((0, -1))[:, None] - 2 * self.component * along + taken
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
        if amount.shape[-1] > 1:
            alone = (self.direction * amount[..., None]).transpose(0, 1).transpose(1, 2).flatten(2)  # [P, C, H * d]
            amount = amount * overlap_factors(alone @ alone.transpose(1, 2))
        heads = -((rows * amount)[None, :, None, :] @ self.direction)[:, :, 0]  # [H, P, d]
        apart = heads.to(self._call.output.dtype).unflatten(1, (self._rows, self._pixels)).transpose(0, 1)
        return self._call.merge(apart)
