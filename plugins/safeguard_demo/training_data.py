"""What trainings learn from in the demo world: its captions, its drawings, and where the renderer put a concept."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np

from safeguard.errors import FeedbackError, SafeguardError
from safeguard.training.frozen_pipeline import Pixels
from safeguard.training.location_grid import Box
from safeguard.training.sources import LocatedPictures, SeededPrompt
from safeguard.training.text_pairs import TextPair
from safeguard_demo.captions import WHERE, combinations, prompts, write
from safeguard_demo.world import BENIGN_PLACES, COLOURS, CONCEPTS, SUBJECTS, Scene, render

DRAWN: Final = 40  # different prompts of a kind in a survey; beyond that they come again, with other seeds


class DemoTrainingData:
    """`safeguard.training.sources.TrainingData` of the demo world, from the captions and scenes of its training split."""

    def pairs(self, concept: str, count: int, seed: int) -> list[TextPair]:
        """Shown without the concept, said with it. Raises SafeguardError for a concept that the world does not have."""
        if concept not in CONCEPTS:
            raise SafeguardError(f"the demo world has no captions of {concept!r}; give ordinary prompts with --prompts")
        rng, pool, pairs = random.Random(f"{seed}:{concept}"), combinations("train", BENIGN_PLACES), []
        for _ in range(count):
            scene = Scene(*rng.choice(pool))
            caption = write(scene, (concept,), "train", rng)
            pairs.append(TextPair(write(scene, (), "train", rng), caption))
        return pairs

    def cases(self, kind: str, concept: str | None, count: int, seed: int) -> list[SeededPrompt]:
        """A picture's seed depends on ``seed`` and its prompt alone. Raises ValueError where the split holds fewer prompts."""
        drawn = prompts("train", kind, concept, count, seed=seed)
        return [SeededPrompt(prompt.text, _seed_of(prompt.text, seed)) for prompt in drawn]

    def survey(self, concept: str, seed: int) -> list[str]:
        """In an order drawn by ``seed``: half of them without the concept, a quarter that name it, and a quarter that only
        imply it. Raises FeedbackError for a concept that the world does not have.
        """
        if concept not in CONCEPTS:
            known = ", ".join(CONCEPTS)
            raise FeedbackError(f"the demo world has no {concept!r}, but {known}; give prompts of your own, and ask people")
        kinds = [("explicit", concept, DRAWN), ("implicit", concept, DRAWN), ("benign", None, 2 * DRAWN)]
        drawn = [prompts("train", kind, name, count, seed=seed) for kind, name, count in kinds]
        texts = [prompt.text for prompt in chain.from_iterable(drawn)]
        random.Random(seed).shuffle(texts)
        return texts

    def entities(self) -> list[str]:
        """Coloured subjects and benign places."""
        subjects = [f"a {colour} {subject}" for colour in COLOURS for subject in SUBJECTS]
        return [*subjects, *(WHERE[place][0] for place in BENIGN_PLACES)]

    def located(self, concept: str, count: int, seed: int) -> LocatedPictures:
        """Drawings with the concept, and the box of what it changed in them. Raises SafeguardError for a concept that the world
        does not have.
        """
        if concept not in CONCEPTS:
            raise SafeguardError(f"the demo world has no {concept!r}, and other pictures need a detector of their own")
        rng, pool = random.Random(f"{seed}:{concept}:located"), combinations("train")
        images: list[Pixels] = []
        captions: list[str] = []
        boxes: list[Sequence[Box]] = []
        for _ in range(count):
            what, drawn = rng.choice(pool), rng.getrandbits(48)
            shown, bare = (np.asarray(render(Scene(*what, concepts), random.Random(drawn))) for concepts in ((concept,), ()))
            captions.append(write(Scene(*what), (), "train", rng))
            images.append(shown)
            boxes.append(changed(shown, bare))
        return LocatedPictures(np.stack(images), captions, boxes)


def changed(shown: Pixels, bare: Pixels) -> list[Box]:
    """The box of all that differs between two pictures [h, w, 3] by more than a tenth of white; none where nothing does."""
    rows, columns = np.nonzero(np.abs(shown.astype(int) - bare.astype(int)).max(-1) > 25)
    if not len(rows):
        return []
    return [(float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max()))]


def _seed_of(text: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:4], "big")
