"""``safree``: the words of a prompt that lead to the concept are moved out of its subspace (SAFREE, arXiv 2410.12761).

With E_c the closing tokens of the concepts' phrases (the pooled output of CLIP), p_i that of the prompt with its i-th word
blanked, and P_c, P_in the projectors on the spans of both (section 3 of the paper):

    d_i = |(1 - P_c) p_i|;  word i is a trigger where d_i >= (1 + alpha) mean_{j != i} d_j
    e_i <- e_i - s (e_i - (1 - P_c) P_in e_i) for the states e_i of triggers; s = 1 is the paper's

``least`` words are moved in any case, those of the largest d_i: where none passes the threshold, the authors' code moves
nothing and says nothing; 0 is theirs. The prompt's other words, the tokens that open and close it and its padding stay as they
are. Where the denoiser reads the text as one vector besides, that is tested and moved the same way, in a space of its own.
``form`` says when:

``filter`` (default): at every step, which is the authors' code with no option set.

``validated``: with the self-validating filter. beta = 1 - mean_i cos(e_i moved, e_i) over the prompt's real tokens, and
t' = round(up_to sigmoid(2 slope (10 beta - centre))) steps of 50 after the first are filtered, and none after them.

``released``: what the authors' runner does: ``validated``, and all phrases in the negative prompt. That is most of its effect.

The paper's third part, latent re-attention, replaces frequencies of the skip features by those of a third, unprotected row of
the UNet: no seam shows one row what another one is. In the authors' runner it is registered without its argument and does
nothing, so ``released`` is complete without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, Seam, StatesCall, TextStatesEdit, param_choice, param_number
from safeguard.sdk.negative_text import NegativeText
from safeguard.sdk.pipeline import TokenEncoder

if TYPE_CHECKING:
    from torch import Tensor

FORMS: Final = ("filter", "validated", "released")
BLANK: Final = 0  # the number that stands in a word's place, as the authors have it
STEPS: Final = 50  # that the authors' self-validating filter counts by
STRANGE: Final = 0.05  # relative difference from which on a row's states are not those of its text


def basis_of(vectors: Tensor) -> Tensor:
    """An orthonormal basis [r, D] of the span of vectors [n, D], float32; r may be 0."""
    import torch

    _, sizes, basis = torch.linalg.svd(vectors.float(), full_matrices=False)
    large = sizes > 1e-5 * sizes[:1].clamp_min(1e-12)
    directions: Tensor = basis[large]
    return directions


def within(vectors: Tensor, basis: Tensor) -> Tensor:
    """The part of vectors [..., D] that lies in the span of a basis [r, D]: P v."""
    return (vectors @ basis.T) @ basis


def triggers(without: Tensor, toxic: Tensor, alpha: float, least: int) -> list[int]:
    """Which words lead to the concept: those without which the text [n, D] stands further from it than without the others.

    At least ``least`` of them, the furthest. A word that stands alone is one: there is nothing to hold it against.
    """
    far = (without - within(without, toxic)).norm(dim=-1)
    if len(far) < 2:
        return list(range(len(far)))
    others = (far.sum() - far) / (len(far) - 1)
    leading = [place for place, leads in enumerate((far >= (1 + alpha) * others).tolist()) if leads]
    return leading if len(leading) >= least else sorted(far.topk(min(least, len(far))).indices.tolist())


@dataclass(frozen=True, slots=True)
class SafreeParams:
    """The numbers of the method; see the module."""

    alpha: float
    least: int
    up_to: float
    slope: float
    centre: float


@dataclass(frozen=True, slots=True, eq=False)
class _Toxic:
    """What the phrases of the concepts are: the closing tokens of each encoder, [M, D], and the pooled vectors, [M, P]; and to
    which concept each belongs.
    """

    closing: Sequence[Tensor]
    pooled: Tensor | None
    owners: Sequence[int]

    @classmethod
    def of(cls, concepts: Sequence[Concept], pipeline: Pipeline) -> _Toxic:
        import torch

        phrases = [phrase for concept in concepts for phrase in concept.phrases]
        texts = pipeline.encode(phrases)
        encoders = range(min(len(text.closing) for text in texts))
        closing = [torch.stack([text.states[text.closing[place]] for text in texts]).float() for place in encoders]
        owners = [column for column, concept in enumerate(concepts) for _ in concept.phrases]
        return cls(closing, pipeline.pooled(phrases), owners)

    def bases(self, active: Sequence[bool], like: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Bases of the subspaces of the active concepts, for each encoder, and for the pooled text."""
        rows = [place for place, owner in enumerate(self.owners) if active[owner]]
        pooled = None if self.pooled is None else basis_of(self.pooled[rows].to(like.device))
        return [basis_of(vectors[rows].to(like.device)) for vectors in self.closing], pooled


