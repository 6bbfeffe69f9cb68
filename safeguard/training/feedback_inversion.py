"""Inversion of feedback (stage 3 of HFI, arXiv 2407.21032): a learned word for what a reward model calls the concept.

    v* = argmin_v E_{x in X_K, eps, t} [ r~(x) | target - denoiser(x_t, t, tau("... v ...")) |^2 ]

with X_K the K pictures of the highest reward, in whatever the denoiser predicts; nothing but the word's rows is learnt. How
the paper makes r~ of the rewards is not known; here it is K softmax(r), of mean 1. That goes by differences of r, which are all
that rankings say: by the model of Bradley and Terry it is K times the chance that a picture is put highest of these. Where all
rewards are the same it is plain textual inversion (arXiv 2208.01618).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.call_values import Values, pick
from safeguard.training.checkpoint import SAVED, Checkpoint, restore_state, state_of
from safeguard.training.frozen_pipeline import FrozenPipeline, weights_frozen
from safeguard.training.memory_check import require_backward
from safeguard.training.randomness import step_rng
from safeguard.training.reward import Scores
from safeguard.training.settings import REAL, WHOLE, setting
from safeguard.training.textual_inversion import LearnedWord, Lesson

TEMPLATES: Final = ("{}", "a picture with {}", "a picture of {}", "a small picture with {}", "a drawing with {}", "here is {}")
"""Texts in which a word is learnt, as plain as they can be: whatever the pictures have in common is the word's."""

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class InversionSettings:
    """The numbers of an inversion: updates of Adam at a constant ``rate``, each on ``batch`` pictures."""

    updates: int = setting(150, WHOLE, "Updates of the words.")
    batch: int = 8
    rate: float = setting(0.005, REAL, "Learning rate of Adam.")
    seed: int = 0


def best(rewards: Scores, count: int, above: float = float("-inf")) -> tuple[list[int], Tensor]:
    """The places of the ``count`` highest rewards [n], those alone that are above a bound, and their weights r~ [K]."""
    order = sorted(range(len(rewards)), key=lambda place: (-float(rewards[place]), place))
    places = [place for place in order if rewards[place] > above][:count]
    return places, len(places) * torch.from_numpy(rewards)[places].double().softmax(0).float()


class Inversion:
    """One training of words under way, on ``latents`` [n, ...] with weights [n], or one at each place of a latent: [n, ...].
    ``texts`` are those that a picture may be told of, one sequence each; where there are none, `TEMPLATES` around the word.

    ``frozen`` is a pipeline that knows the words (`safeguard.training.textual_inversion.beside`). The same pipeline, pictures
    and settings give the same words; at ``checkpoint`` a run that was stopped goes on. Raises CapabilityError where the
    pipeline's denoiser has no place for such latents, or nothing of its text reaches it with a gradient.
    """

    def __init__(
        self,
        frozen: FrozenPipeline,
        words: Sequence[LearnedWord],
        latents: Tensor,
        weights: Tensor,
        settings: InversionSettings | None = None,
        *,
        texts: Sequence[Sequence[str]] = (),
        checkpoint: Path | None = None,
    ) -> None:
        self._frozen, self._settings = frozen, settings or InversionSettings()
        self._latents, self._weights = latents, weights.to(latents.device)
        usual = [text.format(words[0].token) for text in TEMPLATES]
        self._texts, self._stage = list(texts) or [usual] * len(latents), f"inversion:{words[0].token}"
        self._first, self.lesson = words, Lesson(frozen.pipe, words)
        for row in self.lesson.rows.values():
            row.grad = torch.zeros_like(row)  # a word that no text of a batch says has none of its own
        self._optimiser = torch.optim.Adam(self.lesson.rows.values(), lr=self._settings.rate)
        self._step = 0
        inputs = [[word.digest for word in words], self._weights.tolist(), latents.double().sum().item()]
        identity = [self._texts, asdict(self._settings), *inputs]
        self._kept = Checkpoint(checkpoint, json.dumps(identity))
        self._restore()
        with torch.no_grad():
            frozen.require_latents(frozen.arguments(self._texts[0][:1]), latents)

    def loss(self, step: int, rows: int | None = None) -> Tensor:
        """On the batch of one step, or on fewer ``rows``: pictures, texts, times and noise are drawn for it alone."""
        chosen, source = step_rng(self._settings.seed, self._stage, step)
        count = rows or self._settings.batch
        places = [chosen.randrange(len(self._latents)) for _ in range(count)]
        texts = [chosen.choice(self._texts[place]) for place in places]
        values = self._frozen.arguments(texts, gradients=torch.is_grad_enabled())
        if torch.is_grad_enabled():
            self._require_gradient(values)
        squares = self._frozen.squares(values, self._latents[places], range(count), source)
        weights = self._weights[places]
        return (weights * (squares.flatten(1).mean(1) if weights.dim() == 1 else squares)).mean()

    def run(self, progress: Progress | None = None) -> list[LearnedWord]:
        """Learn to the last update, and put the words as they are then into the pipeline."""
        with torch.inference_mode(False), torch.enable_grad(), weights_frozen(self._frozen.denoiser), self.lesson.under_way():
            per_latent, rows = partial(self.loss, self._step, 1), self.lesson.rows.values()
            require_backward(self._frozen, per_latent, self._settings.batch, "a learned word", known=rows)
            while self._step < self._settings.updates:
                self._optimiser.zero_grad(set_to_none=False)
                self.loss(self._step).backward()
                self._optimiser.step()
                self._step += 1
                if self._step % SAVED == 0 or self._step == self._settings.updates:
                    self._kept.save(self._step, state_of(self.lesson.rows, self._optimiser))
                if progress is not None:
                    progress(self._step, self._settings.updates)
        self.lesson.settle()
        return self.lesson.words

    def report(self) -> dict[str, float]:
        """The loss with the words as they began and as they are now, on batches that no update saw, and how far they went, as a
        share of their length.
        """
        steps, first = range(10**6, 10**6 + 8), Lesson(self._frozen.pipe, self._first)
        with torch.no_grad():
            after, before = self._mean(self.lesson, steps), self._mean(first, steps)
            moved = sum(float((row - first.rows[name]).square().sum()) for name, row in self.lesson.rows.items())
            whole = sum(float(row.square().sum()) for row in first.rows.values())
        return {"loss_before": before, "loss_after": after, "moved": (moved / whole) ** 0.5}

    def _mean(self, lesson: Lesson, steps: Sequence[int]) -> float:
        with lesson.under_way():
            return sum(self.loss(step).item() for step in steps) / len(steps)

    def _require_gradient(self, values: Values) -> None:
        texts = [pick(values, path) for path in self._frozen.text.every]
        parts = [part for text in texts for part in (text if isinstance(text, (list, tuple)) else [text])]
        if not any(isinstance(part, Tensor) and part.requires_grad for part in parts):
            name = type(self._frozen.pipe).__name__
            raise CapabilityError(
                f"no gradient comes through the text of {name} to a learned word; learn it beside another pipeline",
                pipeline=name,
                missing="gradients",
            )

    def _restore(self) -> None:
        """Go on from a checkpoint of the same training; one of another is passed over."""
        checkpoint = self._kept.load()
        if checkpoint is not None:
            self._step, tensors = checkpoint
            restore_state(self.lesson.rows, self._optimiser, self._step, tensors)
