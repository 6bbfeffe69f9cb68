"""What every training is given: a pipeline, the concepts, prompts and a judge, and the numbers of its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch

from safeguard.errors import SafeguardError
from safeguard.guard import protect
from safeguard.policy import Concept, Policy
from safeguard.sdk.adapter import Adapter
from safeguard.training.frozen_pipeline import Pixels, call_options
from safeguard.training.sources import REMEDY, ConceptJudge, SeededPrompt, TrainingData
from safeguard.training.text_pairs import TextPair, prompt_pairs
from safeguard.training.textual_inversion import LearnedWord

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Numbers = TypeVar("Numbers", bound="DataclassInstance")
Made: TypeAlias = Adapter | LearnedWord
"""An adapter, or a learned word where that is all that is trained."""


class Advance(Protocol):
    """Is told what is under way, how much more of it is done (0 when it begins), and of how much where that is known: pictures,
    or updates, of which every ``anew`` ones begin with pictures.
    """

    def __call__(self, what: str, more: int, whole: int | None = None, anew: int | None = None) -> None: ...


class Keep(Protocol):
    """Takes what a training makes besides its adapter: the bytes of a file, and what it is (``word``)."""

    def __call__(self, what: str, data: bytes) -> None: ...


def _unkept(what: str, data: bytes) -> None:
    pass


def _unheard(what: str, more: int, whole: int | None = None, anew: int | None = None) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Task:
    """What to train on.

    Attributes:
        pipe: The diffusers pipeline. It is not changed.
        policy: Its concepts are what is trained.
        count: How many prompts of each kind (0: what the trainer has).
        seed: Everything random comes from it.
        batch: How many pictures at once (0: what the trainer has).
        settings: The trainer's own numbers, by name; see `numbers`.
        prompts: Ordinary prompts to learn from, instead of those of ``data``.
        feedback: A store of what people said of pictures.
        reward: The file of a reward model that learnt from it.
        checkpoint: A training that was stopped goes on from this file, where there is one, and leaves one.
        advance: Is told how far the training is.
        keep: Takes what the training makes besides its adapter.
        data: Prompts and pictures of the pipeline's world, where they are known.
        judge: Says what pictures show, where there is one.
        steps: Of the pictures that are judged.
        guidance: Of the pictures that are judged.
        options: What else the pipeline is called with.
    """

    pipe: Any
    policy: Policy
    count: int = 0
    seed: int = 0
    batch: int = 0
    settings: Mapping[str, float] = field(default_factory=dict)
    prompts: Sequence[str] = ()
    feedback: Path | None = None
    reward: Path | None = None
    checkpoint: Path | None = None
    advance: Advance = _unheard
    keep: Keep = _unkept
    data: TrainingData | None = None
    judge: ConceptJudge | None = None
    steps: int = 10
    guidance: float = 4.0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def concepts(self) -> Sequence[Concept]:
        return list(self.policy.concepts.values())

    @property
    def call(self) -> dict[str, Any]:
        """What the pipeline is called with besides texts, steps and guidance."""
        return {**call_options(self.pipe), **self.options}

    def numbers(self, usual: Numbers) -> Numbers:
        """Of the fields of ``usual`` what the task says, ``batch`` and ``seed`` among them; the others as they are."""
        stated: dict[str, Any] = {"batch": self.batch, "seed": self.seed, **self.settings}
        return replace(usual, **{setting.name: stated[setting.name] for setting in fields(usual) if setting.name in stated})

    def world(self) -> TrainingData:
        """The training data. Raises SafeguardError where the task has none."""
        if self.data is None:
            raise SafeguardError(
                f"this training needs prompts of the pipeline's world, and there are none; {REMEDY}training_data"
            )
        return self.data

    def judging(self) -> ConceptJudge:
        """The judge. Raises SafeguardError where the task has none."""
        if self.judge is None:
            raise SafeguardError(f"this training needs a judge of the pipeline's pictures, and there is none; {REMEDY}judges")
        return self.judge

    def pairs(self, concept: Concept) -> list[TextPair]:
        """``count`` pairs of a concept, from the task's prompts or from the training data. Raises SafeguardError where the data
        has none of the concept, and the task no prompts.
        """
        if self.prompts:
            return prompt_pairs(self.prompts[: self.count], concept.phrases)
        return list(self.world().pairs(concept.id, self.count, self.seed))

    def paint(self, cases: Sequence[SeededPrompt], guidance: float | None = None) -> Pixels:
        """The pictures of these cases, each from its own seed: uint8 [n, h, w, 3]."""
        output = self.pipe(
            [case.text for case in cases],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance if guidance is None else guidance,
            generator=[torch.Generator().manual_seed(case.seed) for case in cases],
            output_type="pil",
            **self.call,
        )
        return np.stack([np.asarray(image.convert("RGB")) for image in output.images])

    @contextmanager
    def under(self, policy: Policy | None) -> Iterator[None]:
        """The pipeline under a policy, or as it is (None), for the length of a ``with`` block."""
        if policy is None:
            yield
            return
        with protect(self.pipe, policy, screener=None):
            yield
