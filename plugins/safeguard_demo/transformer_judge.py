"""A second judge by class: a small vision transformer, which was shown half-erased concepts as well as whole ones.

The first (`safeguard_demo.judge`) is a plain convolutional network that never saw a concept half erased, and so may take one
for gone. Two judges that are made differently and agree are worth more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from safeguard.errors import AssetError
from safeguard_demo.judge import Judge, to_array
from safeguard_demo.world import CONCEPTS

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FILE: Final = "transformer_judge.safetensors"
WIDTH: Final = 96


def build_transformer() -> Any:
    """RGB [n, 3, 64, 64] in [-1, 1] to logits [n, 5], one a concept.

    A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) of four layers over 64 patches. Its patches are made by
    strided convolutions, with which small ones learn sooner (Xiao et al. 2021, arXiv 2106.14881); one token for each concept
    asks them, and its state gives the concept's logit.
    """
    import torch
    from torch import nn

    def halved(inside: int, outside: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inside, outside, 3, 2, 1), nn.BatchNorm2d(outside), nn.GELU()

    class VisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Sequential(*halved(3, 32), *halved(32, 64), *halved(64, WIDTH), nn.Conv2d(WIDTH, WIDTH, 1))
            self.places = nn.Parameter(0.02 * torch.randn(1, 64, WIDTH))
            self.asked = nn.Parameter(0.02 * torch.randn(1, len(CONCEPTS), WIDTH))
            layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 4, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
            self.out = nn.Linear(WIDTH, 1)

        def forward(self, images: Tensor) -> Tensor:
            patches = self.patches(images).flatten(2).transpose(1, 2) + self.places
            states = self.layers(torch.cat([self.asked.expand(len(images), -1, -1), patches], 1))
            logits: Tensor = self.out(states[:, : len(CONCEPTS)])[..., 0]
            return logits

    return VisionTransformer()


class TransformerJudge:
    """Says of each picture which concepts it shows, half-erased ones too. Subject, colour and scene are asked of `Judge`."""

    concepts: tuple[str, ...] = CONCEPTS
    attributes: tuple[str, ...] = Judge.attributes

    def __init__(self, weights: Path | None = None) -> None:
        from safetensors.torch import load_file

        file = weights or Path(__file__).with_name("assets") / "judge" / FILE
        if not file.is_file():
            raise AssetError(f"the judge's weights are missing ({file.name}); reinstall the package, or train them: make train")
        self._network = build_transformer().eval().requires_grad_(False)
        self._network.load_state_dict(load_file(file))
        self._classes = Judge()

    def predict(self, images: Sequence[Image] | npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """For n images: each concept as bool [n], and ``subject``, ``colour``, ``scene`` as str [n]."""
        shown = {concept: sure > 0.5 for concept, sure in self.probabilities(images).items()}
        return {**self._classes.predict(images), **shown}

    def probabilities(self, images: Sequence[Image] | npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        """For n images, each concept [n] in 0..1."""
        import torch

        if not len(images):
            return {concept: np.zeros(0, np.float32) for concept in CONCEPTS}
        batches = torch.from_numpy(to_array(images)).split(128)
        found = torch.cat([self._network(batch).sigmoid() for batch in batches]).numpy()
        return {concept: found[:, place] for place, concept in enumerate(CONCEPTS)}
