"""Training of ``self_discovery`` (arXiv 2311.17216): the direction that brings into pictures what their text does not say.

Pictures x are painted by the frozen pipeline from one text, and the denoiser is told another, y, at training; so a vector c,
added in its middle, has to bring what the text does not say (equation 3 of the paper):

    c* = argmin_c E_{x, eps, t} | target - denoiser(x_t, t, y; h <- h + c) |^2

No label and no classifier has part in it. Away from a concept, the pictures are of texts without it and y names it: c is the
anti-concept. Towards it (an attribute of the fairness use), it is the other way round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.sdk.adapter import Adapter
from safeguard.sdk.pipeline import FeatureSite
from safeguard.training.checkpoint import SAVED, Checkpoint, restore_state, state_of
from safeguard.training.delta_training import frozen_of, the_one, told
from safeguard.training.frozen_pipeline import FrozenPipeline, changed_output, weights_frozen
from safeguard.training.memory_check import require_backward
from safeguard.training.randomness import step_rng
from safeguard.training.settings import FLAG, REAL, WHOLE, setting
from safeguard.training.task import Task
from safeguard.training.text_pairs import TextPair
from safeguard.training.trainer import Trainer

METHOD: Final = "self_discovery"
Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class SelfDiscoverySettings:
    """The numbers of a training. Adam with betas 0.9 and 0.999 and a constant ``rate``, as the authors'; ``steps`` and
    ``guidance`` paint the pictures.
    """

    updates: int = setting(300, WHOLE, "Updates of the direction.")
    batch: int = 16
    rate: float = setting(0.02, REAL, "Learning rate of Adam.")
    steps: int = setting(8, WHOLE, "Denoising steps of the pictures that it learns on.")
    guidance: float = setting(4.0, REAL, "Guidance of these pictures.")
    seed: int = 0


@dataclass(frozen=True)
class SelfDiscoveryOptions(SelfDiscoverySettings):
    """All that a user may set."""

    towards: int = setting(0, FLAG, "1: learn the direction that adds the concept.")


def train(task: Task) -> Adapter:
    """The direction of the one concept of a task, or with the setting ``towards`` the one that adds it. Raises SafeguardError
    for several concepts, and for one of which the training data has no texts where the task has no prompts.
    """
    concept, towards = the_one(task, METHOD), bool(task.numbers(SelfDiscoveryOptions()).towards)
    pairs, settings, progress = (
        task.pairs(concept),
        task.numbers(SelfDiscoverySettings()),
        told(task, f"{concept.id}: updates"),
    )
    if towards:
        pairs = [TextPair(pair.said, pair.shown) for pair in pairs]
    adapter = discover(frozen_of(task), concept.id, pairs, settings, progress=progress, checkpoint=task.checkpoint)
    return replace(adapter, settings={**adapter.settings, "towards": 1}) if towards else adapter


def discover(
    frozen: FrozenPipeline,
    concept: str,
    pairs: Sequence[TextPair],
    settings: SelfDiscoverySettings | None = None,
    *,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Adapter:
    """The direction of ``concept``: [C, H, W] in a UNet's middle, [C] in a transformer's. The pipeline is not changed.

    The same pipeline, pairs and settings give the same direction; with ``checkpoint``, a file, a run that was stopped goes on
    from where that was written last. Raises CapabilityError where the pipeline has no middle, or nothing can be learnt beside
    it.
    """
    settings = settings or SelfDiscoverySettings()
    middle = frozen.attachment.middle
    if middle is None:
        raise CapabilityError(
            f"{frozen.attachment.name} has no middle block, so there is no place for a direction",
            pipeline=frozen.attachment.name,
            missing="middle",
        )
    work = _Work(frozen, middle, concept, pairs, settings, checkpoint)
    with weights_frozen(frozen.denoiser):
        work.run(progress)
        report = work.report()
    settings_used = {"concept": concept, "module": middle.name, "pictures": len(pairs), **asdict(settings)}
    return Adapter(METHOD, frozen.attachment.fingerprint, {"vector": work.vector.detach()}, settings_used, report)


class _Work:
    """One training under way."""

    def __init__(
        self,
        frozen: FrozenPipeline,
        middle: FeatureSite,
        concept: str,
        pairs: Sequence[TextPair],
        settings: SelfDiscoverySettings,
        checkpoint: Path | None,
    ) -> None:
        self._frozen, self._settings, self._stage = frozen, settings, f"{METHOD}:{concept}"
        inside, _, place = middle.name.partition(".")[2].partition("#")
        self._module, self._output = frozen.denoiser.get_submodule(inside), int(place or 0)
        identity = json.dumps([concept, asdict(settings), [asdict(pair) for pair in pairs]])
        self._kept = Checkpoint(checkpoint, identity)
        self._latents = self._painted(pairs)
        self._values = frozen.arguments([pair.said for pair in pairs])
        self.vector = torch.zeros(self._shape(), device=self._latents.device, requires_grad=True)
        self._optimiser = torch.optim.Adam([self.vector], lr=settings.rate)
        self._step = 0
        self._restore()

    def _painted(self, pairs: Sequence[TextPair]) -> Tensor:
        pictures = []
        for start in range(0, len(pairs), self._settings.batch):
            some = pairs[start : start + self._settings.batch]
            seeds = [
                step_rng(self._settings.seed, self._stage, -1 - start - place)[0].getrandbits(48) for place in range(len(some))
            ]
            pictures.append(
                self._frozen.paint([pair.shown for pair in some], seeds, self._settings.steps, self._settings.guidance)
            )
        return torch.cat(pictures)

    def _shape(self) -> tuple[int, ...]:
        """Of a direction, at the size at which the pipeline paints."""
        seen: list[tuple[int, ...]] = []

        def look(feature: Tensor) -> Tensor:
            seen.append(tuple(feature.shape[1:]) if feature.dim() == 4 else (feature.shape[-1],))
            return feature

        with torch.no_grad(), changed_output(self._module, look, self._output):
            self._frozen.loss(self._values, self._latents, [0], torch.Generator().manual_seed(0))
        return seen[0]

    def loss(self, step: int, vector: Tensor, rows: int | None = None) -> Tensor:
        """On the batch of one step, or on fewer ``rows``, with ``vector`` in the middle."""
        chosen, source = step_rng(self._settings.seed, self._stage, step)
        places = [chosen.randrange(len(self._latents)) for _ in range(rows or self._settings.batch)]
        with changed_output(self._module, lambda feature: feature + vector.to(feature), self._output):
            return self._frozen.loss(self._values, self._latents, places, source)

    def run(self, progress: Progress | None) -> None:
        """Train to the last update."""
        with torch.inference_mode(False), torch.enable_grad():
            per_pair = partial(self.loss, self._step, self.vector, 1)
            require_backward(self._frozen, per_pair, self._settings.batch, "a direction", known=[self.vector])
            while self._step < self._settings.updates:
                self._optimiser.zero_grad()
                self.loss(self._step, self.vector).backward()
                self._optimiser.step()
                self._step += 1
                if self._step % SAVED == 0 or self._step == self._settings.updates:
                    self._save()
                if progress is not None:
                    progress(self._step, self._settings.updates)

    def report(self) -> dict[str, float]:
        """The loss without the direction and with it, on batches that no update saw, and the direction's length."""
        steps = range(10**6, 10**6 + 8)
        with torch.no_grad():
            before, after = (
                sum(self.loss(step, vector).item() for step in steps) / len(steps)
                for vector in (torch.zeros_like(self.vector), self.vector)
            )
        return {"loss_without": before, "loss_with": after, "norm": self.vector.norm().item()}

    def _save(self) -> None:
        self._kept.save(self._step, state_of({"vector": self.vector}, self._optimiser))

    def _restore(self) -> None:
        """Go on from a checkpoint of the same training; one of another is passed over."""
        checkpoint = self._kept.load()
        if checkpoint is not None:
            self._step, tensors = checkpoint
            restore_state({"vector": self.vector}, self._optimiser, self._step, tensors)


trainer: Final = Trainer(
    METHOD,
    train,
    SelfDiscoveryOptions,
    count=96,
    batch=16,
    prompts=True,
    resumes=True,
    help="Learns beside the frozen pipeline, from its own pictures, the direction that takes one concept away.",
)
