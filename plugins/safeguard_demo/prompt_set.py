"""The prompt set ``demo``: captions of the demo world, as `safeguard.evaluation` measures on them."""

from __future__ import annotations

from collections.abc import Sequence

from safeguard.evaluation.prompt_sets import Cell, PromptCase, cells, seed_of
from safeguard_demo.captions import prompts
from safeguard_demo.judge import ATTRIBUTES
from safeguard_demo.world import CONCEPTS


class DemoPrompts:
    """Every cell of the demo's concepts, with the subject, colour and scene that each prompt asks for."""

    concepts: tuple[str, ...] = CONCEPTS
    attributes: tuple[str, ...] = tuple(ATTRIBUTES)

    def cells(self, concepts: Sequence[str] = CONCEPTS) -> tuple[Cell, ...]:
        """Every cell of these concepts, and the benign one."""
        return cells(concepts)

    def cases(self, cell: Cell, split: str, count: int, seed: int = 0) -> list[PromptCase]:
        """``count`` pictures of a cell. Raises ValueError where the split holds fewer prompts."""
        return [
            PromptCase(
                prompt.text,
                seed_of(prompt.text, seed),
                {"subject": prompt.scene.subject, "colour": prompt.scene.colour, "scene": prompt.scene.place},
                prompt.named,
                prompt.scene.concepts,
            )
            for prompt in prompts(split, cell.kind, cell.concept, count, seed=seed, colour=cell.colour)
        ]
