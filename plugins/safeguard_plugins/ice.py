"""``ice``: Instant Concept Erasure (arXiv 2511.18684): the layers that read the text forget a subspace, but for what is shared.

By the paper's abstract, which is what was at hand; the equations are our own. With rows E of the concept's words, and K of
texts to keep, and e_i the share of direction i in all their energy (its squared singular value among all):

    P_E = sum_i e_i / (e_i + ``energy``) u_i u_i^T, and P_K likewise            (subspaces, weighted by energy)
    P_O = 2 P_E (P_E + P_K)^+ P_K                                               (their overlap)
    J(T) = tr T P_E T^T + b tr (T - I) P_O (T - I)^T + l |T - I|^2

J is convex, and least at T = I - P_E (P_E + b P_O + l I)^-1; b and l are ``overlap`` and ``lamb``. A layer with weight W_0 gets
W_0 T: what only the concept says is gone, what other texts say as well stays. P_O is twice the parallel sum, which for plain
projectors is the projector on what they share (Anderson and Duffin, 1969).

As with ``uce``, the weights stay as they are: W_0 T - W_0 is added in the rows in which the concept is active, and concepts
that are active together are solved together (`safeguard.sdk.closed_form`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, Seam, param_choice, param_number
from safeguard.sdk.closed_form import Pairs, PhraseInputs, Solved, layers_of, texts_of
from safeguard.sdk.contrast_attention import ORDINARY

if TYPE_CHECKING:
    from torch import Tensor


class Dissociation:
    """T for any rows to forget, beside rows ``kept`` [m, D]."""

    def __init__(self, kept: Tensor, *, energy: float, overlap: float, lamb: float) -> None:
        self._energy, self._overlap, self._lamb = energy, overlap, lamb
        self._kept = kept.T @ self._half(kept)

    def answer(self, rows: Tensor) -> Tensor:
        """H [n, D] for rows E [n, D], with T = I - E^T H."""
        import torch

        half = self._half(rows)
        erased = rows.T @ half
        shared = 2 * erased @ torch.linalg.pinv(erased + self._kept, hermitian=True) @ self._kept
        eye = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
        whole = erased + self._overlap * (shared + shared.T) / 2 + self._lamb * eye
        solution: Tensor = torch.linalg.solve(whole, half.T).T
        return solution

    def _half(self, rows: Tensor) -> Tensor:
        """(R R^T + energy |R|^2 I)^-1 R: R^T times this is the weighted projector of rows R."""
        import torch

        slack = self._energy * rows.square().sum().clamp_min(1e-12)
        eye = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        half: Tensor = torch.linalg.solve(rows @ rows.T + slack * eye, rows)
        return half


class ICE:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "ice"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.LINEAR})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5}
    params: ClassVar[Mapping[str, Any]] = {
        "preserve": ORDINARY,
        "window": "last",
        "energy": 0.01,
        "overlap": 10.0,
        "lamb": 0.01,
    }

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        import torch

        first = concepts[0]
        kept = texts_of(first, self, params["preserve"], "preserve")
        window = param_choice(first, self, params, "window", ("last", "aligned"))
        scales = {
            "energy": param_number(first, self, params, "energy", least=1e-6),
            "overlap": param_number(first, self, params, "overlap", least=0),
            "lamb": param_number(first, self, params, "lamb", least=1e-6),
        }
        edits: list[Edit] = []
        for layers in layers_of(concepts, self, pipeline):
            texts = PhraseInputs(pipeline, layers, window)
            inputs = [texts.pairs(concept.phrases, "")[0] for concept in concepts]
            pairs = [Pairs.of(rows, torch.zeros_like(rows)) for rows in inputs]
            dissociation = Dissociation(PhraseInputs(pipeline, layers, "whole").kept(kept), **scales)
            solved = Solved(dissociation, [pairs])
            ups = {module: pipeline.weight(module).to(inputs[0]) @ solved.change.T for module in layers.modules}
            edits += solved.edits(concepts, ups)
        return edits
