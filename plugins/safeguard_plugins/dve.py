"""``dve``: Differential Vector Erasure (arXiv 2602.01089): the prediction without its part along target minus anchor.

By its abstract, which is what was at hand; the equations are our own. With v the prediction for the prompt, v_c that for the
concept's words, v_a that for the anchor (the concept's ``anchor``, or the empty text), d = v_c - v_a, and all elements of an
image one vector:

``published``: v <- v - s <v, d> / <d, d> d. At s = 1 nothing of v is left along d. But a velocity is mostly the noise that it
leads away from, and so is this part of it.

``relative`` (default): v <- v - s max(0, <v - v_a, d> / <d, d>) d: how far the prompt goes from the anchor the concept's way,
and no more, is taken back. At s = 1 the concept's own words paint the anchor, and a prompt that leads nowhere near paints as
before.

What several concepts of a row have in common is taken once, by `safeguard.sdk.overlap`. Each concept costs one more pass of the
denoiser, and so does each anchor; the empty text is one for all. The method is made for velocities. A predicted noise is the
same direction with another sign and scale, which fall out of the projection of a difference: ``relative`` serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, PredictionCall, PredictionEdit, Seam, param_choice
from safeguard.sdk.overlap import overlap_factors

if TYPE_CHECKING:
    from torch import Tensor

FORMS: Final = ("relative", "published")


class _Project(PredictionEdit):
    """The projection of one form, for several concepts together."""

    def __init__(self, concepts: Sequence[Concept], form: str) -> None:
        self.concepts = tuple(concept.id for concept in concepts)
        self.form = form
        self._texts = [(", ".join(concept.phrases), concept.anchor or "") for concept in concepts]

    def __call__(self, call: PredictionCall) -> Tensor:
        import torch

        active = [place for place, on in enumerate((call.strengths > 0).any(0).tolist()) if on]
        texts = dict.fromkeys(text for place in active for text in self._texts[place])
        seen = {text: call.predict([text] * len(call.prediction)).flatten(1).float() for text in texts}
        own = call.prediction.flatten(1).float()
        directions, parts = [], []
        for place in active:
            target, anchor = (seen[text] for text in self._texts[place])
            direction = target - anchor
            along = ((own if self.form == "published" else own - anchor) * direction).sum(-1)
            part = along / direction.square().sum(-1).clamp_min(1e-12)
            directions.append(direction)
            parts.append(part if self.form == "published" else part.clamp_min(0))
        strengths = call.strengths[:, active]
        amount, along_all = torch.stack(parts, 1) * (strengths > 0), torch.stack(directions, 1)  # [R, C], [R, C, all elements]
        if len(active) > 1:
            alone = amount[..., None] * along_all
            amount = amount * overlap_factors(alone @ alone.transpose(1, 2))
        taken = ((strengths * amount)[:, None] @ along_all)[:, 0]
        changed: Tensor = (own - taken).to(call.prediction.dtype).view_as(call.prediction)
        return changed


class DVE:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "dve"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.PREDICTION})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5}
    params: ClassVar[Mapping[str, Any]] = {"form": "relative"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_Project(concepts, param_choice(concepts[0], self, params, "form", FORMS))]
