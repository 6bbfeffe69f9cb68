"""Self-distillation of a frozen denoiser: deltas of some linear layers learn to say of a concept what something else says.

One denoiser is in memory. As it is it is the *base*; the *student* is the same with deltas added, the *teacher* with the
running mean of the student's deltas, which is what is kept in the end. A `Recipe` says what the student shall answer, and who
paints. One update: of n pictures, each painted with guidance for a text, the latents before a random step and a time within
that step's interval, as the denoiser had them; and Adam, gradients clipped to a norm of 1, on

    L = mean | student(x_t, t, said) - target |^2

in whatever the denoiser predicts (noise, velocity, flow). The latents before the first step are pure noise, as they should be.
Pictures are painted anew every ``reuse`` updates; with 1 each update has its own, as published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from safeguard.training.checkpoint import SAVED, Checkpoint, restore_state, state_of
from safeguard.training.delta_hooks import Deltas, added, layers_of, require_rows
from safeguard.training.frozen_pipeline import Course, FrozenPipeline
from safeguard.training.memory_check import require_backward, require_memory
from safeguard.training.randomness import step_rng
from safeguard.training.settings import FLAG, REAL, WHOLE, setting
from safeguard.training.text_pairs import TextPair

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class DistillationSettings:
    """The numbers of a training. ``steps`` and ``guidance`` paint the pictures, ``batch`` of them at once; ``rank`` is what is
    kept of a delta; ``strict`` trains fewer layers, ``context`` learns from whole texts with the concept in them.
    """

    updates: int = setting(60, WHOLE, "Updates of the layers.")
    batch: int = 4
    rate: float = setting(2e-4, REAL, "Learning rate of Adam.")
    steps: int = setting(10, WHOLE, "Denoising steps of the pictures that it learns on.")
    guidance: float = setting(3.0, REAL, "Guidance of these pictures.")
    reuse: int = setting(20, WHOLE, "Updates on the same pictures, before new ones are painted.")
    rank: int = setting(8, WHOLE, "Rank that is kept of a layer's change.")
    strict: int = setting(0, FLAG, "1: train the keys and values of the text alone.")
    context: int = setting(0, FLAG, "1: learn from whole texts with the concept, not from its phrases.")
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Latents ``noisy`` [n, ...] at ``time`` [n], and of each the numbers of its texts, with the concept and without."""

    noisy: Tensor
    time: Tensor
    said: Sequence[int]
    shown: Sequence[int]


Say = Callable[[Sequence[int]], Tensor]
"""What a denoiser predicts of a batch for the texts of these numbers, [n, ...], in float32."""
Target = Callable[[Batch, Say, Say], Tensor]
"""What the student shall say to ``said`` of a batch, [n, ...], of what student and base say. No gradient goes through it."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What a method teaches. ``average`` is the share of the teacher that stays at each update: at 0 it is the student.
    Pictures are the teacher's, or the base's; how far they are on their way at an update is drawn from Beta(``beta``,
    ``beta``), at 1 each step as often. ``numbers`` are the method's own. ``held`` is what else is added to the loss of a step,
    of the student's deltas.
    """

    method: str
    target: Target
    average: float = 0.0
    by_teacher: bool = False
    beta: int = 1
    numbers: Mapping[str, float] = field(default_factory=dict)
    held: Callable[[int, Deltas], Tensor] | None = None


