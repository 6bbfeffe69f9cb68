"""The protocol that every eraser follows: from concepts to edits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk.pipeline import Pipeline
from safeguard.sdk.seams import Edit, Seam

AUTO: Final = "auto"  # the strength that follows what is left
API: Final = (1, 0)
"""The version of `safeguard.sdk`, major and minor. An eraser states the one that it was written for, as ``api = (1, 0)``. It
runs where the major is the same and the minor is not older than its own.
"""


def __getattr__(name: str) -> Any:
    """``PROTOCOL``, which erasers for 0.1 state. It goes in 0.3."""
    if name == "PROTOCOL":
        message = "PROTOCOL goes in 0.3: write api = (1, 0) on the eraser in place of protocol = PROTOCOL"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return 1
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Eraser(Protocol):
    """Turns concepts into edits. A class without arguments; one file is enough: see ``safeguard_plugins/eiup.py``. Stable.

    Attributes:
        api: The version of `safeguard.sdk` that it was written for.
        name: What policies call it.
        version: Of the method; records have it.
        seams: The seams that it needs. A pipeline that lacks one is refused.
        strengths: The policy's words (``weak`` to ``max``) on the method's own scale. One that has ``auto`` as well says up to
            where it may rise: it begins at ``strong``, and rises in images in which too much is left.
        params: The parameters that a policy may set, with their defaults.
    """

    api: ClassVar[tuple[int, int]]
    name: ClassVar[str]
    version: ClassVar[str]
    seams: ClassVar[frozenset[Seam]]
    strengths: ClassVar[Mapping[str, float]]
    params: ClassVar[Mapping[str, Any]]

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        """The edits for some concepts. Pure: the same arguments give the same edits.

        Args:
            concepts: Concepts of the policy that all have the same ``params``.
            params: The defaults, with the policy's values over them.
            pipeline: What may be asked of the pipeline.

        Returns:
            The edits, each with ``concepts``, the ids that its columns of strengths stand for.

        Raises:
            CapabilityError: If the pipeline lacks something.
        """
        ...


@dataclass(frozen=True, slots=True)
class Strength:
    """How strongly a concept is erased: the policy's ``word`` if it used one, and the number on the eraser's scale. Where too
    much of the concept is left, it rises up to ``bound`` times that number.
    """

    value: float
    word: str | None = None
    bound: float = 1.0


def concept_strength(concept: Concept, eraser: Eraser) -> Strength:
    """The concept's strength on the eraser's own scale. Raises CapabilityError for a word that the eraser lacks."""
    if not isinstance(concept.strength, str):
        return Strength(float(concept.strength))
    if concept.strength not in eraser.strengths:
        raise CapabilityError(
            f"concept {concept.id!r}: eraser {eraser.name!r} has no strength {concept.strength!r}; "
            f"use {', '.join(eraser.strengths)} or a number",
            eraser=eraser.name,
            missing=f"strength {concept.strength}",
        )
    if concept.strength != AUTO:
        return Strength(float(eraser.strengths[concept.strength]), concept.strength)
    begins, most = float(eraser.strengths["strong"]), float(eraser.strengths[AUTO])
    return Strength(begins, AUTO, max(1.0, most / begins))


def concept_params(concept: Concept, eraser: Eraser) -> dict[str, Any]:
    """The eraser's parameters with the concept's over them. Raises CapabilityError for one that the eraser lacks."""
    unknown = sorted(set(concept.params) - set(eraser.params))
    if unknown:
        raise CapabilityError(
            f"concept {concept.id!r}: eraser {eraser.name!r} has no parameter {unknown[0]!r}; "
            f"it has {', '.join(eraser.params) or 'none'}",
            eraser=eraser.name,
            missing=f"parameter {unknown[0]}",
        )
    return {**eraser.params, **concept.params}


def param_number(
    concept: Concept, eraser: Eraser, params: Mapping[str, Any], name: str, least: float = -math.inf, most: float = math.inf
) -> float:
    """A parameter as a number. Stable.

    Args:
        concept: The concept, for the message.
        eraser: The eraser, for the message.
        params: The parameters that `Eraser.edits` was given.
        name: Of the parameter.
        least: The lowest value that is allowed.
        most: The highest value that is allowed.

    Raises:
        CapabilityError: For anything that is no number in this range.
    """
    value = params[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise CapabilityError(
            f"concept {concept.id!r}: params.{name} of {eraser.name!r} is a number from {least:g} to {most:g}, not {value!r}",
            eraser=eraser.name,
            missing=name,
        )
    return float(value)


def param_choice(concept: Concept, eraser: Eraser, params: Mapping[str, Any], name: str, among: Sequence[str]) -> str:
    """A parameter as one of some words. Stable.

    Args:
        concept: The concept, for the message.
        eraser: The eraser, for the message.
        params: The parameters that `Eraser.edits` was given.
        name: Of the parameter.
        among: The words that are allowed.

    Raises:
        CapabilityError: For anything else.
    """
    if params[name] not in among:
        raise CapabilityError(
            f"concept {concept.id!r}: params.{name} of {eraser.name!r} must be one of {', '.join(among)}",
            eraser=eraser.name,
            missing=name,
        )
    return str(params[name])
