"""``nag``: Normalized Attention Guidance (arXiv 2505.21179): away from what attention would answer for the concept's text.

With Z the attention's output, and Z' what it would be with the concept's text in place of the prompt's (in joint attention the
image's own tokens stand beside either text), s the strength (the paper's phi), |.| the sum of absolute values over a token's
vector, all heads together:

    G = Z + s (Z - Z');  G <- G tau |Z| / |G| where |G| > tau |Z|;  Z <- a G + (1 - a) Z

so that no feature is led away too far. Several active concepts of a row are one text: their tokens share one softmax, and s is
the greatest of theirs.

``texts: pairs`` is a variant of ours: Z' is for an ordinary text with the concept in it, and the same text without it takes the
place of Z in the difference. With D what the pairs of `safeguard.sdk.contrast_attention` differ by at that place (in joint
attention times the share that the text has), summed over the active concepts, G = Z - s D. So nothing is guided away from what
the negative text says besides.

The authors' padding of the negative text is left out; only the tokens that are really in it are met. Where the denoiser reads a
pooled text besides, the paper leaves that as it is, and so does this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import ConceptAttention, Edit, Pipeline, Seam, SiteCall, SiteEffect, TextSiteEdit, param_number
from safeguard.sdk.concept_attention import AttentionReading
from safeguard.sdk.contrast_attention import ContrastAttention, pairs_of
from safeguard.sdk.pair_texts import wants_pairs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Limits:
    """How far a feature may be led away."""

    tau: float
    alpha: float

    def effect(self, call: SiteCall, away: Tensor, mass: Tensor) -> SiteEffect:
        """With ``away`` [R, N, H * d], G - Z before G is made shorter."""
        positive = call.output.float()
        size, reached = (vector.abs().sum(-1, keepdim=True) for vector in (positive, positive + away))
        limit = (self.tau * size / reached.clamp_min(1e-12)).clamp(max=1)
        changed = limit * away - (1 - limit) * positive  # G - Z, so that a strength of 0 changes nothing to the bit
        return SiteEffect((self.alpha * changed).to(call.output.dtype), mass)


class _AwayFromPairs(TextSiteEdit):
    def __init__(self, texts: ContrastAttention, limits: _Limits) -> None:
        self.concepts = texts.concepts
        self._texts, self._limits = texts, limits

    def select(self, columns: Sequence[int]) -> _AwayFromPairs:
        return _AwayFromPairs(self._texts.select(columns), self._limits)

    def __call__(self, call: SiteCall) -> SiteEffect:
        reading = self._texts.read(call)
        active = (call.strengths != 0).float().repeat_interleave(call.query.shape[2], 0)  # [P, C]
        heads = (active[None, :, None] @ reading.direction)[:, :, 0].unflatten(1, (len(call.strengths), -1)).transpose(0, 1)
        away = -call.strengths.amax(1)[:, None, None] * heads.transpose(1, 2).flatten(2)
        return self._limits.effect(call, away, reading.mass())


class _Away(TextSiteEdit):
    def __init__(self, tokens: ConceptAttention, limits: _Limits) -> None:
        self.concepts = tokens.concepts
        self._tokens, self._limits = tokens, limits

    def select(self, columns: Sequence[int]) -> _Away:
        return _Away(self._tokens.select(columns), self._limits)

    def __call__(self, call: SiteCall) -> SiteEffect:
        reading = self._tokens.read(call)
        away = call.strengths.amax(1)[:, None, None] * (call.output.float() - self._negative(call, reading))
        return self._limits.effect(call, away, reading.mass(call.log_mass, words=True))

    @staticmethod
    def _negative(call: SiteCall, reading: AttentionReading) -> Tensor:
        """Z' with the tokens of a row's active concepts in the place of its prompt: [R, N, H * d], float32."""
        odds = reading.odds(call.log_mass) * (call.strengths != 0)[:, None, None, :]
        weight = odds.sum(-1, keepdim=True)  # of their attention, where all that the image meets now is 1
        if not call.joint:
            return -reading.taken(odds / weight.clamp_min(1e-12)).float()
        answer, share = call.from_text
        assert share is not None
        weight = weight + (1 - share)[..., None]
        of_image = (call.heads_of_output - answer * share[..., None]) / weight
        return call.merge(of_image).float() - reading.taken(odds / weight).float()


class NAG:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "nag"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 2.0, "medium": 4.0, "strong": 8.0, "max": 12.0}
    params: ClassVar[Mapping[str, Any]] = {"tau": 2.5, "alpha": 0.5, "texts": "phrases"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        tau = param_number(concepts[0], self, params, "tau", least=1)
        alpha = param_number(concepts[0], self, params, "alpha", least=0, most=1)
        limits = _Limits(tau, alpha)
        if wants_pairs(concepts[0], self, params):
            texts = ContrastAttention.of(concepts, [pairs_of(concept) for concept in concepts], pipeline)
            return [_AwayFromPairs(texts, limits)]
        return [_Away(ConceptAttention.of(concepts, pipeline, plain=True, framed=True), limits)]
