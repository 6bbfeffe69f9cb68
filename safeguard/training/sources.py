"""What a training learns from besides the pipeline: prompts with a concept and without, located pictures, and a judge.

An installed distribution brings `TrainingData` in by an entry point of the group ``safeguard.training_data``: a class that
takes no arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import numpy.typing as npt

from safeguard._entry_points import load, names
from safeguard.training.frozen_pipeline import Pixels
from safeguard.training.location_grid import Box
from safeguard.training.text_pairs import TextPair

GROUP: Final = "safeguard.training_data"
REMEDY: Final = "install safeguard-diffusion-demo for the demo pipelines, or a distribution with an entry point of safeguard."


class ConceptJudge(Protocol):
    """Says what pictures show."""

    def predict(self, images: Pixels) -> dict[str, npt.NDArray[Any]]:
        """For n images, uint8 [n, h, w, 3]: each concept as bool [n]; attributes, where it knows any, as str [n]."""


@dataclass(frozen=True, slots=True)
class SeededPrompt:
    """One picture to make: its prompt and its seed."""

    text: str
    seed: int


@dataclass(frozen=True, eq=False)
class LocatedPictures:
    """Pictures uint8 [n, h, w, 3], their captions, and of each the boxes in which a concept stands."""

    images: Pixels
    captions: Sequence[str]
    boxes: Sequence[Sequence[Box]]


class TrainingData(Protocol):
    """Prompts and pictures of the world that a pipeline was trained on. The same arguments give the same answer.

    A method may raise SafeguardError for a concept that the world does not have, or for what it cannot give.
    """

    def pairs(self, concept: str, count: int, seed: int) -> Sequence[TextPair]:
        """Texts without a concept, each beside the same with it."""
        ...

    def cases(self, kind: str, concept: str | None, count: int, seed: int) -> Sequence[SeededPrompt]:
        """Pictures to make: ``explicit`` (the concept is named), ``implicit`` (it comes without a word), or ``benign``."""
        ...

    def survey(self, concept: str, seed: int) -> Sequence[str]:
        """Prompts for pictures that people are asked about: some show the concept, some do not."""
        ...

    def entities(self) -> Sequence[str]:
        """Ordinary subjects and places, of which prompts can be made."""
        ...

    def located(self, concept: str, count: int, seed: int) -> LocatedPictures:
        """Pictures that show a concept of which their captions do not tell, and where it stands."""
        ...


def data_names() -> list[str]:
    """Which training data is installed."""
    return names(GROUP)


def open_data(name: str | None = None) -> TrainingData | None:
    """The installed training data of that name; without a name the demo's, or the only one that is installed, or None.

    Raises PluginError for a name that is not installed, or that cannot be imported.
    """
    if name is None:
        installed = data_names()
        name = "demo" if "demo" in installed else installed[0] if len(installed) == 1 else None
    return None if name is None else cast(TrainingData, load(GROUP, name, "training data", f"{REMEDY}training_data")())