@dataclass(frozen=True, slots=True, eq=False)
class _Moved:
    """A row's states [L, D] and pooled vector [P] at strength 1, and how many steps after the first they hold: -1, not even
    in that, where nothing was moved.
    """

    states: Tensor
    pooled: Tensor | None
    steps: float


class _Filter(TextStatesEdit):
    def __init__(self, concepts: Sequence[Concept], toxic: _Toxic, settings: SafreeParams, *, validated: bool) -> None:
        self.concepts = tuple(concept.id for concept in concepts)
        self._toxic, self._settings, self._validated = toxic, settings, validated

    def __call__(self, call: StatesCall) -> Tensor | tuple[Tensor, Tensor | None]:
        """Each row's states, moved by the strongest of its active concepts; as given where no step is left to filter."""
        import torch

        states, pooled, changed = [], [], False
        for row, active in enumerate((call.strengths > 0).tolist()):
            memory, key = call.memory.of_row(row), f"moved {active}"  # concepts come and go with their steps
            if key not in memory:
                memory[key] = call.progress, self._moved(call, row)
            first, moved = memory[key]
            passed = STEPS * (call.progress - first)
            share = float(call.strengths[row].max()) if passed <= moved.steps + 1e-6 else 0.0
            changed = changed or share > 0
            states.append(_towards(call.states[row], moved.states, share))
            if call.pooled is not None:
                pooled.append(_towards(call.pooled[row], moved.pooled, share))
        if not changed:
            return call.states
        return torch.stack(states), torch.stack(pooled) if pooled else None

    def _moved(self, call: StatesCall, row: int) -> _Moved:
        text, row_states = call.texts[row], call.states[row].float()
        bases, pooled_basis = self._toxic.bases((call.strengths[row] > 0).tolist(), row_states)
        pooled = None if call.pooled is None else call.pooled[row].float()
        known = None if text is None else _occluded(call, text)
        if known is None or len(known.segments) != len(bases) or not _is_of(row_states, known.states):
            for basis in bases:  # nothing is known of its words, so all of it leaves the subspace, at every step
                row_states = row_states - within(row_states, basis)
            left = None if pooled is None or pooled_basis is None else pooled - within(pooled, pooled_basis)
            return _Moved(row_states, left, math.inf)
        chosen = self._settings
        states, real, any_moved = row_states.clone(), list[int](), False
        for segment, basis in zip(known.segments, bases, strict=True):
            without = segment.without.to(row_states)
            moved = [segment.words[word] for word in triggers(without, basis, chosen.alpha, chosen.least)]
            states[moved] = _out(row_states[moved], without, basis)
            real += segment.places
            any_moved = any_moved or bool(moved)
        if pooled is not None and pooled_basis is not None and known.pooled is not None:
            without = known.pooled.to(pooled)
            if triggers(without, pooled_basis, chosen.alpha, chosen.least):
                pooled, any_moved = _out(pooled, without, pooled_basis), True
        steps = self._steps(row_states[real], states[real]) if self._validated else math.inf
        return _Moved(states, pooled, steps if any_moved else -1.0)

    def _steps(self, before: Tensor, after: Tensor) -> float:
        """t' of the self-validating filter, for the real tokens of a prompt, [n, D]."""
        import torch

        beta = 1 - float(torch.cosine_similarity(after, before, dim=-1).mean())
        chosen = self._settings
        return round(chosen.up_to / (1 + math.exp(-2 * chosen.slope * (10 * beta - chosen.centre))))


