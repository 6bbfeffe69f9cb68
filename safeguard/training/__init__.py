"""Training what erasers need besides their code: one module a method, each for one pipeline and some concepts."""

from safeguard.training.task import METHODS, Made, Task, TrainingMethod, check, train

__all__ = ["METHODS", "Made", "Task", "TrainingMethod", "check", "train"]
