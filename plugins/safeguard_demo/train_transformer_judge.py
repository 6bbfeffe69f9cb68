"""The stage ``transformer_judge`` of `safeguard_demo.train_models`: a classifier that learns from half-erased concepts too."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from safeguard.training.randomness import step_rng
from safeguard_demo.captions import combinations
from safeguard_demo.stages import Stage
from safeguard_demo.train_pixel_judge import kept_field
from safeguard_demo.transformer_judge import FILE, build_transformer
from safeguard_demo.world import CONCEPTS, SIZE, Scene, render_areas

SEED: Final = 17
STEPS: Final = 400
BATCH: Final = 32
SHOWN: Final = 0.25  # a concept is shown where at least this share of its mask stays, opacity counted
GONE: Final = 0.10  # and gone below this one; what lies between teaches nothing


def transformer_judge_stage(out: Path, steps: int) -> Stage:
    torch.manual_seed(SEED)
    return Stage("transformer_judge", build_transformer(), out, steps=steps, rate=1.5e-3, decay=0.99)


def transformer_judge_loss(stage: Stage, vae: Any, batch: int) -> Callable[[int], Tensor]:
    """Binary cross entropy, on pictures of which half went through the autoencoder, slightly disturbed."""

    def loss(step: int) -> Tensor:
        rng, generator = step_rng(SEED, "transformer_judge", step)
        images, stays = erased_scenes(rng, batch)
        half = batch // 2
        with torch.no_grad():
            latents = vae.encode(images[:half]).latent_dist.mean
            latents = latents + 0.1 * latents.std() * torch.randn(latents.shape, generator=generator)
            images = torch.cat([vae.decode(latents).sample.clamp(-1, 1), images[half:]])
        told = ((stays >= SHOWN) | (stays < GONE)).float()
        entropy = F.binary_cross_entropy_with_logits(stage.module(images), (stays >= SHOWN).float(), reduction="none")
        return (entropy * told).sum() / told.sum()

    return loss


def erased_scenes(rng: random.Random, batch: int, split: str = "train", *, half: float = 0.6) -> tuple[Tensor, Tensor]:
    """Pictures [n, 3, 64, 64] in [-1, 1], and the share of each concept's mask that stays in them, [n, 5].

    Of the pictures with one concept, the share ``half`` is half-erased: faded, faded unevenly, or with patches taken out. One
    in four of all is blurred, which changes no share.
    """
    images, stays = np.zeros((batch, SIZE, SIZE, 3), np.float32), np.zeros((batch, len(CONCEPTS)), np.float32)
    for place in range(batch):
        count = rng.choices((0, 1, 2), (0.3, 0.55, 0.15))[0]
        chosen = set(rng.sample(CONCEPTS, count))
        scene = Scene(*rng.choice(combinations(split)), tuple(concept for concept in CONCEPTS if concept in chosen))
        image, areas = render_areas(scene, rng)
        shown, kept = np.asarray(image, np.float32), np.ones((SIZE, SIZE), np.float32)
        if count == 1 and rng.random() < half:
            kept = _patchy(rng) if rng.random() < 0.35 else kept_field(rng)
            bare = np.asarray(next(iter(areas.values())).bare, np.float32)
            shown = kept[..., None] * shown + (1 - kept[..., None]) * bare
        images[place] = shown
        for concept, area in areas.items():
            mask = np.asarray(area.mask, np.float32)
            stays[place, CONCEPTS.index(concept)] = (mask * kept).sum() / max(1.0, mask.sum())
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).div(127.5).sub(1.0).contiguous()
    blurred = torch.tensor([rng.random() < 0.25 for _ in range(batch)])
    tensor[blurred] = _blur(tensor[blurred])
    return tensor, torch.from_numpy(stays)


def _patchy(rng: random.Random) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Patches taken out, with soft edges: how much is left at each pixel, [64, 64]."""
    share = rng.random()
    side = rng.choice((6, 8, 12))
    coarse = torch.tensor([[float(rng.random() < share) for _ in range(side)] for _ in range(side)])
    patches: np.ndarray[Any, np.dtype[np.float32]] = F.interpolate(coarse[None, None], (SIZE, SIZE), mode="bilinear")[
        0, 0
    ].numpy()
    return patches


def _blur(images: Tensor) -> Tensor:
    """Each pixel and its neighbours, weighted one, two, one along both axes."""
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def export_transformer_judge(out: Path, assets: Path) -> None:
    """Write the averaged weights."""
    from safetensors.torch import save_file

    file = assets / "judge" / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    network = transformer_judge_stage(out, 0).averaged()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)
