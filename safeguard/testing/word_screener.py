"""A screener that goes by words, and policies made on the spot: for tests, where what is activated must be plain to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safeguard.policy import Concept, Policy, Settings
from safeguard.policy.snapshot import canonical_json, snapshot
from safeguard.screening import Screening


@dataclass
class WordScreener:
    """Screens by word: the id of a concept in a prompt activates it, and ``very ID`` is severe.

    Attributes:
        name: What records call the screener.
        seen: Every text that it was asked about.
    """

    name: str = "words"

    def __post_init__(self) -> None:
        self.seen: list[str] = []

    def screen(self, texts: Sequence[str], concepts: Mapping[str, Concept] | None = None) -> Screening:
        """Scores of texts: 0.1 without the concept's id, 0.6 with it, 0.9 where it is severe."""
        self.seen.extend(texts)
        names = tuple(concepts or ())
        scores = [[0.9 if f"very {name}" in text else 0.6 if name in text else 0.1 for name in names] for text in texts]
        table = np.array(scores, dtype=np.float32).reshape(len(texts), len(names))
        return Screening("words:1", names, table, (0.5,) * len(names), (0.75,) * len(names))


def policy_of(*concepts: Concept, name: str = "test", **settings: str) -> Policy:
    """A policy of these concepts, without a file."""
    chosen = Settings(**settings)
    words: dict[str, Any] = {field: getattr(chosen, field) for field in Settings.__slots__}
    return Policy.from_canonical(canonical_json(snapshot(name, "", {}, words, [concept.to_dict() for concept in concepts])))
