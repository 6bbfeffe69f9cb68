"""Training of ``esd`` (Erasing Concepts, arXiv 2303.07345): told the concept, predict what guidance away from it predicts.

    L = | eps_theta(x_t, t, c) - [ eps(x_t, t, c) - eta (eps(x_t, t, c) - eps(x_t, t, c_0)) ] |^2

with the unchanged denoiser's eps, on latents x_t that it paints with guidance for c: a phrase of the concept, with c_0 the
empty text, as published; with ``context=1`` a whole text with the concept, and the same without. At eta = 1 the target is what
is predicted without the concept, at 2 (the default of the authors' newer code) as far beyond it. The paper counts from c_0 on:
its eta = 1 is 2 here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from safeguard.sdk.adapter import Adapter
from safeguard.training.delta_training import learn
from safeguard.training.distillation import Batch, DistillationSettings, Recipe, Say, Target
from safeguard.training.settings import REAL, setting
from safeguard.training.task import Task
from safeguard.training.trainer import Trainer

METHOD: Final = "esd"
ETA: Final = 2.0


@dataclass(frozen=True)
class ESDSettings(DistillationSettings):
    """Those of every distillation, and ``eta``; see the module."""

    eta: float = setting(ETA, REAL, "How far away from the concept: 1 is what is predicted without it.")


def away(eta: float) -> Target:
    """What guidance away from the concept makes of what the unchanged denoiser says."""

    def target(batch: Batch, student: Say, base: Say) -> Tensor:
        with_it = base(batch.said)
        return with_it - eta * (with_it - base(batch.shown))

    return target


def recipe(eta: float = ETA) -> Recipe:
    """What ``esd`` teaches."""
    return Recipe(METHOD, away(eta), numbers={"eta": eta})


def train(task: Task) -> Adapter:
    """The deltas of the one concept of a task. Raises what `learn` raises."""
    return learn(task, recipe(task.settings.get("eta", ETA)))


trainer: Final = Trainer(
    METHOD,
    train,
    ESDSettings,
    prompts=True,
    resumes=True,
    help="Teaches linear layers to predict, for texts with the concept, what guidance away from it predicts.",
)
