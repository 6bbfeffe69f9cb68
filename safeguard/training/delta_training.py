"""From a task to an adapter of deltas, for methods that are a `Recipe`: what they learn from, by which numbers, how it went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safeguard.errors import SafeguardError
from safeguard.policy import Concept
from safeguard.sdk.adapter import Adapter
from safeguard.sdk.delta_eraser import factorise, whole
from safeguard.training.delta_hooks import Deltas
from safeguard.training.distillation import Distillation, DistillationSettings, Recipe
from safeguard.training.frozen_pipeline import FrozenPipeline, weights_frozen
from safeguard.training.holdout import Holdout
from safeguard.training.task import Task
from safeguard.training.text_pairs import TextPair


def frozen_of(task: Task) -> FrozenPipeline:
    """The task's pipeline, to learn beside."""
    return FrozenPipeline(task.pipe, task.call)


def lessons_of(task: Task, concept: Concept, settings: DistillationSettings) -> list[TextPair]:
    """What a concept is learnt from: its phrases, each against the empty text; or, by ``context`` or where the task has
    prompts, texts with it, each against the same without.
    """
    if settings.context or task.prompts:
        return task.pairs(concept)
    return [TextPair("", phrase) for phrase in concept.phrases]


def told(task: Task, what: str, anew: int | None = None) -> Callable[[int, int], None]:
    """Tells the task's listener that updates begin, and of those that are done, of how many."""
    before = 0
    task.advance(what, 0)

    def progress(now: int, of: int) -> None:
        nonlocal before
        task.advance(what, now - before, of, anew)
        before = now

    return progress


def the_one(task: Task, method: str) -> Concept:
    """The only concept of a task. Raises SafeguardError where there are several."""
    if len(task.concepts) != 1:
        raise SafeguardError(f"training of {method} is of one concept; name it with --concept")
    return task.concepts[0]


def learn(
    task: Task, recipe: Recipe, /, change: Callable[[Sequence[TextPair]], Sequence[TextPair]] = lambda pairs: pairs, **more: Any
) -> Adapter:
    """The deltas of the one concept of a task, learnt from what ``change`` makes of its lessons; ``more`` is said of them.

    Raises SafeguardError for several concepts, where memory is short, and what `Task.pairs` raises; CapabilityError where
    nothing can be learnt.
    """
    concept, settings, frozen = the_one(task, recipe.method), task.numbers(DistillationSettings()), frozen_of(task)
    return taught(task, recipe, frozen, concept, change(lessons_of(task, concept, settings)), **more)


def taught(
    task: Task, recipe: Recipe, frozen: FrozenPipeline, concept: Concept, pairs: Sequence[TextPair], /, **more: Any
) -> Adapter:
    """The deltas that a recipe teaches beside ``frozen`` of these pairs; ``more`` is said of them besides."""
    settings = task.numbers(DistillationSettings())
    with weights_frozen(frozen.denoiser):
        training = Distillation(frozen, concept.id, pairs, settings, recipe, checkpoint=task.checkpoint)
        deltas = training.run(told(task, f"{concept.id}: updates", settings.reuse))
        exam = Holdout(frozen, concept.id, pairs, count=settings.batch, steps=settings.steps, seed=settings.seed)
        settings_used = {"concept": concept.id, "pairs": len(pairs), **recipe.numbers, **asdict(settings), **more}
        return adapter_of(frozen, recipe.method, deltas, settings.rank, settings_used, exam.marks)


def adapter_of(
    frozen: FrozenPipeline,
    method: str,
    deltas: Deltas,
    rank: int,
    settings_used: Mapping[str, Any],
    marks: Callable[[Deltas], Mapping[str, float]],
) -> Adapter:
    """The adapter of the ``rank`` largest directions of these deltas; ``marks`` reports on what these do."""
    inside = f"{frozen.name}."
    tensors, energy = factorise({inside + name: delta for name, delta in deltas.items()}, rank)
    trained = {name.removeprefix(inside): delta.to(deltas[name.removeprefix(inside)]) for name, delta in whole(tensors).items()}
    report = {**marks(trained), "energy_kept": energy}
    return Adapter(method, frozen.attachment.fingerprint, tensors, settings_used, report)
