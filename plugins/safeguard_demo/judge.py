"""The judge: a small network that says what a picture of the demo world shows. It stands in for people's eyes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from safeguard.errors import AssetError
from safeguard_demo.world import COLOURS, CONCEPTS, PLACES, SIZE, SUBJECTS

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {"subject": SUBJECTS, "colour": tuple(COLOURS), "scene": PLACES}
FILE: Final = "judge.safetensors"


def build_network() -> Any:
    """RGB [n, 3, 64, 64] in [-1, 1] to logits [n, 5 + 7 + 8 + 16]: concepts, then each attribute."""
    from torch import nn

    def block(inside: int, outside: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU()]

    outputs = len(CONCEPTS) + sum(map(len, ATTRIBUTES.values()))
    return nn.Sequential(
        *block(3, 24, 1), *block(24, 48, 2), *block(48, 96, 2), *block(96, 128, 2), *block(128, 64, 1),
        nn.Flatten(), nn.Linear(64 * 64, 192), nn.ReLU(), nn.Dropout(0.2), nn.Linear(192, outputs),
    )  # fmt: skip


def split_logits(logits: Tensor) -> dict[str, Tensor]:
    """``concepts`` [n, 5], and each attribute [n, its values]."""
    sizes = [len(CONCEPTS), *map(len, ATTRIBUTES.values())]
    return dict(zip(("concepts", *ATTRIBUTES), logits.split(sizes, dim=1), strict=True))


def to_array(images: Sequence[Image] | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Images (PIL, or [n, h, w, 3] in 0..255 or 0..1), of any size, as float32 [n, 3, 64, 64] in [-1, 1]."""
    if isinstance(images, np.ndarray) and len(images) and images.shape[1:3] != (SIZE, SIZE):
        from PIL.Image import fromarray

        bytes_of = images if images.dtype == np.uint8 else (255 * images).round().astype(np.uint8)
        images = [fromarray(image) for image in bytes_of]
    if not isinstance(images, np.ndarray):
        images = np.stack([np.asarray(image.convert("RGB").resize((SIZE, SIZE))) for image in images])
    scale = 127.5 if images.dtype == np.uint8 else 0.5
    array: npt.NDArray[np.float32] = (images.astype(np.float32) / scale - 1.0).transpose(0, 3, 1, 2)
    return array


class Judge:
    """Says of each picture which concepts it shows, and its subject, colour and scene."""

    concepts: tuple[str, ...] = CONCEPTS
    attributes: tuple[str, ...] = tuple(ATTRIBUTES)

    def __init__(self, weights: Path | None = None) -> None:
        from safetensors.torch import load_file

        file = weights or Path(__file__).with_name("assets") / "judge" / FILE
        if not file.is_file():
            raise AssetError(f"the judge's weights are missing ({file.name}); reinstall the package, or train them: make train")
        self._network = build_network().eval().requires_grad_(False)
        self._network.load_state_dict(load_file(file))

    def predict(self, images: Sequence[Image] | npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """For n images: each concept as bool [n], and ``subject``, ``colour``, ``scene`` as str [n]."""
        probabilities = self.probabilities(images)
        named = {name: np.array(values)[probabilities[name].argmax(1)] for name, values in ATTRIBUTES.items()}
        return {**{concept: probabilities[concept] > 0.5 for concept in CONCEPTS}, **named}

    def probabilities(self, images: Sequence[Image] | npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        """For n images: each concept [n] in 0..1, and each attribute [n, its values]."""
        import torch

        if not len(images):
            return {
                **{c: np.zeros(0, np.float32) for c in CONCEPTS},
                **{a: np.zeros((0, len(v)), np.float32) for a, v in ATTRIBUTES.items()},
            }
        batches = torch.from_numpy(to_array(images)).split(256)
        parts = split_logits(torch.cat([self._network(batch) for batch in batches]))
        concepts = parts.pop("concepts").sigmoid().numpy()
        return {
            **{concept: concepts[:, place] for place, concept in enumerate(CONCEPTS)},
            **{name: logits.softmax(1).numpy() for name, logits in parts.items()},
        }
