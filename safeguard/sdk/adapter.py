"""What training made for an eraser on one pipeline, and the file that keeps it: safetensors, whose reading runs no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safeguard._entry_points import folder, points
from safeguard._io import write_whole
from safeguard._tensor_files import digest_of, load, to_bytes
from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk.fingerprint import Fingerprint
from safeguard.sdk.pipeline import Pipeline

if TYPE_CHECKING:
    from torch import Tensor

ADAPTERS: Final = "safeguard.adapters"  # the group of entry points that name folders of adapters
SCHEMA: Final = "safeguard.dev/adapter/v1"
WORD: Final = ".word.safetensors"  # a learned word, which some trainings write beside an adapter


@dataclass(frozen=True, eq=False)
class Adapter:
    """What training made for an eraser, bound to one pipeline. Stable.

    Attributes:
        method: The eraser's name.
        fingerprint: The pipeline that it belongs to.
        tensors: The trained tensors.
        settings: What else the method must know of its training.
        report: What was measured on data that training did not use.
        origin: The file that it was read from.
    """

    method: str
    fingerprint: Fingerprint
    tensors: Mapping[str, Tensor] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    @classmethod
    def load(cls, path: str | os.PathLike[str], method: str) -> Adapter:
        """Read a file that `save` wrote.

        Args:
            path: The file.
            method: The eraser's name.

        Raises:
            CapabilityError: If it is no adapter file, or one of another method.
        """

        def wrong(what: str) -> CapabilityError:
            return _refusal(f"{os.fspath(path)}: {what}", method)

        try:
            data, tensors = load(path)
            if data["schema"] != SCHEMA:
                raise ValueError("another schema")
            fingerprint = Fingerprint.from_dict(data["pipeline"])
            adapter = cls(
                str(data["method"]), fingerprint, tensors, dict(data["settings"]), dict(data["report"]), os.fspath(path)
            )
        except FileNotFoundError as fault:
            raise wrong("there is no such adapter file") from fault
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
            raise wrong(f"this is no adapter file ({fault})") from fault
        if adapter.method != method:
            raise wrong(f"this adapter is of {adapter.method!r}")
        return adapter

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all. The same adapter gives the same bytes.

        Args:
            path: The file.
        """
        write_whole(Path(path), to_bytes(self.tensors, self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """All but the tensors, as it stands in the file."""
        return {
            "schema": SCHEMA,
            "method": self.method,
            "pipeline": self.fingerprint.to_dict(),
            "settings": dict(self.settings),
            "report": dict(self.report),
        }

    @property
    def digest(self) -> str:
        """Names the adapter: hex SHA-256 over all of it."""
        return digest_of(self.tensors, self.to_dict())

    def require(self, fingerprint: Fingerprint) -> None:
        """Check that the adapter belongs to a pipeline.

        Args:
            fingerprint: The pipeline's.

        Raises:
            CapabilityError: If it belongs to another one.
        """
        difference = self.fingerprint.differs(fingerprint)
        if difference is not None:
            named = f"the adapter{f' {self.origin}' if self.origin else ''}"
            raise _refusal(f"{named} does not fit this {fingerprint.pipeline}: {difference}", self.method, fingerprint.pipeline)

    def malformed(self, why: object, pipeline: str) -> CapabilityError:
        """The error for an adapter that does not hold what its method's training writes.

        Args:
            why: What is wrong with it.
            pipeline: The pipeline's name.

        Returns:
            The error, to be raised.
        """
        return _refusal(f"{self.origin or 'an adapter'}: this is no adapter of {self.method} ({why})", self.method, pipeline)


def find_adapter(
    source: Any, concept: Concept, method: str, pipeline: Pipeline, /, *, otherwise: str = "", **settings: Any
) -> Adapter:
    """The adapter that ``params.adapter`` of a concept names, checked to belong to a pipeline. Stable.

    Args:
        source: The parameter's value: a file, or ``default`` for the one that an installed distribution brings.
        concept: The concept, for the message.
        method: The eraser's name.
        pipeline: The pipeline that it must belong to.
        otherwise: What else a policy may do if there is none, for the message.
        **settings: Values that the adapter's settings must have.

    Returns:
        The adapter.

    Raises:
        CapabilityError: If there is none, or it belongs to another pipeline or method.
    """
    if not isinstance(source, str) or not source:
        raise CapabilityError(
            f"concept {concept.id!r}: params.adapter of {method!r} is a file or default, not {source!r}",
            pipeline=pipeline.name,
            eraser=method,
            missing="adapter",
        )
    if source != "default":
        loaded = Adapter.load(source, method)
        loaded.require(pipeline.fingerprint)
        return loaded
    adapter = shipped(method, pipeline.fingerprint, **settings)
    if adapter is None:
        what = f"concept {concept.id!r}: no adapter of {method} comes with the package for this {pipeline.name}"
        raise _refusal(what, method, pipeline.name, f" and name it in params.adapter{otherwise}")
    return adapter


def shipped_files(method: str) -> list[Path]:
    """The files ``METHOD-*.safetensors`` in the folders that installed distributions name by entry points of `ADAPTERS`:
    adapters, and the learned words beside them.
    """
    folders = [folder(point) for point in points(ADAPTERS)]
    return [path for place in folders if place is not None for path in sorted(place.glob(f"{method}-*.safetensors"))]


def shipped(method: str, fingerprint: Fingerprint, /, **settings: Any) -> Adapter | None:
    """The adapter among `shipped_files` that belongs to a pipeline and was trained with these ``settings``. None where there is
    none; raises what `Adapter.load` raises.
    """
    for path in shipped_files(method):
        if path.name.endswith(WORD):
            continue
        adapter = Adapter.load(path, method)
        if adapter.fingerprint.differs(fingerprint) is None and settings.items() <= adapter.settings.items():
            return adapter
    return None


def _refusal(what: str, method: str, pipeline: str = "", then: str = "") -> CapabilityError:
    """One way to say that an adapter is missing or of no use, and what to do."""
    message = f"{what}; make one with safeguard train {method}{then}"
    return CapabilityError(message, pipeline=pipeline, eraser=method, missing="adapter")


class Perceptron:
    """Layers ``0.weight``, ``0.bias``, ``1.weight`` and so on among some tensors, with max(0, .) between them.

    Raises ValueError for tensors that do not follow on one another from ``inputs`` features to ``outputs``, or are not finite.
    """

    def __init__(self, tensors: Mapping[str, Tensor], inputs: int, outputs: int) -> None:
        count = len(tensors) // 2
        if not count or set(tensors) != {f"{layer}.{part}" for layer in range(count) for part in ("weight", "bias")}:
            raise ValueError("its layers are not all there")
        self._layers = [(tensors[f"{layer}.weight"].float(), tensors[f"{layer}.bias"].float()) for layer in range(count)]
        width = inputs
        for weight, bias in self._layers:
            if weight.dim() != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise ValueError("its layers do not fit one another, or not the pipeline's text sites")
            if not bool(weight.isfinite().all() and bias.isfinite().all()):
                raise ValueError("its numbers are not all finite")
            width = len(weight)
        if width != outputs:
            raise ValueError("its last layer has another width")

    def __call__(self, features: Tensor) -> Tensor:
        """Features [..., inputs] to [..., outputs], in float32 on their own device."""
        from torch.nn.functional import linear

        values = features.float()
        for place, (weight, bias) in enumerate(self._layers):
            values = linear(values.relu() if place else values, weight.to(values), bias.to(values))
        return values
