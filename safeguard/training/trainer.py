"""How an eraser is trained: trainers by entry points of the group ``safeguard.trainers``, and the settings that each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Final

from safeguard._entry_points import load, names
from safeguard.errors import PluginError, SafeguardError
from safeguard.training.settings import NoSettings, SettingInfo, settings_of
from safeguard.training.task import Made, Task

GROUP: Final = "safeguard.trainers"


@dataclass(frozen=True, slots=True)
class Trainer:
    """How an eraser is trained.

    Attributes:
        name: The eraser's name, and the entry point's.
        train: Takes a `Task` and gives an adapter, or a learned word.
        settings: A frozen dataclass type; its fields are what ``--set`` takes. Make them with `setting`, and read them in
            ``train`` with ``task.numbers(Settings())``.
        count: How many prompts of each kind where a task names none.
        batch: How many pictures at once where a task names none.
        prompts: It can learn from ordinary prompts that it is given.
        resumes: It keeps a checkpoint and goes on from it.
        feedback: It can learn from a store of what people said.
        needs: What it cannot do without: ``data``, ``judge``.
        help: What it learns, in a sentence.
    """

    name: str
    train: Callable[[Task], Made]
    settings: type[Any] = NoSettings
    count: int = 48
    batch: int = 4
    prompts: bool = False
    resumes: bool = False
    feedback: bool = False
    needs: frozenset[str] = frozenset()
    help: str = ""

    def options(self) -> Mapping[str, SettingInfo]:
        """What ``--set`` takes, by name."""
        return settings_of(self.settings)

    def run(self, task: Task) -> Made:
        """Train on a task, with the trainer's own numbers where the task names none.

        Raises:
            SafeguardError: The task lacks training data or a judge that the trainer needs.
        """
        if "data" in self.needs:
            task.world()
        if "judge" in self.needs:
            task.judging()
        options = self.options()
        settings = {option: options[option].kind.cast(number) for option, number in task.settings.items()}
        return self.train(replace(task, count=task.count or self.count, batch=task.batch or self.batch, settings=settings))


def trainer_names() -> list[str]:
    """The erasers that can be trained: those whose trainers are installed. Nothing is imported."""
    return names(GROUP)


def trainer_of(name: str) -> Trainer:
    """The trainer of the eraser of that name.

    Raises:
        SafeguardError: No trainer of that name is installed.
        PluginError: It is registered twice, cannot be imported, or is no `Trainer` of that name.
    """
    if name not in trainer_names():
        raise SafeguardError(f"eraser {name!r} has no training; there is one for {', '.join(trainer_names()) or 'none'}")
    trainer = load(GROUP, name, "trainer")
    if not isinstance(trainer, Trainer) or trainer.name != name or not is_dataclass(trainer.settings):
        message = "is no safeguard.training.Trainer of that name, with a dataclass for settings"
        raise PluginError(message, name=name, distribution=f"entry point of {GROUP}")
    return trainer


def check(
    name: str, *, settings: Mapping[str, float], prompts: bool = False, resumes: bool = False, feedback: bool = False
) -> Trainer:
    """The trainer of that name. Raises SafeguardError where it is asked for what it does not have."""
    trainer = trainer_of(name)
    options = trainer.options()
    unknown = [option for option in settings if option not in options]
    if unknown:
        known = f"it has {', '.join(options)}" if options else "it has none"
        raise SafeguardError(f"training of {name} has no setting {unknown[0]!r}; {known}")
    for option, number in settings.items():
        if not options[option].kind.holds(number):
            raise SafeguardError(f"training of {name}: {option} is {options[option].kind.words}, not {number:g}")
    if prompts and not trainer.prompts:
        raise SafeguardError(f"training of {name} does not learn from prompts; leave the file of prompts out")
    if feedback and not trainer.feedback:
        raise SafeguardError(f"training of {name} goes by no feedback; leave --feedback and --reward out")
    if resumes and not trainer.resumes:
        raise SafeguardError(f"training of {name} keeps no checkpoint; start it without one")
    return trainer


def train(name: str, task: Task) -> Made:
    """Train what the eraser ``name`` needs. Raises SafeguardError where it has no training, or one that does not take this."""
    judged = (task.feedback, task.reward) != (None, None)
    trainer = check(
        name, settings=task.settings, prompts=bool(task.prompts), resumes=task.checkpoint is not None, feedback=judged
    )
    return trainer.run(task)
