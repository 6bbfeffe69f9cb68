"""Training of ``geom_erasing`` (Geom-Erasing, arXiv 2310.05873), where the model has the concept already: words for the places
of a picture in which a concept stands.

Pictures show a concept that their captions do not say. A detector gives boxes; of each picture the caption gets the concept's
name and a word for each bin of a grid that the boxes cover, and only these words' rows are learnt:

    L = E[ w | target - denoiser(x_t, t, tau(caption, name, words)) |^2 ]

with w smaller in covered bins (`Grid.weights`). The words of all bins together are the rows of one learned word, which stands
in the negative prompt behind the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.errors import SafeguardError
from safeguard.policy import Concept
from safeguard.training.delta_training import frozen_of, the_one, told
from safeguard.training.feedback_inversion import Inversion, InversionSettings
from safeguard.training.frozen_pipeline import FrozenPipeline, Pixels
from safeguard.training.location_grid import Grid
from safeguard.training.settings import REAL, WHOLE, setting
from safeguard.training.sources import LocatedPictures
from safeguard.training.task import Task
from safeguard.training.textual_inversion import LearnedWord, beside, embedding_tables, plain
from safeguard.training.trainer import Trainer

METHOD: Final = "geom_erasing"


@dataclass(frozen=True)
class GeomErasingSettings:
    """``side`` bins a side: words of 8 x 8 leave a user's own negative text no room. ``alpha`` is that of `Grid.weights`."""

    side: int = setting(4, WHOLE, "Bins a side of the grid of places.")
    alpha: float = setting(10.0, REAL, "How much less the covered bins count in the loss.")


@dataclass(frozen=True)
class GeomErasingOptions(GeomErasingSettings, InversionSettings):
    """All that a user may set."""


@dataclass(frozen=True, eq=False)
class Located:
    """Pictures uint8 [n, h, w, 3] with their captions, and the bins of each in which the concept stands."""

    images: Pixels
    captions: Sequence[str]
    covered: Sequence[Sequence[int]]


def token_of(concept: str) -> str:
    """The name of the learned word whose rows are the bins."""
    return f"<{concept}-at>"


def caption_of(caption: str, name: str, covered: Sequence[int], words: Sequence[str]) -> str:
    """A caption with the concept's name and the words of the covered bins; as it is where there are none."""
    return ", ".join([caption, name, " ".join(words[place] for place in covered)]) if covered else caption


def located(pictures: LocatedPictures, grid: Grid) -> Located:
    """Pictures with the bins of a grid that the boxes of each cover."""
    return Located(pictures.images, pictures.captions, [grid.covered(boxes) for boxes in pictures.boxes])


def train(task: Task) -> LearnedWord:
    """The learned word of the one concept of a task: a row for each bin. Raises SafeguardError for several concepts, where no
    detector is known or nothing was found, and CapabilityError where nothing can be learnt beside the pipeline.
    """
    concept, numbers, settings = the_one(task, METHOD), task.numbers(GeomErasingSettings()), task.numbers(InversionSettings())
    pictures = task.world().located(concept.id, task.count, task.seed)
    height, width = pictures.images.shape[1:3]
    grid = Grid(numbers.side, width, height)
    inversion = inverted(task, concept, located(pictures, grid), grid, settings, numbers.alpha)
    words = inversion.run(told(task, f"{concept.id}: updates"))
    rows = {key: torch.cat([word.rows[key] for word in words]) for key in words[0].rows}
    settings_used = {"concept": concept.id, **asdict(numbers), "pictures": task.count, **asdict(settings)}
    return LearnedWord(token_of(concept.id), rows, settings_used, inversion.report(), words[0].marks)


def inverted(
    task: Task, concept: Concept, located: Located, grid: Grid, settings: InversionSettings, alpha: float
) -> Inversion:
    """The learning of the bins' words, each by a name of its own, from what the concept's first phrase says. Pictures in which
    nothing was found teach no word and are left out.
    """
    places = [place for place, covered in enumerate(located.covered) if covered]
    if not places:
        raise SafeguardError(
            f"{concept.id!r} was found in none of {len(located.covered)} pictures, so there is no place to learn"
        )
    usual, name = frozen_of(task), concept.phrases[0]
    words = [plain(usual.pipe, f"<{concept.id}-at-{place}>", name, 1) for place in range(grid.bins)]
    frozen = FrozenPipeline(beside(usual.pipe, words), usual.options)
    tokens = [word.token for word in words]
    texts = [_within(frozen.pipe, grid, located.captions[place], name, located.covered[place], tokens) for place in places]
    latents = usual.latents_of(located.images[places])
    weights = torch.stack([_spread(grid.weights(located.covered[place], alpha), latents) for place in places])
    return Inversion(frozen, words, latents, weights, settings, texts=[[text] for text in texts], checkpoint=task.checkpoint)


def _spread(weights: Tensor, latents: Tensor) -> Tensor:
    """Weights [side, side] over the places of a latent: [1, h, w], the nearest bin's."""
    return torch.nn.functional.interpolate(weights[None, None], size=latents.shape[-2:], mode="nearest")[0]


def _within(pipe: Any, grid: Grid, caption: str, name: str, covered: Sequence[int], words: Sequence[str]) -> str:
    """The caption with as many of the covered bins as every tokenizer has room for; the inner ones go first."""
    bins = list(covered)
    for place in grid.inwards(covered)[::-1]:
        text = caption_of(caption, name, bins, words)
        if all(len(table.tokenizer(text).input_ids) <= table.tokenizer.model_max_length for table in embedding_tables(pipe)):
            return text
        bins.remove(place)
    return caption_of(caption, name, bins, words)


trainer: Final = Trainer(
    METHOD,
    train,
    GeomErasingOptions,
    count=96,
    batch=8,
    resumes=True,
    needs=frozenset({"data"}),
    help="A learned word for where a concept stands, from pictures in which it is located.",
)
