"""Changes of linear layers that training made: from an `Adapter` to edits, which leave the weights as they are.

A delta [out, in] of the layer ``NAME`` is kept in two thin factors, ``NAME.down`` [r, in] and ``NAME.up`` [out, r].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from safeguard.policy import Concept
from safeguard.sdk.adapter import Adapter, find_adapter
from safeguard.sdk.pipeline import Pipeline
from safeguard.sdk.seams import Edit, LinearEdit, Seam

if TYPE_CHECKING:
    from torch import Tensor


class DeltaEraser:
    """What erasers whose deltas were trained have in common: at strength 1 a delta acts as it was trained."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.LINEAR})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5}
    params: ClassVar[Mapping[str, Any]] = {"adapter": "default"}


def factorise(deltas: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float]:
    """Deltas [out, in] by layer as the tensors of an adapter: the ``rank`` largest directions of each, in float16; and the
    share of all their squares that is in these.
    """
    import torch

    tensors, total, captured = {}, 0.0, 0.0
    for name, delta in deltas.items():
        left, sizes, right = torch.linalg.svd(delta.detach().double().cpu(), full_matrices=False)
        total, captured = total + float(sizes.square().sum()), captured + float(sizes[:rank].square().sum())
        root = sizes[:rank].sqrt()
        tensors[f"{name}.down"] = (root[:, None] * right[:rank]).half()
        tensors[f"{name}.up"] = (left[:, :rank] * root).half()
    return tensors, captured / total if total else 1.0


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The deltas [out, in] by layer of what `thin` gave, in float32."""
    names = {name.rpartition(".")[0]: None for name in tensors}
    return {name: tensors[f"{name}.up"].float() @ tensors[f"{name}.down"].float() for name in names}


def delta_edits(adapter: Adapter, concepts: Sequence[Concept], pipeline: Pipeline) -> list[Edit]:
    """One edit for each layer, for all these concepts together: a row with several of them gets the highest strength. Stable.

    Args:
        adapter: The trained deltas, two thin factors for each layer.
        concepts: The concepts that it serves.
        pipeline: The pipeline, for messages. Whether it has the layers is checked when edits are attached.

    Raises:
        CapabilityError: If the adapter holds something else than deltas.
    """
    ids = tuple(concept.id for concept in concepts)
    digests = dict.fromkeys(ids, adapter.digest)
    try:
        edits: list[Edit] = []
        for name in sorted({name.rpartition(".")[0] for name in adapter.tensors}):
            down, up = (adapter.tensors[f"{name}.{part}"].float() for part in ("down", "up"))
            if down.dim() != 2 or up.dim() != 2 or len(down) != up.shape[1]:
                raise ValueError(f"the factors of {name} do not fit one another")
            if not bool(down.isfinite().all() and up.isfinite().all()):
                raise ValueError("its numbers are not all finite")
            edits.append(LinearEdit(name, ids, down, up, adapters=digests))
        if not edits or len(adapter.tensors) != 2 * len(edits):
            raise ValueError("its factors are not all there")
    except (KeyError, ValueError) as fault:
        raise adapter.malformed(fault, pipeline.name) from fault
    return edits


def edits_per_concept(concepts: Sequence[Concept], method: str, source: Any, pipeline: Pipeline) -> list[Edit]:
    """Edits by an adapter of each concept's own. Those of several concepts add up. Stable.

    Args:
        concepts: The concepts.
        method: The eraser's name.
        source: The value of ``params.adapter``.
        pipeline: The pipeline that the adapters must belong to.

    Raises:
        CapabilityError: What `find_adapter` and `delta_edits` raise.
    """
    adapters = [find_adapter(source, concept, method, pipeline, concept=concept.id) for concept in concepts]
    return [
        edit for concept, adapter in zip(concepts, adapters, strict=True) for edit in delta_edits(adapter, [concept], pipeline)
    ]
