"""Training what erasers need besides their code: a trainer a method, each for one pipeline and some concepts."""

from safeguard.training.settings import setting
from safeguard.training.task import Made, Task
from safeguard.training.trainer import Trainer, check, train, trainer_names, trainer_of

__all__ = ["Made", "Task", "Trainer", "check", "setting", "train", "trainer_names", "trainer_of"]
