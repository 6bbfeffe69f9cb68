"""``vsf``: the erasure prompt's words stand among the keys that image tokens meet, with values whose sign is turned (Value Sign
Flip, arXiv 2508.10931).

There is one softmax over every key and the words of the active concepts, so that a concept takes no more than it wins of the
attention. With O the attention's output, m the share that a concept's words would win beside every key, A_E what they answer,
and s the strength (the paper's lambda): o = m / (1 - m), p = 1 / (1 + sum o), O <- p O - s p sum o A_E, sums over the concepts
that are active in a row.

``texts: pairs`` is a variant of ours, with the words in context: those that name the concept, as they are encoded in texts
with it ("a person with blood"). Their odds are divided by how many more texts there are than phrases.

The paper appends a whole negative prompt; here only its words are, not the tokens that open and close every text. Prompt
tokens never meet the flipped ones, as in the paper, and there is no attention bias on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import ConceptAttention, Edit, Pipeline, Seam, SiteCall, SiteEffect, TextSiteEdit
from safeguard.sdk.pair_texts import encoded_pairs, wants_pairs


class _Flip(TextSiteEdit):
    """The flipped words of several concepts, in one softmax."""

    def __init__(self, tokens: ConceptAttention, times: Sequence[float]) -> None:
        self.concepts = tokens.concepts
        self._tokens, self._times = tokens, times  # how often each concept's words stand there

    def select(self, columns: Sequence[int]) -> _Flip:
        return _Flip(self._tokens.select(columns), [self._times[column] for column in columns])

    def __call__(self, call: SiteCall) -> SiteEffect:
        reading = self._tokens.read(call)
        active = (call.strengths != 0)[:, None, None, :]
        odds = reading.odds(call.log_mass) * active / call.strengths.new_tensor(self._times)  # [R, H, N, C]
        left = 1 / (1 + odds.sum(-1))  # of the attention, to every other key: [R, H, N]
        mass = left[..., None] * odds
        lost = call.merge(call.heads_of_output * (left - 1)[..., None].to(call.output.dtype))
        return SiteEffect(lost + reading.taken(call.strengths[:, None, None, :] * mass), mass)


class VSF:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "vsf"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 1.0, "medium": 2.0, "strong": 3.5, "max": 5.0}
    params: ClassVar[Mapping[str, Any]] = {"texts": "phrases"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        if not wants_pairs(concepts[0], self, params):
            return [_Flip(ConceptAttention.of(concepts, pipeline, plain=True), [1.0] * len(concepts))]
        texts = [[pair.named for pair in encoded_pairs(concept, pipeline)] for concept in concepts]
        times = [len(own) / len(concept.phrases) for own, concept in zip(texts, concepts, strict=True)]
        return [_Flip(ConceptAttention.of(concepts, pipeline, plain=True, texts=texts), times)]
