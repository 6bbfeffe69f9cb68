"""Training of ``sdd`` (Safe Self-Distillation, arXiv 2307.05977): told the concept, predict what is predicted without it.

    L = | eps_theta(x_t, t, c_s) - sg eps(x_t, t, c_0) |^2

on latents x_t that the teacher paints with guidance for c_s; the teacher is the mean phi <- m phi + (1 - m) theta of the
student, and what is kept. c_s is a phrase of the concept and c_0 the empty text, as published; with ``context=1`` a whole text
with the concept, and the same without.

In the paper eps(x_t, t, c_0) is the student's own, which moves as it learns. Here its deltas act in a concept's rows alone when
they are used, so what stands against them is the unchanged prediction, and it is what is learnt; ``moving=1`` is as published.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from safeguard.erasing import Adapter
from safeguard.training.deltas import learn
from safeguard.training.distil import Batch, Recipe, Say
from safeguard.training.task import Task

METHOD: Final = "sdd"
AVERAGE: Final = 0.9  # m; 0.999 in the paper, of 1500 updates


def without(batch: Batch, student: Say, base: Say) -> Tensor:
    """What the unchanged denoiser says to the texts without the concept."""
    return base(batch.shown)


def own_without(batch: Batch, student: Say, base: Say) -> Tensor:
    """What the student itself says to them."""
    return student(batch.shown)


def recipe(*, average: float = AVERAGE, moving: bool = False) -> Recipe:
    """What ``sdd`` teaches."""
    numbers = {"average": average, "moving": int(moving)}
    return Recipe(METHOD, own_without if moving else without, average, by_teacher=True, numbers=numbers)


def train(task: Task) -> Adapter:
    """The deltas of the one concept of a task. Raises what `learn` raises."""
    average, moving = task.settings.get("average", AVERAGE), bool(task.settings.get("moving", 0))
    return learn(task, recipe(average=average, moving=moving))
