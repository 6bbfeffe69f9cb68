"""Training of ``sdd`` (Safe Self-Distillation, arXiv 2307.05977): told the concept, predict what is predicted without it.

    L = | eps_theta(x_t, t, c_s) - sg eps(x_t, t, c_0) |^2

on latents x_t that the teacher paints with guidance for c_s; the teacher is the mean phi <- m phi + (1 - m) theta of the
student, and what is kept. c_s is a phrase of the concept and c_0 the empty text, as published; with ``context=1`` a whole text
with the concept, and the same without.

In the paper eps(x_t, t, c_0) is the student's own, which moves as it learns. Here its deltas act in a concept's rows alone when
they are used, so what stands against them is the unchanged prediction, and it is what is learnt; ``moving=1`` is as published.

Of several phrases, each is learnt from its own pictures. In the authors' code pictures are of all of them, joined by commas,
and each is learnt alone (``joined=1``); in what they write of it, it is the other way round (``joined=2``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from torch import Tensor

from safeguard.errors import SafeguardError
from safeguard.sdk.adapter import Adapter
from safeguard.training.delta_training import learn
from safeguard.training.distillation import Batch, DistillationSettings, Recipe, Say
from safeguard.training.settings import CHOICE, FLAG, REAL, setting
from safeguard.training.task import Task
from safeguard.training.text_pairs import TextPair
from safeguard.training.trainer import Trainer

METHOD: Final = "sdd"
AVERAGE: Final = 0.9  # m; 0.999 in the paper, of 1500 updates


@dataclass(frozen=True)
class SDDSettings(DistillationSettings):
    """Those of every distillation, and the method's own; see the module."""

    average: float = setting(AVERAGE, REAL, "Share of the teacher that stays at each update.")
    moving: int = setting(0, FLAG, "1: the target moves with the student, as published.")
    joined: int = setting(0, CHOICE, "Phrases joined by commas: 1 in what is painted, 2 in what is said.")


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


def joined(pairs: Sequence[TextPair], way: int) -> list[TextPair]:
    """The pairs of several phrases with all of them, joined by commas, as what is painted (1) or as what is said (2)."""
    every = ", ".join(pair.said for pair in pairs)
    if way == 1:
        return [replace(pair, painted=every) for pair in pairs]
    return [replace(pair, said=every, painted=pair.said) for pair in pairs] if way == 2 else list(pairs)


def train(task: Task) -> Adapter:
    """The deltas of the one concept of a task. Raises SafeguardError for phrases joined in whole texts, and what
    `safeguard.training.delta_training.learn` raises.
    """
    numbers = task.numbers(SDDSettings())
    if numbers.joined and (task.settings.get("context") or task.prompts):
        raise SafeguardError(f"training of {METHOD}: joined is for phrases alone; leave context=1 and the file of prompts out")
    more = {"joined": numbers.joined} if numbers.joined else {}
    own = recipe(average=numbers.average, moving=bool(numbers.moving))
    return learn(task, own, partial(joined, way=numbers.joined), **more)


trainer: Final = Trainer(
    METHOD,
    train,
    SDDSettings,
    prompts=True,
    resumes=True,
    help="Teaches linear layers to predict, for texts with the concept, what is predicted without it.",
)
