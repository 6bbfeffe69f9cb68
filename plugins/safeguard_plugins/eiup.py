"""``eiup``: training-free erasure at every place where image tokens read text (EIUP, arXiv 2408.01014).

An erasure prompt names the concept. At each text site its keys show *where* in the picture the concept grows, whatever the
user's prompt says, and its values show *what* grows there; the feature is put back with its sign turned. With O the output of
the attention, A_E the attention over the concept's words alone, A_Z the null answer (the token that ends the empty prompt) and
A_0 the attention over the whole empty prompt, there are three forms:

``projected`` (default): O <- O - s max(0, <O - A_0, D> / <D, D>) D with D = A_E - A_Z, all heads taken together. How far the
output already goes the concept's way, and no more, is taken back. A benign pixel pays for what its output happens to have along D.

``gated``: O <- O - s m D. m is the share of attention that the concept wins in one softmax together with the prompt's tokens.

``published``: O <- O - s M_E V_E, with M_E the concept's columns of the erasure prompt's own softmax. It always sums to one
over the erasure prompt, so that a benign pixel pays as well.

The authors' released code also re-weights the prompt's own attention (the prompt's padding makes room for the concept's
columns) and needs a second, unprotected picture in the batch; that coupling is not offered here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from safeguard.erasing import PROTOCOL, Edit, EncodedText, Pipeline, Seam, SiteCall, SiteEffect, TextSiteEdit, TokenKeys
from safeguard.errors import CapabilityError
from safeguard.policy import Concept

if TYPE_CHECKING:
    from torch import Tensor

FORMS = ("projected", "gated", "published")


class _Tokens:
    """The tokens of some concepts' erasure prompts, laid out as [C, E] with padding, and their keys and values."""

    def __init__(self, keys: TokenKeys, places: Tensor, own: Tensor) -> None:
        self.keys = keys
        self.places = places  # [C, E] into the tokens of all concepts
        self.own = own  # [C, E], 1 at the words, 0 at opening and closing tokens, -1 at padding

    def select(self, columns: Sequence[int]) -> _Tokens:
        return _Tokens(self.keys, self.places[list(columns)], self.own[list(columns)])


class _Term(TextSiteEdit):
    """The term of one form for several concepts, in one pass. ``empty`` [opening, closing] is the empty prompt."""

    def __init__(self, form: str, concepts: Sequence[str], tokens: _Tokens, empty: TokenKeys) -> None:
        self.form = form
        self.concepts = tuple(concepts)
        self._tokens = tokens
        self._empty = empty

    def select(self, columns: Sequence[int]) -> _Term:
        return _Term(self.form, [self.concepts[column] for column in columns], self._tokens.select(columns), self._empty)

    def __call__(self, call: SiteCall) -> SiteEffect:
        keys, values = self._tokens.keys.at(call.site)
        shape = self._tokens.places.shape
        flat = self._tokens.places.flatten().to(keys.device)
        own = self._tokens.own.to(keys.device)
        keys, values = keys[:, flat], values[:, flat]  # [H, C * E, d]
        scores = call.scores(keys).unflatten(-1, shape)  # [R, H, N, C, E]
        words = scores.masked_fill(own < 1, float("-inf"))
        log_mass = words.logsumexp(-1)  # [R, H, N, C]
        mass = (log_mass - call.prompt_log_mass[..., None]).sigmoid()
        attention = (words - log_mass[..., None]).exp()  # of A_E
        strengths = call.strengths[:, None, None, :]  # [R, 1, 1, C]
        if self.form == "published":
            whole = scores.masked_fill(own < 0, float("-inf")).logsumexp(-1)
            weights = (words - whole[..., None]).exp() * strengths[..., None]
        else:
            empty_keys, empty_values = self._empty.at(call.site)
            values = values - empty_values[:, -1:]  # what is left of a value beside the null answer, so that D = A_E V
            amount = mass if self.form == "gated" else self._component(call, attention, values, empty_keys, empty_values)
            weights = attention * (amount * strengths)[..., None]
        heads = weights.flatten(-2).to(values.dtype) @ values
        return SiteEffect(-call.merge(heads), mass)

    def _component(self, call: SiteCall, attention: Tensor, values: Tensor, empty_keys: Tensor, empty_values: Tensor) -> Tensor:
        """max(0, <O - A_0, D> / <D, D>) of each image token and concept, over all heads: [R, 1, N, C].

        D is never formed: with D = a V, the products are a (V O) and a (V V^T) a, small in the number of words.
        """
        shape = attention.shape[-2:]
        heads = call.output.unflatten(-1, (call.site.heads, call.site.head_dim)).transpose(1, 2)  # [R, H, N, d]
        null = call.scores(empty_keys).softmax(-1).to(values.dtype) @ empty_values
        along = ((heads - null) @ values.transpose(-1, -2)).float().unflatten(-1, shape)  # [R, H, N, C, E]
        parted = values.float().unflatten(1, shape)  # [H, C, E, d]
        gram = parted @ parted.transpose(-1, -2)  # [H, C, E, E]
        numerator = (attention * along).sum((1, -1))  # [R, N, C]
        spread = (attention.movedim(-2, 2) @ gram[None]).movedim(2, -2)  # a (V V^T)
        denominator = (spread * attention).sum((1, -1)).clamp_min(1e-12)
        component: Tensor = (numerator / denominator).clamp_min(0).unsqueeze(1)
        return component


class EIUP:
    """The eraser; see the module."""

    protocol: ClassVar[int] = PROTOCOL
    name: ClassVar[str] = "eiup"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5}
    params: ClassVar[Mapping[str, Any]] = {"form": "projected"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        if params["form"] not in FORMS:
            raise CapabilityError(
                f"concept {concepts[0].id!r}: params.form must be one of {', '.join(FORMS)}",
                eraser=self.name,
                missing="form",
            )
        phrases = pipeline.encode([phrase for concept in concepts for phrase in concept.phrases])
        empty = pipeline.encode([""])[0]
        tokens = _lay_out(concepts, phrases, pipeline)
        return [_Term(params["form"], [concept.id for concept in concepts], tokens, pipeline.keys(empty.states))]


def _lay_out(concepts: Sequence[Concept], encoded: Sequence[EncodedText], pipeline: Pipeline) -> _Tokens:
    import torch

    states = torch.cat([text.states for text in encoded])
    starts, rows, start = iter(encoded), [], 0
    for concept in concepts:
        row: list[tuple[int, int]] = []
        for text in (next(starts) for _ in concept.phrases):
            inside = range(len(text.states))[text.content]
            row += [(start + place, int(place in inside)) for place in range(len(text.states))]
            start += len(text.states)
        rows.append(row)
    width = max(map(len, rows))
    places = torch.tensor([[place for place, _ in row] + [0] * (width - len(row)) for row in rows])
    own = torch.tensor([[role for _, role in row] + [-1] * (width - len(row)) for row in rows])
    return _Tokens(pipeline.keys(states), places, own)
