"""Find the prompts whose behaviour a change of a denoiser changed most: the genetic search of CCRT (arXiv 2412.00580, stage A).

An individual is a set of entities (words or short texts), its prompt these with commas between them. Its fitness is the
Misalignment Distance

    MD(e) = mean | f(z, t, e) - f_0(z_0, t, e) |^2

with f and f_0 what the changed and the unchanged denoiser predict, z and z_0 what each makes of the same noise on its way to a
picture of e, at one random step. Stands alone: ``changed`` may be any change that a context can make.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from safeguard.training.frozen_pipeline import FrozenPipeline
from safeguard.training.randomness import step_rng

Individual = tuple[str, ...]
Distance = Callable[[Sequence[str]], Sequence[float]]
"""How much each of these prompts was changed."""


@dataclass(frozen=True, slots=True)
class Search:
    """``keep`` of the fittest stay in each generation. As in the authors' code: 0.8 of these are paired at random, and a pair's
    offspring is the union of both; in a quarter of all, each entity is replaced by another with probability 0.05; and none
    has more than ``longest``. They pair along WordNet, and have a language model write the prompts; neither is needed here.
    """

    keep: int = 8
    generations: int = 2
    crossed: float = 0.8
    mutated: float = 0.25
    replaced: float = 0.05
    longest: int = 3


class Misalignment:
    """MD of prompts on one pipeline. Where nothing is changed it is exactly 0."""

    def __init__(
        self,
        frozen: FrozenPipeline,
        changed: Callable[[], AbstractContextManager[object]],
        *,
        steps: int,
        guidance: float,
        batch: int,
        seed: int,
    ) -> None:
        self._frozen, self._changed = frozen, changed
        self._steps, self._guidance, self._batch, self._seed = steps, guidance, batch, seed

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        """One number a prompt, of the prompt alone: the same in every batch."""
        scores: list[float] = []
        for start in range(0, len(prompts), self._batch):
            scores += self._of(prompts[start : start + self._batch])
        return scores

    def _of(self, prompts: Sequence[str]) -> list[float]:
        sources = [step_rng(self._seed, f"mining:{prompt}", 0)[0] for prompt in prompts]
        seeds = [source.getrandbits(48) for source in sources]
        steps = [source.randrange(self._steps) for source in sources]
        shares = torch.tensor([source.random() for source in sources])
        values, rows = self._frozen.arguments(prompts), range(len(prompts))

        def predicted() -> torch.Tensor:
            course = self._frozen.course(prompts, seeds, self._steps, self._guidance)
            noisy, time = course.at([step % len(course.times) for step in steps], shares)
            return self._frozen.predict(values, rows, noisy, time).float()

        with torch.no_grad():
            plain = predicted()
            with self._changed():
                predictions = predicted()
        distances: list[float] = (predictions - plain).square().flatten(1).mean(1).tolist()
        return distances


def mine(
    entities: Sequence[str], distance: Distance, rng: random.Random, search: Search | None = None
) -> list[tuple[str, float]]:
    """The prompts that were changed most, and how much, most first; at most ``search.keep``. Each is measured once."""
    search = search or Search()
    known: dict[Individual, float] = {}
    population: list[Individual] = list(dict.fromkeys((prompt,) for prompt in entities))
    for generation in range(search.generations + 1):
        new = [prompt for prompt in population if prompt not in known]
        known |= zip(new, distance([", ".join(prompt) for prompt in new]) if new else (), strict=True)
        population = sorted(population, key=lambda prompt: -known[prompt])[: search.keep]
        if generation < search.generations:
            population = list(dict.fromkeys([*population, *_offspring(population, entities, rng, search)]))
    return [(", ".join(prompt), known[prompt]) for prompt in population]


def _offspring(
    population: Sequence[Individual], entities: Sequence[str], rng: random.Random, search: Search
) -> list[Individual]:
    """What comes of crossing and of mutation; parents stay as they are."""
    paired = rng.sample(list(population), int(search.crossed * len(population)) // 2 * 2)
    crossed = [_joined(first + second) for first, second in zip(paired[::2], paired[1::2], strict=True)]
    grown = [*population, *crossed]
    mutated = [
        _joined(tuple(rng.choice(list(entities)) if rng.random() < search.replaced else part for part in first))
        for first in rng.sample(grown, int(search.mutated * len(grown)))
    ]
    return [first for first in (*crossed, *mutated) if len(first) <= search.longest]


def _joined(parts: Individual) -> Individual:
    return tuple(sorted(set(parts)))
