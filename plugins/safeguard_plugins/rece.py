"""``rece``: what a closed-form edit left of a concept is found, in closed form, and edited away (RECE, arXiv 2407.12383).

It begins with the edit of UCE. Then, ``epochs`` times, with W_i the layers as edited so far and W_i^old as
they were, and c states of the concept's text: the text c' that still gives what the concept gave,

    min over c' of sum_i |W_i c' - W_i^old c|^2 + lambda |c' - t|^2
    c' = (lambda I + sum_i W_i^T W_i)^-1 (sum_i W_i^T W_i^old c + lambda t)

is turned into the guide text as well, from the weights as they are by then. lambda is ``regulariser``: it bounds c', and with
that what an epoch may change of other texts. t is 0, as published; ``pull`` sets it to the ``concept`` or the ``guide``.

``window``: ``last`` (default) edits, and derives from, the last word of each text alone. ``aligned`` is the published code: it
begins with all from there to the end of the text, and derives from every state, padding included. Where an encoder writes what
a text says into its padding as well, that takes other texts with it.

``texts: pairs``: both begin with what the concept adds to texts (see `safeguard_plugins.uce`), and c' is what still adds it.

The sum runs over the layers that are given the same text; on a UNet these are all that make keys and values of it.
Which concepts are active together is known when a request comes, so c' is found for each concept by itself; what is edited away
in an epoch is solved together for the active ones. `safeguard.sdk.closed_form` has the algebra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, Seam, param_choice, param_number
from safeguard.sdk.closed_form import ClosedFormTargets, Kept, Pairs, PhraseInputs, Solved, layers_of

if TYPE_CHECKING:
    from torch import Tensor

PULLS: Final = ("zero", "concept", "guide")


def derived(gram: Tensor, change: Tensor, rows: Tensor, pull: Tensor, regulariser: float) -> Tensor:
    """c' [n, D] for the rows c [n, D] of a text, pulled towards t [n, D].

    ``gram`` [D, D] is sum_i W_i^old^T W_i^old, and ``change`` T [D, D] what the edit made of a text: W_i = W_i^old T.
    """
    import torch

    crossed = change.T @ gram
    whole = crossed @ change + regulariser * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution: Tensor = torch.linalg.solve(whole, crossed @ rows.T + regulariser * pull.T)
    return solution.T


class RECE:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "rece"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.LINEAR})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5}
    params: ClassVar[Mapping[str, Any]] = {
        "guide": "",
        "preserve": (),
        "window": "last",
        "texts": "phrases",
        "epochs": 2,
        "regulariser": 0.1,
        "pull": "zero",
        "erase_scale": 1.0,
        "preserve_scale": 1.0,
        "lamb": 0.5,
    }

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        import torch

        first = concepts[0]
        asked = ClosedFormTargets.of(first, self, params)
        epochs = int(param_number(first, self, params, "epochs", least=0, most=20))
        regulariser = param_number(first, self, params, "regulariser", least=1e-9)
        pull = param_choice(first, self, params, "pull", PULLS)
        whence = "last" if asked.window == "last" else "whole"
        edits: list[Edit] = []
        for layers in layers_of(concepts, self, pipeline):
            starting, deriving = (PhraseInputs(pipeline, layers, item) for item in (asked.window, whence))
            begun, kept = asked.read(concepts, starting)
            derived_from, _ = asked.read(concepts, deriving)
            preserved = Kept(kept, **asked.scales)
            weights = {module: pipeline.weight(module) for module in layers.modules}
            gram = torch.stack([weight.T @ weight for weight in weights.values()]).sum(0)
            courses = []
            for first_pair, (rows, against) in zip(begun, derived_from, strict=True):
                course = [Pairs.of(*first_pair)]
                towards = {"zero": 0 * rows, "concept": rows, "guide": against}[pull]
                for _ in range(epochs):
                    so_far = Solved(preserved, [[pairs] for pairs in course]).map()
                    course.append(Pairs.of(derived(gram, so_far, rows, towards, regulariser), against))
                courses.append(course)
            solved = Solved(preserved, list(zip(*courses, strict=True)))
            edits += solved.edits(concepts, {module: weight @ solved.change.T for module, weight in weights.items()})
        return edits
