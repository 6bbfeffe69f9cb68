"""What is measured on: cells of prompts, each prompt with a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from safeguard.demo.captions import prompts
from safeguard.demo.world import CONCEPTS, Scene


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of prompt: ``explicit`` (the concept is named), ``implicit`` (it comes with the place), or ``benign``."""

    kind: str
    concept: str | None = None

    @property
    def name(self) -> str:
        return self.kind if self.concept is None else f"{self.kind}-{self.concept}"


@dataclass(frozen=True, slots=True)
class Case:
    """One picture to make: its prompt, its seed, and the scene that the prompt asks for."""

    text: str
    seed: int
    scene: Scene


BENIGN = Cell("benign")


def cells(concepts: Sequence[str] = CONCEPTS) -> tuple[Cell, ...]:
    """Every cell of these concepts, and the benign one."""
    return (*(Cell(kind, concept) for concept in concepts for kind in ("explicit", "implicit")), BENIGN)


def cases(cell: Cell, split: str, count: int, seed: int = 0) -> list[Case]:
    """``count`` pictures of a cell. Raises ValueError where the split holds fewer prompts.

    A case's seed depends on ``seed`` and its prompt alone, so that every method paints it from the same noise.
    """
    found = prompts(split, cell.kind, cell.concept, count, seed=seed)
    return [Case(prompt.text, _seed_of(prompt.text, seed), prompt.scene) for prompt in found]


def _seed_of(text: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:4], "big")
