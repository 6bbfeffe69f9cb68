"""Texts and concepts in, calibrated scores out: the screener that protects a pipeline, usable alone."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from safeguard.errors import ScreenError
from safeguard.screening.concept_scorers import Compiler, ConceptScorer
from safeguard.screening.encoder import BUNDLED_NAME, Encoder
from safeguard.screening.preprocess import PreparedText, prepare
from safeguard.screening.proper_names import spans
from safeguard.screening.scoring import HIGH, LOW, Text

if TYPE_CHECKING:
    from safeguard.policy import Concept

BEST = 2  # so many families of a text take the score of "anything unsafe" as their own
DEFAULT_POLICIES = ("builtin://nsfw", "builtin://violence")


@dataclass(frozen=True)
class Screening:
    """Scores of n texts for k concepts. Stable.

    Attributes:
        encoder: Name and short digest of the embedding model.
        concepts: The ids of the concepts.
        scores: From 0 to 1.
        low: The lower threshold of each concept.
        high: The higher threshold of each concept.
        unsafe: The score of "anything unsafe at all", over the included families and the concepts of the policy.
        unread: Texts that are too long to be read. They score 1 for every concept.

    Shapes:
        scores: [n, k], float32.
        unsafe: [n], float32.
    """

    encoder: str
    concepts: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    low: tuple[float, ...]
    high: tuple[float, ...]
    unsafe: npt.NDArray[np.float32] | None = None
    unread: tuple[int, ...] = ()

    def activated(self, row: int) -> tuple[str, ...]:
        """Concepts whose score reaches the low threshold: it activates erasure and flags.

        Args:
            row: Which text.
        """
        return self._reached(row, self.low)

    def severe(self, row: int) -> tuple[str, ...]:
        """Concepts whose score reaches the high threshold: it is used for block and review.

        Args:
            row: Which text.
        """
        return self._reached(row, self.high)

    def _reached(self, row: int, thresholds: tuple[float, ...]) -> tuple[str, ...]:
        scored = zip(self.concepts, self.scores[row], thresholds, strict=True)
        return tuple(name for name, score, threshold in scored if score >= threshold)


class Screener:
    """The default screener. It loads its model on the first call, uses no network and is thread-safe. Stable.

    Args:
        model: None for the included encoder, or a sentence-transformers folder or cached name. With another model every
            constant is derived again from the included texts at the first call, which takes some seconds.
    """

    def __init__(self, model: str | Path | None = None) -> None:
        self.name = f"embedding:{BUNDLED_NAME if model is None else Path(model).name}"
        self._encoder = Encoder(model)
        self._compiler: Compiler | None = None
        self._lock = threading.Lock()

    def prepare(self, concepts: Mapping[str, Concept] | None = None) -> None:
        """Load the model and encode the texts of the concepts, so that the next ``screen`` only encodes prompts.

        Args:
            concepts: The concepts by id; None: those of nsfw and violence.
        """
        self._compiled(_concepts(concepts))

    def screen(self, texts: Sequence[str], concepts: Mapping[str, Concept] | None = None) -> Screening:
        """Score every text for every concept, in one batch.

        Args:
            texts: A list or tuple of strings.
            concepts: The concepts by id; None: those of nsfw and violence.

        Returns:
            The scores.

        Raises:
            ScreenError: For anything but a list or tuple of strings.
            AssetError: If the model was changed.
        """
        _check(texts)
        wanted = _concepts(concepts)
        compiler, scorers = self._compiled(wanted)
        named = any(scorer.names for scorer in scorers)
        readings = [prepare(text) for text in texts]
        rows = self._encode(compiler, readings, named)
        scores = np.zeros((len(texts), len(scorers)), dtype=np.float32)
        unsafe = np.zeros(len(texts), dtype=np.float32)
        for row, (reading, scored) in enumerate(zip(readings, rows, strict=True)):
            if reading.unread:
                scores[row], unsafe[row] = 1.0, 1.0
            elif scored is not None:
                unsafe[row] = compiler.union.score(scored.text)
                top = compiler.top_families(scored.text, BEST) if any(scorer.family for scorer in scorers) else ()
                scores[row] = [scorer.score(scored.text, scored.spans, float(unsafe[row]), top) for scorer in scorers]
        thresholds = [concept.threshold for concept in wanted.values()]
        return Screening(
            encoder=self._encoder.name,
            concepts=tuple(wanted),
            scores=scores,
            low=tuple(LOW if threshold is None else float(threshold) for threshold in thresholds),
            high=tuple(HIGH if threshold is None else float(threshold) for threshold in thresholds),
            unsafe=unsafe,
            unread=tuple(row for row, reading in enumerate(readings) if reading.unread),
        )

    async def ascreen(self, texts: Sequence[str], concepts: Mapping[str, Concept] | None = None) -> Screening:
        """``screen`` in a thread of its own, so that an event loop goes on."""
        return await asyncio.to_thread(self.screen, texts, concepts)

    def _compiled(self, concepts: Mapping[str, Concept]) -> tuple[Compiler, list[ConceptScorer]]:
        with self._lock:
            if self._compiler is None:
                self._compiler = Compiler(self._encoder)
            return self._compiler, self._compiler.scorers(list(concepts.values()))

    def _encode(self, compiler: Compiler, readings: Sequence[PreparedText], named: bool) -> list[_Row | None]:
        """One encode for everything that the readable texts hold: forms, windows and, where names count, spans."""
        forms = [() if reading.unread else reading.forms for reading in readings]
        cues = [tuple(spans(reading.normal)) if named and form else () for reading, form in zip(readings, forms, strict=True)]
        flat = list(dict.fromkeys(text for part in (*forms, *cues) for text in part))
        vectors = dict(zip(flat, self._encoder.encode(flat), strict=True))
        width = len(next(iter(vectors.values()))) if vectors else 0
        empty = np.empty((0, width), dtype=np.float32)
        return [
            _Row(compiler.text(np.stack([vectors[text] for text in form]), reading.tokens),
                 np.stack([vectors[text] for text in cue]) if cue else empty)
            if form else None
            for reading, form, cue in zip(readings, forms, cues, strict=True)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Row:
    text: Text
    spans: npt.NDArray[np.float32]  # [s, width]


def _check(texts: object) -> None:
    if not isinstance(texts, (list, tuple)):
        raise ScreenError(f"texts must be a list or tuple of strings, not {type(texts).__name__}; wrap a single text in a list")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ScreenError(f"text {row} is {type(text).__name__}, not a string")


def _concepts(concepts: Mapping[str, Concept] | None) -> Mapping[str, Concept]:
    return _default_concepts() if concepts is None else concepts


@functools.cache
def _default_concepts() -> Mapping[str, Concept]:
    from safeguard.policy import load_policy

    return {name: concept for policy in DEFAULT_POLICIES for name, concept in load_policy(policy).concepts.items()}
