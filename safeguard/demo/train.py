"""Train the demo models: ``python -m safeguard.demo.train STAGE --out FOLDER``.

Stages, in order: ``vae`` (pixels to latents), ``unet`` (tokenizer, text encoder and denoiser), ``judge``, ``export`` (write the
weights that the package carries). Each may be stopped at any moment and goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safeguard.demo.captions import sample
from safeguard.demo.models import build_scheduler, build_text_encoder, build_tokenizer, build_unet, build_vae, tokens
from safeguard.demo.training import Stage, step_rng
from safeguard.demo.world import Scene, render

log = logging.getLogger("safeguard.demo.train")
SEED = 7
VAE_STEPS = 2800
UNET_STEPS = 4000


def pixels(scenes: list[Scene], rng: random.Random) -> Tensor:
    """Renders as a batch, float32 in [-1, 1], shape [n, 3, 64, 64]."""
    stack = np.stack([np.asarray(render(scene, rng)) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def edges(image: Tensor) -> tuple[Tensor, Tensor]:
    """Finite differences along both axes of [n, c, h, w]."""
    return image[..., 1:, :] - image[..., :-1, :], image[..., 1:] - image[..., :-1]


def picture_loss(made: Tensor, true: Tensor) -> Tensor:
    """Squared, absolute and gradient error: the last keeps outlines sharp."""
    sharp = sum(((a - b).abs().mean() for a, b in zip(edges(made), edges(true), strict=True)), torch.zeros(()))
    return F.mse_loss(made, true) + 0.3 * F.l1_loss(made, true) + 0.15 * sharp


def vae_stage(out: Path, steps: int) -> Stage:
    torch.manual_seed(SEED)
    vae = build_vae().to(memory_format=torch.channels_last)
    return Stage("vae", vae, out, steps=steps, rate=2e-3, decay=0.998, weight_decay=1e-4)


def vae_loss(stage: Stage, batch: int = 16) -> Callable[[int], Tensor]:
    vae: Any = stage.module

    def loss(step: int) -> Tensor:
        rng, generator = step_rng(SEED, "vae", step)
        true = pixels([sample(rng).scene for _ in range(batch)], rng).to(memory_format=torch.channels_last)
        posterior = vae.encode(true).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        rate = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
        return picture_loss(vae.decode(latents).sample, true) + 1e-4 * rate

    return loss


class Painter(nn.Module):
    """The text encoder and the denoiser, trained together."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.text = build_text_encoder(tokenizer)
        self.unet = build_unet().to(memory_format=torch.channels_last)


def trained_vae(out: Path) -> Any:
    """The autoencoder of the ``vae`` stage, its scaling factor measured on 512 renders."""
    vae: Any = vae_stage(out, 0).averaged()
    rng, _ = step_rng(SEED, "scale", 0)
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(pixels([sample(rng).scene for _ in range(64)], rng)).latent_dist.mean for _ in range(8)]
        )
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae


def unet_stage(out: Path, steps: int, tokenizer: Any) -> Stage:
    torch.manual_seed(SEED)
    return Stage("unet", Painter(tokenizer), out, steps=steps, rate=1.2e-3, decay=0.998)


def unet_loss(stage: Stage, vae: Any, tokenizer: Any, batch: int) -> Callable[[int], Tensor]:
    """Velocity prediction (Salimans & Ho 2022, arXiv 2202.00512, app. D) on latents; one caption in ten is empty."""
    painter: Any = stage.module
    scheduler = build_scheduler()

    def loss(step: int) -> Tensor:
        rng, generator = step_rng(SEED, "unet", step)
        pairs = [sample(rng) for _ in range(batch)]
        with torch.no_grad():
            latents = vae.encode(pixels([pair.scene for pair in pairs], rng)).latent_dist.mean * vae.config.scaling_factor
        texts = ["" if rng.random() < 0.1 else pair.text for pair in pairs]
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator)
        noisy = scheduler.add_noise(latents, noise, times).to(memory_format=torch.channels_last)
        states = painter.text(tokens(tokenizer, texts))[0]
        return F.mse_loss(painter.unet(noisy, times, states).sample, scheduler.get_velocity(latents, noise, times))

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("vae", "unet", "judge", "export"))
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--steps", type=int, help="steps of the stage (default: what the shipped weights had)")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)
    out: Path = arguments.out
    if arguments.stage == "vae":
        stage = vae_stage(out, arguments.steps or VAE_STEPS)
        stage.run(vae_loss(stage))
    elif arguments.stage == "unet":
        tokenizer = build_tokenizer()
        stage = unet_stage(out, arguments.steps or UNET_STEPS, tokenizer)
        stage.run(unet_loss(stage, trained_vae(out), tokenizer, arguments.batch))


if __name__ == "__main__":
    main()
