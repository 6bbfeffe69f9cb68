"""``uce``: the layers that read the text, solved anew in closed form (Unified Concept Editing, arXiv 2308.14761).

With W_0 the weight of such a layer, c_i the states of the concepts' words, p_j those of texts to keep, W is where

    J(W) = a sum_i |W c_i - v_i|^2 + b sum_j |W p_j - W_0 p_j|^2 + l |W - W_0|^2

is least; a, b and l are ``erase_scale``, ``preserve_scale`` and ``lamb``. v_i is what the layer makes of the guide text g_i:

``replace`` (default): v_i = W_0 g_i. ``tensor``: v_i = W_0 g_i - <u, W_0 g_i> u with u = W_0 c_i / |W_0 c_i|, row by row.

``window`` says which states: ``last`` the last word of each text, as the authors' diffusers code has it; ``aligned`` all from
there to the end of the text, concept and guide each from its own last word on, as in the older code, which keeps the empty text
always. `safeguard.sdk.closed_form` has the algebra, and how concepts that are active together are solved together.

``texts: pairs`` is a variant of ours, with the concept in context: c_i are what it adds to texts, mean differences between
texts with it and the same without ("a person with blood", "a person"), v_i = 0, and the words of the texts without it are
kept. A text with the concept then says what it says without. A ``guide`` has no part in this; a concept's ``anchor`` has.

The weights stay as they are: W - W_0 is added in the rows in which the concept is active, and so not on the unconditional
branch, which the published edit changes as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, Seam, param_choice
from safeguard.sdk.closed_form import ClosedFormTargets, Kept, Pairs, PhraseInputs, Solved, layers_of

if TYPE_CHECKING:
    from torch import Tensor

TECHNIQUES: Final = ("replace", "tensor")


def targets(technique: str, concept: Tensor, guide: Tensor) -> Tensor:
    """What a layer shall answer, v [n, out], from what it answers to the concept and to the guide text."""
    from torch.nn.functional import normalize

    if technique == "replace":
        return guide
    along = normalize(concept, dim=-1)
    return guide - (guide * along).sum(-1, keepdim=True) * along


class UCE:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "uce"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.LINEAR})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5}
    params: ClassVar[Mapping[str, Any]] = {
        "guide": "",
        "preserve": (),
        "technique": "replace",
        "window": "last",
        "texts": "phrases",
        "erase_scale": 1.0,
        "preserve_scale": 1.0,
        "lamb": 0.5,
    }

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        import torch

        first = concepts[0]
        asked = ClosedFormTargets.of(first, self, params)
        technique = param_choice(first, self, params, "technique", TECHNIQUES)
        edits: list[Edit] = []
        for layers in layers_of(concepts, self, pipeline):
            texts = PhraseInputs(pipeline, layers, asked.window)
            inputs, kept = asked.read(concepts, texts)
            pairs = [Pairs.of(rows, against) for rows, against in inputs]
            solved = Solved(Kept(kept, **asked.scales), [pairs])
            ups = {}
            for module in layers.modules:
                weight = pipeline.weight(module).to(inputs[0][0])
                changes = []
                for (rows, against), pair in zip(inputs, pairs, strict=True):
                    now = rows @ weight.T
                    changes.append(pair.left.T @ (targets(technique, now, against @ weight.T) - now))
                ups[module] = torch.cat(changes).T
            edits += solved.edits(concepts, ups)
        return edits
