"""One concept's score: what is measured, on which scale.

``raw = a z(head) + b z(max cosine to the names) + c z(neighbours) + 1.5 min(word hits, 2)``

- head: the shipped logistic direction, for concepts that mean a whole shipped family (and for the union of all);
- names: the abstract names of the family, else the concept's own phrases;
- neighbours: mean cosine to the five nearest unsafe texts minus the cosine to the nearest safe one;
- z: over the shipped benign texts, each measured without itself.

Then a logistic puts the 95 % point of the benign texts at 0.5 and their 99 % point at 0.75.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safeguard.screening.encoder import Vectors
from safeguard.screening.head import FamilyHead
from safeguard.screening.wordlist import WordList

HEAD, NAMES, NEIGHBOURS = 1.0, 0.5, 1.0  # a, b, c; chosen on one half of the development prompts
NEAREST = 5
MAX_HITS = 2
HIT = 1.5
LOW, HIGH = 0.5, 0.75
LOW_SHARE, HIGH_SHARE = 0.95, 0.99
EXAMPLE_COSINE = 0.70  # from here on a prompt counts as one of the policy's own unsafe examples
_STEEPEST = np.log(3.0) / 0.5  # should the two points of the benign texts fall together


@dataclass(frozen=True, slots=True)
class Text:
    """One text, read: ``vectors`` [w, width] of its forms and windows, their highest cosine to a benign text, its tokens."""

    vectors: Vectors
    to_benign: Vectors  # [w]
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Benign:
    """The shipped benign texts: ``vectors`` [b, width], the highest cosine of each to another of them, their tokens."""

    vectors: Vectors
    to_benign: Vectors  # [b]
    tokens: tuple[tuple[str, ...], ...]
    counted: npt.NDArray[np.bool_]  # which of them set the thresholds


@dataclass(frozen=True, slots=True)
class ScoreInputs:
    """What one score is made from. ``unsafe`` and ``names`` are never empty; ``safe`` may have no rows."""

    names: Vectors
    unsafe: Vectors
    safe: Vectors
    head: FamilyHead | None
    words: WordList
    phrases: tuple[str, ...]  # of several words, each counts as one hit when it stands there


class Scorer:
    """Evidence with its scale. Cheap to build once the texts are encoded: a few small matrix products."""

    def __init__(self, evidence: ScoreInputs, benign: Benign) -> None:
        self._evidence = evidence
        self._weights = np.array((HEAD, NAMES, NEIGHBOURS) if evidence.head is not None else (0.0, 1.0, 1.0))
        measured = self._measure(benign.vectors, benign.to_benign, None if evidence.head is None else evidence.head.unseen)
        self._mean = measured.mean(axis=0)
        self._deviation = np.maximum(measured.std(axis=0), 1e-6)
        hits = np.array([self._hits(tokens) for tokens in benign.tokens])
        raw = (self._weigh(measured) + hits)[benign.counted]
        self.low, high = np.quantile(raw, (LOW_SHARE, HIGH_SHARE))
        self._slope = min(np.log(3.0) / max(high - self.low, 1e-6), _STEEPEST)

    def raw(self, text: Text) -> float:
        """The weighted sum, the highest over the text's windows; word hits are of the whole text."""
        measured = self._measure(text.vectors, text.to_benign, None)
        return float(self._weigh(measured).max()) + self._hits(text.tokens)

    def score(self, text: Text) -> float:
        """0..1: 0.5 is what 5 % of benign texts reach, 0.75 what 1 % reach."""
        return float(1.0 / (1.0 + np.exp(-np.clip(self.margin(text), -30.0, 30.0))))

    def margin(self, text: Text) -> float:
        """The score before the logistic: 0 at the low threshold; ranks families whose scores all round to 1."""
        return float(self._slope * (self.raw(text) - self.low))

    def nearer_to_safe(self, text: Text) -> bool:
        """Is a safe text of the policy's own nearer than every unsafe one, in each form and window of the text?"""
        if not len(self._evidence.safe):
            return False
        safe = (text.vectors @ self._evidence.safe.T).max(axis=1)
        return bool((safe > (text.vectors @ self._evidence.unsafe.T).max(axis=1)).all())

    def _measure(self, vectors: Vectors, to_benign: Vectors, head: Vectors | None) -> Vectors:
        """[w, 3]: head, names, neighbours. ``head`` is given for benign texts: the value under a head that never saw them."""
        evidence = self._evidence
        if head is None:
            head = vectors @ evidence.head.weight if evidence.head is not None else np.zeros(len(vectors), np.float32)
        names = (vectors @ evidence.names.T).max(axis=1)
        nearest = min(NEAREST, len(evidence.unsafe))
        near = np.partition(vectors @ evidence.unsafe.T, -nearest, axis=1)[:, -nearest:].mean(axis=1)
        safe = to_benign
        if len(evidence.safe):
            safe = np.maximum(safe, (vectors @ evidence.safe.T).max(axis=1))
        return np.stack([head, names, near - safe], axis=1)

    def _weigh(self, measured: Vectors) -> npt.NDArray[np.float64]:
        return np.asarray(((measured - self._mean) / self._deviation) @ self._weights, dtype=np.float64)

    def _hits(self, tokens: Sequence[str]) -> float:
        line = f" {' '.join(tokens)} "
        hits = sum(f" {phrase} " in line for phrase in self._evidence.phrases)
        return HIT * min(self._evidence.words.hits(tokens) + hits, MAX_HITS)


def example_score(text: Text, unsafe: Vectors, safe: Vectors) -> float:
    """From 0.5 up where the text all but repeats one of the ``unsafe`` [u, width] and is less near to any safe one; else 0."""
    nearest = float((text.vectors @ unsafe.T).max())
    benign = max(float(text.to_benign.max()), float((text.vectors @ safe.T).max()) if len(safe) else -1.0)
    if nearest < EXAMPLE_COSINE or nearest <= benign:
        return 0.0
    return LOW + 0.45 * (nearest - EXAMPLE_COSINE) / (1.0 - EXAMPLE_COSINE)
