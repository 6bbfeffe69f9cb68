"""``self_discovery``: a direction, learnt without labels, is added in the middle of the denoiser (arXiv 2311.17216).

With h the output of a UNet's middle block (h-space; in a transformer the image stream behind its middle block), for the rows of
the prompt and never for their unconditional twins, at every step:

    h <- h + s c                                                     (section 3.2 of the paper; s = 1 is as it was learnt)

For safety c is the *anti*-concept: what makes the denoiser, told the concept, draw pictures without it (``safeguard.training.
self_discovery``). Directions of several concepts add up. One tensor is the same for every prompt, place and step, so it acts
on harmless pictures as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk import Adapter, Edit, FeatureCall, FeatureEdit, Pipeline, Seam, find_adapter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Direction:
    """What an adapter says of one pipeline: ``vector`` [C, H, W] or [C] is added to the output of ``module``."""

    vector: Tensor
    module: str
    digest: str

    @classmethod
    def of(cls, adapter: Adapter, pipeline: Pipeline) -> Direction:
        """Raises CapabilityError where it holds something else, or was learnt elsewhere than in the middle."""
        middle = pipeline.middle
        try:
            vector, module = adapter.tensors["vector"], str(adapter.settings["module"])
            if vector.dim() not in (1, 3) or not bool(vector.isfinite().all()):
                raise ValueError("its vector is no [C] or [C, H, W] of finite numbers")
            if middle is None or (middle.name, middle.channels) != (module, len(vector)):
                raise ValueError(f"it was learnt at {module!r}, which is not the middle of this {pipeline.name}")
        except (KeyError, ValueError) as fault:
            raise adapter.malformed(fault, pipeline.name) from fault
        return cls(vector, module, adapter.digest)


class _Shift(FeatureEdit):
    def __init__(self, concepts: Sequence[str], module: str, directions: Sequence[Direction]) -> None:
        self.concepts = tuple(concepts)
        self.module = module
        self.adapters = {name: direction.digest for name, direction in zip(self.concepts, directions, strict=True)}
        self._vectors = tuple(direction.vector for direction in directions)

    def __call__(self, call: FeatureCall) -> Tensor:
        """The feature [R, C, H, W] or [R, N, C] with every active concept's direction added."""
        feature = call.feature.float()
        for column, vector in enumerate(self._vectors):
            strength = call.strengths[:, column].view(-1, *[1] * (feature.dim() - 1))
            feature = feature + strength * fitted(vector.to(feature), feature.shape)
        return feature.to(call.feature.dtype)


def fitted(vector: Tensor, shape: Sequence[int]) -> Tensor:
    """A direction for features of this shape: one [C, H, W] is brought to another height and width, as pictures are; one [C]
    is the same at every place.
    """
    import torch

    if vector.dim() == 1:
        return vector.view(-1, *[1] * (len(shape) - 2)) if len(shape) > 3 else vector
    if tuple(vector.shape[-2:]) == tuple(shape[-2:]):
        return vector
    size = (int(shape[-2]), int(shape[-1]))
    resized: Tensor = torch.nn.functional.interpolate(vector[None], size, mode="bilinear", align_corners=False)[0]
    return resized


class SelfDiscovery:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "self_discovery"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.FEATURE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 1.0, "strong": 1.5, "max": 2.0}
    params: ClassVar[Mapping[str, Any]] = {"adapter": "default"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        directions = [
            Direction.of(find_adapter(params["adapter"], concept, self.name, pipeline, concept=concept.id), pipeline)
            for concept in concepts
        ]
        return [_Shift([concept.id for concept in concepts], directions[0].module, directions)]
