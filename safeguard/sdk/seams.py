"""The five seams: the places of a denoiser at which an eraser may act, and what acts there.

Everything is said in *rows*: one row is one image on one guidance branch. An edit is called with the rows that it is active
in, and nothing else; it never learns which pipeline it works for. `safeguard.sdk.calls` has what it is called with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from safeguard.sdk.calls import FeatureCall, LinearCall, PredictionCall, SiteCall, SiteEffect, StatesCall
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.pipeline import TokenKeys

if TYPE_CHECKING:
    from torch import Tensor


class Seam(StrEnum):
    """Where an edit acts. Within a denoiser call the seams come in this order; within a seam, the policy's order."""

    TEXT_STATES = "text states"
    LINEAR = "linear"
    TEXT_SITE = "text site"
    FEATURE = "feature"
    PREDICTION = "prediction"


class Edit(ABC):
    """An act of one eraser at one seam for ``concepts``, which are the columns of every ``strengths``.

    ``adapters`` has the digest of the `Adapter` by which it acts on a concept, where there is one; records name it.
    """

    seam: Seam
    concepts: tuple[str, ...]
    adapters: Mapping[str, str] = MappingProxyType({})


class TextSiteEdit(Edit):
    """Acts at every text site. ``select`` narrows it to concepts that are active in some row, so that others cost nothing.

    ``keys`` are those that it asks `TokenKeys.at` of, so that no more are made ready. None: any that its eraser asked
    `Pipeline.keys` for.
    """

    seam = Seam.TEXT_SITE
    keys: Sequence[TokenKeys] | None = None

    @abstractmethod
    def select(self, columns: Sequence[int]) -> TextSiteEdit:
        """The same edit for some of its concepts, in that order."""

    @abstractmethod
    def __call__(self, call: SiteCall) -> SiteEffect: ...

    def learns(self, memory: EditMemory) -> bool:
        """Asked when a call of the denoiser in which it acted is over. True where that call was a trial, from which it knows
        now how to act: what the call gave is dropped, and it is made again. Where that cannot be, its result stands.
        """
        return False


class TextStatesEdit(Edit):
    """Acts on the text that the denoiser is given: on the active rows, or on their unconditional twins."""

    seam = Seam.TEXT_STATES
    unconditional: bool = False

    @abstractmethod
    def __call__(self, call: StatesCall) -> Tensor | tuple[Tensor, Tensor | None]:
        """The states to use instead, [R, L, D]; or these with the pooled vectors, [R, P]."""


class PredictionEdit(Edit):
    """Acts on what the denoiser predicts."""

    seam = Seam.PREDICTION

    @abstractmethod
    def __call__(self, call: PredictionCall) -> Tensor:
        """The prediction to use instead, [R, ...]."""


class FeatureEdit(Edit):
    """Acts on the output of the named ``module``, or on the second of several (``name#1``)."""

    seam = Seam.FEATURE
    module: str

    @abstractmethod
    def __call__(self, call: FeatureCall) -> Tensor:
        """The feature to use instead, [R, ...]."""


@dataclass(frozen=True, eq=False)
class LinearEdit(Edit):
    """A weight delta of the named linear ``module``: ``y + strength * (x @ down.T) @ up.T`` in the active rows.

    ``down`` [r, in] and ``up`` [out, r]; an exact delta is ``down`` = the delta itself with ``up`` None. Both are kept in every
    dtype and on every device in which they were asked for. A subclass says in ``__call__`` what concepts change together.
    """

    module: str
    concepts: tuple[str, ...]
    down: Tensor
    up: Tensor | None = None
    adapters: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    _cast: dict[Any, tuple[Tensor, Tensor | None]] = field(default_factory=dict, init=False, repr=False)
    seam = Seam.LINEAR

    def __call__(self, call: LinearCall) -> Tensor:
        """What is added to the output of the layer, [R, ..., out]."""
        inputs, strengths = call.inputs, call.strengths
        down, up = self._cast.get((inputs.dtype, inputs.device)) or self._as(inputs)
        delta = inputs @ down.T
        if up is not None:
            delta = delta @ up.T
        strength = strengths.amax(-1).to(delta.dtype)
        return strength.view(-1, *[1] * (delta.dim() - 1)) * delta

    def _as(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """As ordinary tensors, whatever mode the asking call runs in: others will ask too."""
        import torch

        with torch.inference_mode(False), torch.no_grad():
            cast = self.down.to(inputs), None if self.up is None else self.up.to(inputs)
        self._cast[inputs.dtype, inputs.device] = cast
        return cast