class Distillation:
    """One training under way. It begins with the deltas ``start``, which its base has. Raises CapabilityError for a layer that
    cannot be trained, and SafeguardError where memory is short.
    """

    def __init__(
        self,
        frozen: FrozenPipeline,
        concept: str,
        pairs: Sequence[TextPair],
        settings: DistillationSettings,
        recipe: Recipe,
        *,
        start: Deltas | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self._frozen, self._settings, self._recipe = frozen, settings, recipe
        self._pairs, self._start, self._stage = pairs, dict(start or {}), f"{recipe.method}:{concept}"
        texts = list(dict.fromkeys(text for pair in pairs for text in (pair.said, pair.shown)))
        self._numbers = {text: place for place, text in enumerate(texts)}
        self._values = frozen.arguments(texts)
        self.student = self._beginning()
        self.teacher = {name: delta.detach().clone() for name, delta in self.student.items()}
        self._optimiser = torch.optim.Adam(self.student.values(), lr=settings.rate)
        self._step, self._course = 0, dict[int, tuple[Course, Sequence[TextPair]]]()
        identity = json.dumps([self._stage, dict(recipe.numbers), asdict(settings), [asdict(pair) for pair in pairs]])
        self._kept = Checkpoint(checkpoint, identity)
        self._restore()

    def _beginning(self) -> dict[str, Tensor]:
        names = layers_of(self._frozen, strict=bool(self._settings.strict))
        layers = {name: self._frozen.denoiser.get_submodule(name) for name in names}
        needed = 5 * 4 * sum(layer.in_features * layer.out_features for layer in layers.values())
        require_memory(self._frozen, needed, f"{len(names)} layers", "train fewer with --set strict=1")
        device, tensors = next(self._frozen.denoiser.parameters()).device, {}
        for name, layer in layers.items():
            begin = self._start.get(name, torch.zeros(layer.out_features, layer.in_features))
            tensors[name] = begin.detach().to(device, torch.float32, copy=True).requires_grad_()
        return tensors

    def run(self, progress: Progress | None = None) -> Deltas:
        """Train to the last update: the teacher's deltas."""
        with torch.inference_mode(False), torch.enable_grad():
            while self._step < self._settings.updates:
                if not self._course:
                    self._require_room()
                self._update()
                if progress is not None:
                    progress(self._step, self._settings.updates)
        return self.teacher

    def _require_room(self) -> None:
        """For the rows of a call in each layer, and for what an update on them keeps; ``held`` is asked on as many."""
        some, student = self.batch(self._step), list(self.student.values())
        single = Batch(some.noisy[:1], some.time[:1], some.said[:1], some.shown[:1])
        require_rows(self._frozen, list(self.student), len(some.said), lambda: self.loss(some))
        require_backward(
            self._frozen,
            lambda: self.loss(single),
            len(some.said) * (1 if self._recipe.held is None else 2),
            f"{len(student)} layers",
            known=student,
            besides=(1 if self._optimiser.state else 3) * sum(delta.nbytes for delta in student),  # gradients, and Adam's
            less=", or train fewer layers with --set strict=1",
        )

    def _update(self) -> None:
        self._optimiser.zero_grad()
        loss = self.loss(self.batch(self._step))
        if self._recipe.held is not None:
            loss = loss + self._recipe.held(self._step, self.student)
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.student.values()), 1.0)
        self._optimiser.step()
        self._step += 1
        with torch.no_grad():
            for name, delta in self.student.items():
                self.teacher[name].mul_(self._recipe.average).add_(delta, alpha=1 - self._recipe.average)
        self._save()

    def batch(self, step: int) -> Batch:
        """What one update is made on."""
        _, source = step_rng(self._settings.seed, self._stage, step)
        turn = step // self._settings.reuse
        if turn not in self._course:
            self._course = {turn: self._painted(turn)}
        course, pairs = self._course[turn]
        noisy, time = course.at(*course.places(source, self._recipe.beta))
        return Batch(noisy, time, *([self._numbers[getattr(pair, part)] for pair in pairs] for part in ("said", "shown")))

    def _painted(self, turn: int) -> tuple[Course, Sequence[TextPair]]:
        """Pictures on their way, and of which pairs they are."""
        numbers, batch = self._settings, self._settings.batch
        chosen, _ = step_rng(numbers.seed, f"{self._stage}:pictures", turn)
        pairs = [self._pairs[(turn * batch + place) % len(self._pairs)] for place in range(batch)]
        seeds = [chosen.getrandbits(48) for _ in pairs]
        with added(self._frozen.denoiser, self.teacher if self._recipe.by_teacher else self._start):
            return self._frozen.course(
                [pair.painted or pair.said for pair in pairs], seeds, numbers.steps, numbers.guidance
            ), pairs

    def loss(self, batch: Batch) -> Tensor:
        """Of the student, on one batch."""

        def say(deltas: Deltas, texts: Sequence[int]) -> Tensor:
            with added(self._frozen.denoiser, deltas):
                return self._frozen.predict(self._values, texts, batch.noisy, batch.time).float()

        with torch.no_grad():
            target = self._recipe.target(batch, lambda texts: say(self.student, texts), lambda texts: say(self._start, texts))
        return (say(self.student, batch.said) - target).square().mean()

    def _save(self) -> None:
        """Only where pictures are painted anew after it, so that a run that goes on has the same."""
        turned, over = self._step % self._settings.reuse == 0, self._step == self._settings.updates
        if over or (turned and self._step % max(SAVED, self._settings.reuse) < self._settings.reuse):
            means = {f"{name}:teacher": delta for name, delta in self.teacher.items()}
            self._kept.save(self._step, state_of(self.student, self._optimiser) | means)

    def _restore(self) -> None:
        """Go on from a checkpoint of the same training; one of another is passed over."""
        checkpoint = self._kept.load()
        if checkpoint is not None:
            self._step, tensors = checkpoint
            restore_state(self.student, self._optimiser, self._step, tensors)
            for name, delta in self.teacher.items():
                delta.copy_(tensors[f"{name}:teacher"])
