"""What a reward model sees of pictures: features of an image encoder that stands still.

The paper takes CLIP's image encoder, and any folder with a CLIP vision tower will do. None comes with the package. A
distribution brings one in by an entry point of the group ``safeguard.image_encoders``, which names its folder: that of the
demo is its own autoencoder's, which learnt to give pictures back and was told of no concept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from safeguard._entry_points import folder as folder_of
from safeguard._entry_points import points
from safeguard.errors import AssetError
from safeguard.training.frozen_pipeline import Pixels, weights_digest

DEMO: Final = "demo"
GROUP: Final = "safeguard.image_encoders"
BATCH: Final = 64


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """``place`` is where it was loaded from (``demo``, or a folder), ``kind`` what it is (``clip``, ``autoencoder``),
    ``digest`` a hex SHA-256 of its weights, ``width`` the number of its features.
    """

    place: str
    kind: str
    digest: str
    width: int
    _encode: Callable[[Pixels], Tensor]

    def __call__(self, images: Pixels) -> Tensor:
        """Pictures uint8 [n, h, w, 3] to features float32 [n, width]. Raises ValueError for anything else."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError("pictures are uint8 [n, h, w, 3]")
        parts = [torch.zeros(0, self.width)]
        with torch.no_grad():
            for start in range(0, len(images), BATCH):
                parts.append(self._encode(images[start : start + BATCH]).float().cpu())
        return torch.cat(parts)


def open_encoder(place: str | os.PathLike[str] = DEMO) -> ImageEncoder:
    """The encoder of that name among those that are installed (``demo``), or of a folder with a CLIP model, a CLIP vision
    tower, or an autoencoder of diffusers. Nothing is fetched.

    Raises AssetError where there is none.
    """
    name = os.fspath(place)
    folder = _folder_of(name)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if config.get("_class_name") == "AutoencoderKL":
            return _autoencoder(name, folder)
        if config.get("model_type") in ("clip", "clip_vision_model"):
            return _clip(name, folder)
    except Exception as fault:
        raise AssetError(f"{name}: this folder holds no image encoder that can be loaded ({fault})") from fault
    raise AssetError(f"{name}: this is neither a CLIP vision tower nor an autoencoder of diffusers")


def _folder_of(name: str) -> Path:
    """The folder that a name stands for. Raises AssetError for ``demo`` where the demo is not installed."""
    named = [point for point in points(GROUP) if point.name == name]
    if not named:
        if name == DEMO:
            raise AssetError("no image encoder 'demo' is installed; install safeguard-diffusion-demo, or name a folder")
        return Path(name)
    return folder_of(named[0]) or Path(name)


def _clip(name: str, folder: Path) -> ImageEncoder:
    """The projected image embedding [n, projection] of a CLIP vision tower, as in the paper."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    tower: Any = CLIPVisionModelWithProjection
    model = tower.from_pretrained(folder, local_files_only=True).eval()
    if (folder / "preprocessor_config.json").is_file():
        prepare: Any = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    else:
        size = model.config.image_size
        prepare = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    def encode(images: Pixels) -> Tensor:
        ready = prepare(images=list(images), return_tensors="pt")["pixel_values"]
        embeds: Tensor = model(pixel_values=ready.to(model.dtype)).image_embeds
        return embeds

    return ImageEncoder(name, "clip", weights_digest({"vision": model}), model.config.projection_dim, encode)


def _autoencoder(name: str, folder: Path) -> ImageEncoder:
    """Mean, highest, lowest and spread over all places of each channel behind the encoder's middle block: [n, 4 channels]."""
    from diffusers import AutoencoderKL

    model: Any = AutoencoderKL.from_pretrained(folder, local_files_only=True).eval()
    encoder = model.encoder
    seen: list[Tensor] = []
    encoder.mid_block.register_forward_hook(lambda module, args, output: seen.append(output))

    def encode(images: Pixels) -> Tensor:
        seen.clear()
        encoder((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).to(model.dtype))
        flat = seen.pop().flatten(2)
        return torch.cat([flat.mean(2), flat.amax(2), flat.amin(2), flat.std(2)], 1)

    return ImageEncoder(
        name, "autoencoder", weights_digest({"encoder": encoder}), 4 * model.config.block_out_channels[-1], encode
    )
