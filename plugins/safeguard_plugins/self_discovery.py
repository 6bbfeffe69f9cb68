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
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from safeguard.erasing import PROTOCOL, Direction, Edit, FeatureCall, FeatureEdit, Pipeline, Seam
from safeguard.erasing.directions import find_direction
from safeguard.errors import CapabilityError
from safeguard.policy import Concept

if TYPE_CHECKING:
    from torch import Tensor

SHIPPED: Final = Path(__file__).parent / "assets"


class _Shift(FeatureEdit):
    def __init__(self, concepts: Sequence[str], module: str, vectors: Sequence[Tensor]) -> None:
        self.concepts = tuple(concepts)
        self.module = module
        self._vectors = tuple(vectors)  # [C, H, W] or [C] each

    def __call__(self, call: FeatureCall) -> Tensor:
        """The feature [R, C, H, W] or [R, N, C] with every active concept's direction added."""
        made = call.feature.float()
        for column, vector in enumerate(self._vectors):
            strength = call.strengths[:, column].view(-1, *[1] * (made.dim() - 1))
            made = made + strength * fitted(vector.to(made), made.shape)
        return made.to(call.feature.dtype)


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

    protocol: ClassVar[int] = PROTOCOL
    name: ClassVar[str] = "self_discovery"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.FEATURE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 1.0, "strong": 1.5, "max": 2.0}
    params: ClassVar[Mapping[str, Any]] = {"direction": "default"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        found = [self._direction(concept, params["direction"], pipeline) for concept in concepts]
        modules = dict.fromkeys(one.module for one in found)
        return [
            _Shift(
                [concept.id for concept, one in zip(concepts, found, strict=True) if one.module == module],
                module,
                [one.vector for one in found if one.module == module],
            )
            for module in modules
        ]

    def _direction(self, concept: Concept, source: Any, pipeline: Pipeline) -> Direction:
        middle = pipeline.middle
        found = (
            find_direction(concept.id, self.name, pipeline.fingerprint, [SHIPPED])
            if source == "default"
            else Direction.load(str(source))
        )
        if found is None:
            raise CapabilityError(
                f"concept {concept.id!r}: no direction of it is known for this {pipeline.name}; train one "
                "(python -m safeguard.training.self_discovery) and name its file in params.direction",
                pipeline=pipeline.name,
                eraser=self.name,
                missing="direction",
            )
        found.require(pipeline.fingerprint, self.name)
        if middle is None or middle.name != found.module or middle.channels != len(found.vector):
            raise CapabilityError(
                f"concept {concept.id!r}: its direction was learnt at {found.module!r}, which is not the middle of this "
                f"{pipeline.name}; train one on this pipeline",
                pipeline=pipeline.name,
                eraser=self.name,
                missing="direction",
            )
        return found
