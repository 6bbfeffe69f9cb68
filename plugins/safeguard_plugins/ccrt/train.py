"""Training of ``ccrt`` (Continuous Concepts Removal, arXiv 2412.00580): concepts taken out one after another.

For each concept of the sequence, from the deltas theta_(i-1) that those before it left:

A. a probe is trained on the removal loss alone, and prompts are mined whose behaviour it changed most (`mining`);
B. L = L_rm + lambda L_reg is trained from theta_(i-1) on: L_rm is that of ``esd`` (or ``sdd``) with theta_(i-1) as base, and

    L_reg = mean | eps_theta(x, t, e) - eps_*(x, t, e) |^2

holds the mined prompts e, drawn anew at each update, where the *unchanged* pipeline has them, on its own latents x. (In the
authors' code the prompt is drawn once, the teacher is theta_(i-1), and both are asked at latents of their own.)

Then every earlier concept is examined. Where more is left of one than its own stage left, by more than ``tolerance``, the run
stops. It goes by ``along`` of `Holdout`: guidance away from a concept makes the length of what is left large again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

import safeguard_plugins.esd.train as esd
import safeguard_plugins.sdd.train as sdd
from safeguard.errors import SafeguardError
from safeguard.sdk.adapter import Adapter
from safeguard.training.checkpoint import Checkpoint
from safeguard.training.delta_hooks import Deltas, added
from safeguard.training.delta_training import adapter_of, frozen_of, lessons_of, told
from safeguard.training.distillation import Distillation, DistillationSettings, Progress, Recipe
from safeguard.training.frozen_pipeline import Course, FrozenPipeline, weights_frozen
from safeguard.training.holdout import Holdout
from safeguard.training.mining import Misalignment, Search, mine
from safeguard.training.randomness import step_rng
from safeguard.training.settings import FLAG, REAL, WHOLE, setting
from safeguard.training.task import Task
from safeguard.training.text_pairs import TextPair
from safeguard.training.trainer import Trainer

METHOD: Final = "ccrt"
Told = Callable[[str], Progress]


@dataclass(frozen=True)
class CCRTSettings:
    """``hold`` is lambda (0.01 in the authors' code); ``probe`` the updates of stage A, ``pool`` the entities that it begins
    with, ``mined`` what it keeps; ``tolerance`` what an earlier concept may come back by.
    """

    hold: float = setting(0.3, REAL, "Weight of what holds other prompts where they were.")
    probe: int = setting(30, WHOLE, "Updates of the probe by which prompts are mined.")
    pool: int = setting(24, WHOLE, "Subjects and places that mining begins with.")
    mined: int = setting(8, WHOLE, "Prompts that are held.")
    tolerance: float = setting(0.2, REAL, "By how much an earlier concept may come back.")


@dataclass(frozen=True)
class CCRTOptions(CCRTSettings, DistillationSettings):
    """All that a user may set, with what the removal loss is."""

    eta: float = setting(esd.ETA, REAL, "How far away from the concept, as of esd.")
    sdd: int = setting(0, FLAG, "1: the removal loss is that of sdd.")


class Alignment:
    """L_reg on some prompts: how far a student is from the unchanged denoiser on the way to their pictures."""

    def __init__(self, frozen: FrozenPipeline, prompts: Sequence[str], settings: DistillationSettings) -> None:
        self._frozen, self._settings = frozen, settings
        self._values = frozen.arguments(prompts)
        self._course = self._painted(prompts)

    def _painted(self, prompts: Sequence[str]) -> Course:
        numbers, parts = self._settings, list[Course]()
        for start in range(0, len(prompts), numbers.batch):
            some = prompts[start : start + numbers.batch]
            seeds = [step_rng(numbers.seed, f"alignment:{prompt}", 0)[0].getrandbits(48) for prompt in some]
            parts.append(self._frozen.course(some, seeds, numbers.steps, numbers.guidance))
        return Course(torch.cat([part.latents for part in parts], 1), parts[0].times)

    def loss(self, step: int, deltas: Deltas) -> Tensor:
        """At one update, of as many prompts as its batch has pictures, at most all."""
        chosen, source = step_rng(self._settings.seed, "alignment", step)
        count = self._course.latents.shape[1]
        rows = sorted(chosen.sample(range(count), min(count, self._settings.batch)))
        noisy, time = (part[rows] for part in self._course.at(*self._course.places(source)))
        with torch.no_grad():
            plain = self._frozen.predict(self._values, rows, noisy, time).float()
        with added(self._frozen.denoiser, deltas):
            own = self._frozen.predict(self._values, rows, noisy, time).float()
        return (own - plain).square().mean()


def train(task: Task) -> Adapter:
    """The deltas of a task's concepts, in their order. Raises SafeguardError where an earlier concept comes back, and what
    `safeguard.training.delta_training.learn` raises.
    """
    settings, numbers, options = task.numbers(DistillationSettings()), task.numbers(CCRTSettings()), task.numbers(CCRTOptions())
    frozen = frozen_of(task)
    recipe = sdd.recipe() if options.sdd else esd.recipe(options.eta)
    taught = task if settings.context else replace(task, prompts=())
    lessons = {concept.id: lessons_of(taught, concept, settings) for concept in task.concepts}
    with weights_frozen(frozen.denoiser):
        sequence = Removal(frozen, lessons, settings, recipe, numbers, entities_of(task), task.checkpoint)
        trained = sequence.run(lambda what: told(task, what, settings.reuse))
        settings_used: dict[str, Any] = {"sequence": list(lessons), "base": recipe.method, **recipe.numbers, **asdict(numbers)}
        return adapter_of(frozen, METHOD, trained, settings.rank, {**settings_used, **asdict(settings)}, sequence.marks)


def entities_of(task: Task) -> list[str]:
    """What prompts to mine are made of: the task's prompts, or what the training data names."""
    return list(task.prompts) or list(task.world().entities())


class Removal:
    """A sequence under way. At ``checkpoint`` is where it stands after a stage, and beside it where the stage stands."""

    def __init__(
        self,
        frozen: FrozenPipeline,
        lessons: Mapping[str, Sequence[TextPair]],
        settings: DistillationSettings,
        recipe: Recipe,
        numbers: CCRTSettings,
        entities: Sequence[str],
        checkpoint: Path | None = None,
    ) -> None:
        self._frozen, self._lessons, self._settings = frozen, lessons, settings
        self._recipe, self._numbers, self._entities, self._file = recipe, numbers, entities, checkpoint
        self._exams: dict[str, Holdout] = {}
        pairs = {name: [asdict(pair) for pair in some] for name, some in lessons.items()}
        parts = [recipe.method, dict(recipe.numbers), asdict(settings), asdict(numbers), list(entities), pairs]
        self._kept = Checkpoint(checkpoint, json.dumps(parts))

    def run(self, told: Told) -> Deltas:
        """Every concept in turn: the deltas that take all of them."""
        done, deltas, after = 0, dict[str, Tensor](), dict[str, float]()
        checkpoint = self._kept.load()
        if checkpoint is not None:
            done, tensors = checkpoint
            names = list(self._lessons)[:done]
            after = dict(zip(names, tensors.pop("after:").tolist(), strict=True))
            deltas = tensors
        for stage, concept in enumerate(list(self._lessons)[done:], done):
            deltas = dict(self._stage(stage, concept, deltas, told))
            after[concept] = self._examined(concept, deltas, after)
            self._kept.save(stage + 1, {**deltas, "after:": torch.tensor(list(after.values()))})
            for part in ("probe", "erase"):
                if self._file is not None:
                    self._beside(stage, part).unlink(missing_ok=True)
        return deltas

    def marks(self, deltas: Deltas) -> dict[str, float]:
        """What is left of each concept."""
        return {f"{name}_{mark}": value for name in self._lessons for mark, value in self._exam(name).marks(deltas).items()}

    def _stage(self, stage: int, concept: str, start: Deltas, told: Told) -> Deltas:
        held = None
        if self._numbers.hold:
            brief = replace(self._settings, updates=self._numbers.probe)
            probe = self._distillation(stage, "probe", concept, brief, start).run(told(f"{concept}: probe"))
            aligned = Alignment(self._frozen, self.mined(concept, probe), self._settings)

            def held(step: int, deltas: Deltas) -> Tensor:
                return self._numbers.hold * aligned.loss(step, deltas)

        whole = self._distillation(stage, "erase", concept, self._settings, start, held)
        return whole.run(told(f"{concept}: updates"))

    def _distillation(
        self, stage: int, part: str, concept: str, settings: DistillationSettings, start: Deltas, held: Any = None
    ) -> Distillation:
        file = None if self._file is None else self._beside(stage, part)
        recipe, pairs = replace(self._recipe, held=held), self._lessons[concept]
        return Distillation(self._frozen, concept, pairs, settings, recipe, start=start, checkpoint=file)

    def _beside(self, stage: int, part: str) -> Path:
        if self._file is None:
            raise RuntimeError("a training without a checkpoint has no files beside it")
        return self._file.with_name(f"{self._file.name}.{stage}.{part}")

    def mined(self, concept: str, probe: Deltas) -> list[str]:
        """The prompts that the probe of a concept changed most."""
        rng, _ = step_rng(self._settings.seed, f"mining:{concept}", 0)
        pool = rng.sample(list(self._entities), min(self._numbers.pool, len(self._entities)))
        numbers = self._settings
        distance = Misalignment(
            self._frozen,
            lambda: added(self._frozen.denoiser, probe),
            steps=numbers.steps,
            guidance=numbers.guidance,
            batch=numbers.batch,
            seed=numbers.seed,
        )
        return [prompt for prompt, _ in mine(pool, distance, rng, Search(self._numbers.mined))]

    def _exam(self, concept: str) -> Holdout:
        if concept not in self._exams:
            numbers, pairs = self._settings, self._lessons[concept]
            self._exams[concept] = Holdout(
                self._frozen, concept, pairs, count=numbers.batch, steps=numbers.steps, seed=numbers.seed
            )
        return self._exams[concept]

    def _examined(self, concept: str, deltas: Deltas, after: Mapping[str, float]) -> float:
        """What is left of the concept. Raises SafeguardError where an earlier one came back."""
        for earlier, left in after.items():
            now = self._exam(earlier).marks(deltas)["along"]
            if now > left + self._numbers.tolerance:
                raise SafeguardError(
                    f"training of {METHOD}: taking {concept!r} brought {earlier!r} back, from {left:.2f} of its guidance to "
                    f"{now:.2f}; train {concept!r} for fewer updates or by itself, or allow more with --set tolerance=NUMBER"
                )
        return self._exam(concept).marks(deltas)["along"]


trainer: Final = Trainer(
    METHOD,
    train,
    CCRTOptions,
    prompts=True,
    resumes=True,
    help="As esd, for several concepts one after another, while other prompts are held where they were.",
)
