"""Harmless pictures, and a store of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from safeguard.feedback import FeedbackStore, PictureModel

MODEL = PictureModel("StableDiffusionPipeline", "safeguard_demo/unet", "0" * 64)


def picture(number: int) -> npt.NDArray[np.uint8]:
    """A plain picture, each of another colour: uint8 [8, 8, 3]."""
    return np.full((8, 8, 3), (number % 256, 40 * number % 256, 90), np.uint8)


def filled(folder: Path, count: int, concept: str = "blood") -> FeedbackStore:
    store = FeedbackStore(folder, create=True)
    for number in range(count):
        store.add(picture(number), concept, model=MODEL, prompt=f"prompt {number}", seed=number)
    return store
