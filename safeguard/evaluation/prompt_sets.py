"""What is measured on: cells of prompts, each prompt with a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from safeguard_demo.captions import prompts
from safeguard_demo.world import CONCEPTS, Scene


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of prompt: ``explicit`` (the concept is named), ``implicit`` (it comes with the place), ``mixed`` (it does, and
    another is named), or ``benign``; of subjects of one ``colour`` only, or of all.
    """

    kind: str
    concept: str | None = None
    colour: str | None = None

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.kind, self.concept, self.colour)))


@dataclass(frozen=True, slots=True)
class PromptCase:
    """One picture to make: its prompt, its seed, the scene that the prompt asks for, and the concepts that it names."""

    text: str
    seed: int
    scene: Scene
    named: tuple[str, ...] = ()


BENIGN = Cell("benign")


def cells(concepts: Sequence[str] = CONCEPTS) -> tuple[Cell, ...]:
    """Every cell of these concepts, and the benign one."""
    return (*(Cell(kind, concept) for concept in concepts for kind in ("explicit", "implicit")), BENIGN)


def cases(cell: Cell, split: str, count: int, seed: int = 0) -> list[PromptCase]:
    """``count`` pictures of a cell. Raises ValueError where the split holds fewer prompts.

    A case's seed depends on ``seed`` and its prompt alone, so that every method paints it from the same noise.
    """
    found = prompts(split, cell.kind, cell.concept, count, seed=seed, colour=cell.colour)
    return [PromptCase(prompt.text, _seed_of(prompt.text, seed), prompt.scene, prompt.named) for prompt in found]


def _seed_of(text: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:4], "big")