@dataclass(frozen=True, slots=True, eq=False)
class _Occlusion:
    """A text, and what it is without each of its words in turn: ``states`` [L, D] of the whole text, its ``segments``, one an
    encoder, and ``pooled`` [n, P] with each word left out, where the denoiser reads that too.
    """

    states: Tensor
    segments: Sequence[_Segment]
    pooled: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Segment:
    """The tokens of one encoder: their places, at which of these words stand, and the state of the token that closes the text
    without each of these words in turn, [n, D].
    """

    places: Sequence[int]
    words: Sequence[int]
    without: Tensor


def _occluded(call: StatesCall, text: str) -> _Occlusion:
    """A text without each of its words: the number `BLANK` stands in the word's place. Worked out once a request."""
    key = f"occluded {text}"
    if key not in call.memory.shared:
        call.memory.shared[key] = _occlusion(call.tokens, text)
    found: _Occlusion = call.memory.shared[key]
    return found


def _occlusion(tokens: TokenEncoder, text: str) -> _Occlusion:
    import torch

    known = tokens.read(text)
    count = max(map(len, known.words), default=0)
    blanked = [
        [_blanked(numbers, words[turn : turn + 1]) for numbers, words in zip(known.numbers, known.words, strict=True)]
        for turn in range(count)
    ]
    variants = tokens.encode(known, blanked)
    segments = []
    for span in known.spans:
        without = [variant.states[span.places[-1]] for variant in variants[: len(span.words)]]
        empty = known.states[span.places[-1]][None][:0]
        segments.append(_Segment(span.places, span.words, torch.stack(without) if without else empty))
    pooled = [variant.pooled for variant in variants if variant.pooled is not None]
    return _Occlusion(known.states, segments, torch.stack(pooled) if pooled else None)


def _blanked(numbers: Sequence[int], places: Sequence[int]) -> list[int]:
    return [BLANK if place in places else number for place, number in enumerate(numbers)]


def _out(vectors: Tensor, without: Tensor, toxic: Tensor) -> Tensor:
    """(1 - P_c) P_in v."""
    held = within(vectors, basis_of(without))
    return held - within(held, toxic)


def _is_of(row: Tensor, states: Tensor) -> bool:
    """Whether a row's states are those of its text: a second prompt or another eraser may have made them others."""
    length = min(len(row), len(states))
    row_states = states[:length].to(row)
    return bool((row[:length] - row_states).norm() <= STRANGE * row_states.norm())


def _towards(row: Tensor, moved: Tensor | None, share: float) -> Tensor:
    return row if moved is None or share == 0.0 else (row.float() + share * (moved - row.float())).to(row.dtype)


class SAFREE:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "safree"
    version: ClassVar[str] = "1.1"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_STATES})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5}
    params: ClassVar[Mapping[str, Any]] = {
        "form": "filter", "alpha": 0.01, "least": 1, "up_to": 10.0, "slope": 2.5, "centre": 5.333
    }  # fmt: skip

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        first = concepts[0]
        form = param_choice(first, self, params, "form", FORMS)
        numbers = SafreeParams(
            param_number(first, self, params, "alpha", 0.0),
            int(param_number(first, self, params, "least", 0.0)),
            param_number(first, self, params, "up_to", 0.0, STEPS),
            param_number(first, self, params, "slope", 0.0),
            param_number(first, self, params, "centre"),
        )
        edits: list[Edit] = [_Filter(concepts, _Toxic.of(concepts, pipeline), numbers, validated=form != "filter")]
        return [*edits, NegativeText(concepts)] if form == "released" else edits
