"""``geom_erasing``: the concept's name, and words for where it stands, in the negative prompt (Geom-Erasing, arXiv 2310.05873).

The words are learnt from pictures in which a detector found the concept (``safeguard_plugins.geom_erasing.train``): one row for
each bin of a grid, all of them one learned word, ``<ID-at>``, which is loaded before the policy is. As ``negative_prompt``, it
costs no pass, needs guidance, keeps what the user says there, and has no scale: any strength above 0 is the same act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, Seam
from safeguard.sdk.negative_text import NegativeText


class GeomErasing:
    """The eraser; see the module."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "geom_erasing"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_STATES})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 1.0, "medium": 1.0, "strong": 1.0, "max": 1.0}
    params: ClassVar[Mapping[str, Any]] = {"word": "default"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        located = [replace(concept, phrases=(*concept.phrases, *_words(concept, params["word"]))) for concept in concepts]
        pipeline.encode([", ".join(concept.phrases) for concept in located])  # which refuses a word that is not loaded
        return [NegativeText(located)]


def _words(concept: Concept, source: Any) -> Sequence[str]:
    """The learned word of a concept's places: by ``default`` that of its id, a name, or ``none``."""
    if source in ("default", "none"):
        return [f"<{concept.id}-at>"] if source == "default" else []
    if not isinstance(source, str) or not (source.startswith("<") and source.endswith(">")):
        raise CapabilityError(
            f"concept {concept.id!r}: params.word of 'geom_erasing' is a learned word such as <{concept.id}-at>, default or "
            f"none, not {source!r}",
            eraser="geom_erasing",
            missing="word",
        )
    return [source]
