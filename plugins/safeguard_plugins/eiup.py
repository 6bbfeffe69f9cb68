"""``eiup``: training-free erasure at every place where image tokens read text (EIUP, arXiv 2408.01014).

An erasure prompt names the concept. At each text site its keys show *where* in the picture the concept grows, whatever the
user's prompt says, and its values show *what* grows there; the feature is put back with its sign turned. With O the output of
the attention, A_E the attention over the concept's words alone, A_Z the null answer (the token that ends the empty prompt) and
A_0 the attention over the whole empty prompt, there are five forms:

``difference`` (default): ``projected`` with the concept in context. D = t mean_k (W_k - O_k), what pairs of texts with and
without the concept answer ("a house with blood", "a house"), and in the place of A_0 their mean without it. An encoder that
mixes puts the concept into the state of every word, where the erasure prompt alone does not meet it. The concept's phrases make
the pairs, unless it has ``contrasts`` of its own (`safeguard.sdk.contrast_attention`).

``general``: ``projected`` where an attention reads the text alone. In joint attention O <- O - 3 s min(m, c) D, with
m the share of ``gated`` and c the component of ``projected``: no more than the concept wins of the attention, and no more than
the text has brought of it. A benign pixel has either in some place, and both in hardly any.

``projected``: O <- O - s max(0, t <A - A_0, D> / <D, D>) D with D = A_E - A_Z, all heads taken together. A is what the
prompt's tokens alone answer, and t the share of attention that they have: O and 1 at a cross-attention; in joint attention O
holds t A beside what the image brought. How far that goes the concept's way, and no more, is taken back. A benign pixel pays
for what its text has along D.

``gated``: O <- O - s m D. m is the share of attention that the concept wins in one softmax together with every key that the
image tokens meet: the prompt's, and in joint attention the image's own.

``published``: O <- O - s M_E V_E, with M_E the concept's columns of the erasure prompt's own softmax. It always sums to one
over the erasure prompt, so that a benign pixel pays as well.

Where the denoiser reads the text as one pooled vector p besides (SDXL, Stable Diffusion 3, Flux), that carries what lies over a
whole image, styles above all. There p <- p - 2 s max(0, <p - mu, d> / <d, d>) d, with d the mean difference that the concept's
phrase makes to some ordinary texts, and mu the mean of these; a concept with ``contrasts`` or an ``anchor`` has its own pairs.

Concepts that are active together share directions: painters are painters, and blood stands where weapons do. What they share is
taken once, not once for each (`safeguard.sdk.overlap`); ``published`` is the plain sum.

The authors' released code also re-weights the prompt's own attention (the prompt's padding makes room for the concept's
columns) and needs a second, unprotected picture in the batch; that coupling is not offered here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from safeguard.policy import Concept
from safeguard.sdk import (
    ConceptAttention,
    Edit,
    Pipeline,
    Seam,
    SiteCall,
    SiteEffect,
    StatesCall,
    TextSiteEdit,
    TextStatesEdit,
    param_choice,
)
from safeguard.sdk.contrast_attention import ContrastAttention, pairs_of
from safeguard.sdk.pooled_directions import PooledDirections

if TYPE_CHECKING:
    from torch import Tensor

FORMS: Final = ("difference", "general", "projected", "gated", "published")
JOINT: Final = 3.0  # how far strength 1 goes in joint attention, and in a pooled text; chosen on the demo's dev prompts
POOLED: Final = 2.0
BEYOND: Final = 0.6  # how far a pooled text may be pushed past the ordinary ones, in lengths of the concept's direction


class _Term(TextSiteEdit):
    """The term of one form for several concepts, in one pass."""

    def __init__(self, form: str, tokens: ConceptAttention) -> None:
        self.form = form
        self.concepts = tokens.concepts
        self._tokens = tokens

    def select(self, columns: Sequence[int]) -> _Term:
        return _Term(self.form, self._tokens.select(columns))

    def __call__(self, call: SiteCall) -> SiteEffect:
        reading = self._tokens.read(call)
        joint = self.form == "general" and call.joint
        rival = call.log_mass if joint or self.form == "gated" else call.prompt_log_mass
        mass = reading.mass(rival, words=self.form == "published")
        strengths = call.strengths[:, None, None, :]
        if self.form == "published":
            return SiteEffect(reading.taken(strengths), mass)
        amount = mass if self.form == "gated" else reading.component()
        if joint:
            amount = JOINT * mass.minimum(amount)
        return SiteEffect(reading.taken(strengths * reading.together(amount * (strengths > 0))), mass)


class _ContrastTerm(TextSiteEdit):
    """The term of ``difference`` for several concepts, in one pass."""

    def __init__(self, texts: ContrastAttention) -> None:
        self.concepts, self.keys = texts.concepts, (texts.keys,)
        self._texts = texts

    def select(self, columns: Sequence[int]) -> _ContrastTerm:
        return _ContrastTerm(self._texts.select(columns))

    def __call__(self, call: SiteCall) -> SiteEffect:
        reading = self._texts.read(call)
        return SiteEffect(reading.taken(call.strengths), reading.mass())


class _PooledTerm(TextStatesEdit):
    """Takes each concept's direction out of the pooled vectors as far as it is in them, and up to `BEYOND` further."""

    def __init__(self, concepts: Sequence[str], directions: PooledDirections) -> None:
        self.concepts = tuple(concepts)
        self._directions = directions

    def __call__(self, call: StatesCall) -> Tensor | tuple[Tensor, Tensor | None]:
        if call.pooled is None:
            return call.states
        pooled = call.pooled.float()
        parts = self._directions.components(pooled).clamp_min(0) * (call.strengths > 0)
        amount = (POOLED * call.strengths * parts).minimum(parts + BEYOND) * self._directions.together(parts)
        return call.states, (pooled - amount @ self._directions.directions.to(pooled)).to(call.pooled.dtype)


class EIUP:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "eiup"
    version: ClassVar[str] = "1.5"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE, Seam.TEXT_STATES})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5, "auto": 3.0}
    params: ClassVar[Mapping[str, Any]] = {"form": "difference"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        form = param_choice(concepts[0], self, params, "form", FORMS)
        edits: list[Edit] = []
        if form == "difference":
            pairs = [pairs_of(concept) for concept in concepts]
            edits.append(_ContrastTerm(ContrastAttention.of(concepts, pairs, pipeline)))
        else:
            published = form == "published"
            edits.append(_Term(form, ConceptAttention.of(concepts, pipeline, whole=published, plain=published)))
        directions = PooledDirections.of(concepts, pipeline)
        if directions is not None:
            edits.append(_PooledTerm(edits[0].concepts, directions))
        return edits
