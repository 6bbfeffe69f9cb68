"""``gie``: growth inhibitors whose strength is read off the first step (GIE, arXiv 2408.01014 v2, ICLR 2025).

The erasure prompt's own softmax M says where in the picture the concept grows, and for each of its tokens k

    O <- O - s sum_k w_k M_k V_k

at every text site, with s the policy's strength. It is the term that ``eiup`` has as ``published``, whose w is a constant. Here
w_k comes of what the denoiser's first call shows: with f_k[l] the mean of M_k at text site l over heads and image tokens,

    w_k = MLP(f_k), Linear(S, 64) - ReLU - Linear(64, 32) - ReLU - Linear(32, 1), S text sites,

trained once for a pipeline and some concepts (``safeguard train gie``) towards the gentlest w at which the concept is gone, 0
where there is none. That first call is a trial: it is run with the adapter's constant for every w, and made again with the w_k
that it has shown. Where it cannot be made again, and where nothing was shown (a call from outside every request, rows whose
image is not known), the constant stands: without an answer every picture is protected, and none is passed by.

w_k is cut at 0 below and at the greatest scale of the training above: an answer may inhibit, never encourage. As in ``eiup``,
the authors' second, unprotected picture in the batch, and columns in place of the prompt's padding, are left out. Where a
denoiser reads a pooled text besides, the paper leaves that as it is, and so does this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from safeguard.policy import Concept
from safeguard.sdk import Adapter, ConceptAttention, Edit, Pipeline, Seam, SiteCall, SiteEffect, TextSiteEdit, find_adapter
from safeguard.sdk.adapter import Perceptron
from safeguard.sdk.edit_memory import EditMemory

if TYPE_CHECKING:
    from torch import Tensor

CONSTANT: Final = 1.0  # every w where no adapter is wanted


@dataclass(frozen=True, eq=False)
class _Weights:
    """What an adapter says of one pipeline: ``places`` has the place among its features of each text site, by index."""

    constant: float
    places: Mapping[int, int]
    highest: float = CONSTANT
    network: Perceptron | None = None
    digest: str | None = None

    @classmethod
    def of(cls, adapter: Adapter, pipeline: Pipeline) -> _Weights:
        """Raises CapabilityError where it holds something else."""
        places = {site.index: place for place, site in enumerate(pipeline.main_sites)}
        try:
            constant, highest = (float(adapter.settings[name]) for name in ("constant", "highest"))
            if not 0 < constant <= highest < float("inf"):
                raise ValueError("its constant is not above 0 and up to its highest scale")
            return cls(constant, places, highest, Perceptron(adapter.tensors, len(places), 1), adapter.digest)
        except (KeyError, TypeError, ValueError) as fault:
            raise adapter.malformed(fault, pipeline.name) from fault

    def predicted(self, features: Tensor) -> Tensor:
        """w of each token from its features [..., S]."""
        assert self.network is not None
        return self.network(features)[..., 0].clamp(0, self.highest).nan_to_num(self.constant)


class _Inhibit(TextSiteEdit):
    def __init__(self, tokens: ConceptAttention, weights: _Weights, width: int) -> None:
        self.concepts = tokens.concepts
        self._tokens, self._weights, self._width = tokens, weights, width
        if weights.digest is not None:
            self.adapters = dict.fromkeys(self.concepts, weights.digest)

    def select(self, columns: Sequence[int]) -> _Inhibit:
        return _Inhibit(self._tokens.select(columns), self._weights, self._width)

    def __call__(self, call: SiteCall) -> SiteEffect:
        import torch

        reading = self._tokens.read(call)
        known = None
        if self._weights.network is not None:
            known = call.memory.recall("weights")
            if known is None and call.site.index in self._weights.places:
                shares = reading.shares()
                padded = torch.nn.functional.pad(shares, (0, self._width - shares.shape[-1]))
                call.memory.keep(f"shares {self._weights.places[call.site.index]}", padded)
        amount = call.strengths[..., None] * (self._weights.constant if known is None else known)  # [R, C, E] or [R, C, 1]
        amount = amount[..., : reading.own.shape[2]].transpose(1, 2)[:, None, None]
        return SiteEffect(reading.taken(amount), reading.mass(call.prompt_log_mass, words=True))

    def learns(self, memory: EditMemory) -> bool:
        """Once the first call has shown what every text site of it sees: the weights, [R, C, E]."""
        import torch

        if self._weights.network is None or memory.knows("weights"):
            return False
        seen = [memory.recall(f"shares {place}") for place in range(len(self._weights.places))]
        features = [shares for shares in seen if shares is not None]
        if len(features) < len(seen):
            return False
        memory.keep("weights", self._weights.predicted(torch.stack(features, -1)))
        return True


class GIE:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "gie"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5}
    params: ClassVar[Mapping[str, Any]] = {"adapter": "default"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        weights = _weights(concepts[0], params["adapter"], pipeline)
        tokens = ConceptAttention.of(concepts, pipeline, whole=True, plain=True)
        return [_Inhibit(tokens, weights, tokens.width)]


def _weights(concept: Concept, adapter: Any, pipeline: Pipeline) -> _Weights:
    """Those of the adapter that a policy names, or by ``none`` one constant."""
    if adapter == "none":
        return _Weights(CONSTANT, {})
    otherwise = ", or state params.adapter: none for one constant weight"
    return _Weights.of(find_adapter(adapter, concept, "gie", pipeline, otherwise=otherwise), pipeline)
