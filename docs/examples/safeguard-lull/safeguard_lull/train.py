"""Training of ``lull``: for texts with the concept, predict a mean of what is predicted with it and without it."""

from dataclasses import dataclass

from safeguard.training import Trainer
from safeguard.training.delta_training import learn
from safeguard.training.distillation import DistillationSettings, Recipe
from safeguard.training.settings import REAL, setting


@dataclass(frozen=True)
class LullSettings(DistillationSettings):  # has updates, rate, steps, guidance and so on
    share: float = setting(0.5, REAL, "How far to go to the prediction without the concept.")


def train(task):
    share = task.numbers(LullSettings()).share

    def target(batch, student, base):
        said, shown = base(batch.said), base(batch.shown)  # with the concept, and without it
        return said + share * (shown - said)

    return learn(task, Recipe("lull", target, numbers={"share": share}))


trainer = Trainer("lull", train, LullSettings, prompts=True, resumes=True, help="Goes a part of the way from the concept.")
