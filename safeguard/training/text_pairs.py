"""Texts to learn from: each with a concept in it, beside the same without."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from safeguard.errors import SafeguardError
from safeguard.policy import Concept
from safeguard.training.task import Task


@dataclass(frozen=True, slots=True)
class TextPair:
    """``shown`` is a text without the concept, ``said`` the one that it is told from by the concept. Pictures are of what is
    said, or where it is another text, of what is ``painted``.
    """

    shown: str
    said: str
    painted: str = ""


def pairs_of(task: Task, concept: Concept) -> list[TextPair]:
    """``task.count`` pairs of a concept: of the task's prompts, or of the demo world. Raises SafeguardError where the
    demo world has no captions of the concept, and the task no prompts.
    """
    from safeguard_demo.world import CONCEPTS

    if task.prompts:
        return prompt_pairs(task.prompts[: task.count], concept.phrases)
    if concept.id not in CONCEPTS:
        raise SafeguardError(f"the demo world has no captions of {concept.id!r}; give ordinary prompts with --prompts")
    return demo_pairs(concept.id, task.count, task.seed)


def demo_pairs(concept: str, count: int, seed: int = 0) -> list[TextPair]:
    """Pairs of the demo world, from its training captions: shown without the concept, said with it."""
    from safeguard_demo.captions import combinations, write
    from safeguard_demo.world import BENIGN_PLACES, Scene

    rng, pool, found = random.Random(f"{seed}:{concept}"), combinations("train", BENIGN_PLACES), []
    for _ in range(count):
        scene = Scene(*rng.choice(pool))
        said = write(scene, (concept,), "train", rng)
        found.append(TextPair(write(scene, (), "train", rng), said))
    return found


def prompt_pairs(prompts: Sequence[str], phrases: Sequence[str]) -> list[TextPair]:
    """Pairs from ordinary prompts: shown as they are, said with one of the concept's phrases behind."""
    return [TextPair(text, f"{text}, {phrases[place % len(phrases)]}") for place, text in enumerate(prompts)]
