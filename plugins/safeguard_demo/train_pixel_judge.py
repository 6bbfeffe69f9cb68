"""The stage ``pixel_judge`` of `safeguard_demo.train_models`: areas of concepts, from renders, whose areas are known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from safeguard._io import write_whole
from safeguard.training.randomness import step_rng
from safeguard_demo.captions import combinations, sample
from safeguard_demo.pixel_judge import FILE, ORDINARY, PixelJudge, build_segmenter
from safeguard_demo.stages import Stage
from safeguard_demo.world import CONCEPTS, SIZE, Scene, render_areas

SEED: Final = 13
STEPS: Final = 500
SEEN: Final = 0.35  # how much of a half-erased pixel must be the concept's to count
UNSEEN: Final = 0.15  # and below which it does not; what lies between teaches nothing


def pixel_judge_stage(out: Path, steps: int) -> Stage:
    torch.manual_seed(SEED)
    return Stage("pixel_judge", build_segmenter(), out, steps=steps, rate=3e-3, decay=0.99, weight_decay=1e-4)


def pixel_judge_loss(stage: Stage, vae: Any, batch: int) -> Callable[[int], Tensor]:
    """Binary cross entropy and one minus the soft Dice coefficient (Milletari et al. 2016, arXiv 1606.04797, sec. 3)."""

    def loss(step: int) -> Tensor:
        rng, generator = step_rng(SEED, "pixel_judge", step)
        images, masks, weights = drawn(rng, batch)
        half = batch // 2
        with torch.no_grad():
            latents = vae.encode(images[:half]).latent_dist.mean
            latents = latents + 0.1 * latents.std() * torch.randn(latents.shape, generator=generator)
            images = torch.cat([vae.decode(latents).sample.clamp(-1, 1), images[half:]])
        logits = stage.module(images)
        entropy = (F.binary_cross_entropy_with_logits(logits, masks, reduction="none") * weights).mean()
        share = logits.sigmoid() * weights
        both = 2 * (share * masks).sum((0, 2, 3)) + 1
        dice: Tensor = 1 - (both / (share.sum((0, 2, 3)) + (masks * weights).sum((0, 2, 3)) + 1)).mean()
        return entropy + 0.3 * dice

    return loss


def drawn(rng: random.Random, batch: int, split: str = "train") -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [n, 3, 64, 64] in [-1, 1], whole and half-erased; masks [n, 5, 64, 64], 0 or 1; how much each pixel counts."""
    images, masks = np.zeros((batch, SIZE, SIZE, 3), np.float32), np.zeros((batch, len(CONCEPTS), SIZE, SIZE), np.float32)
    weights = np.ones_like(masks)
    for place in range(batch):
        scene = sample(rng).scene if split == "train" else Scene(*rng.choice(combinations(split)))
        if rng.random() < 0.5 and not scene.concepts:
            scene = Scene(scene.subject, scene.colour, scene.place, (rng.choice(CONCEPTS),))
        image, areas = render_areas(scene, rng)
        shown = np.asarray(image, np.float32)
        kept = np.ones((SIZE, SIZE), np.float32)
        if len(areas) == 1 and rng.random() < 0.6:
            kept = kept_field(rng)
            bare = np.asarray(next(iter(areas.values())).bare, np.float32)
            shown = kept[..., None] * shown + (1 - kept[..., None]) * bare
        images[place] = shown
        for concept, area in areas.items():
            share = np.asarray(area.mask, np.float32) / 255 * kept
            column = CONCEPTS.index(concept)
            masks[place, column] = share > SEEN
            weights[place, column] = (share > SEEN) | (share < UNSEEN)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).div(127.5).sub(1.0).contiguous()
    return tensor, torch.from_numpy(masks), torch.from_numpy(weights)


def kept_field(rng: random.Random) -> np.ndarray[Any, np.dtype[np.float32]]:
    """How much of a concept an imperfect eraser leaves at each pixel: the same everywhere, or a smooth field. [64, 64]."""
    if rng.random() < 0.5:
        return np.full((SIZE, SIZE), rng.random(), np.float32)
    coarse = torch.tensor([[rng.uniform(-1, 2) for _ in range(4)] for _ in range(4)])
    field = F.interpolate(coarse[None, None], (SIZE, SIZE), mode="bicubic", align_corners=True)
    kept: np.ndarray[Any, np.dtype[np.float32]] = field[0, 0].clamp(0, 1).numpy()
    return kept


def export_pixel_judge(out: Path, assets: Path, pipes: dict[str, Any]) -> None:
    """Write the weights, and what area pictures of 400 ordinary prompts of ``dev`` show on these pipelines, the largest 99th
    percentile of them.
    """
    from safetensors.torch import save_file

    from safeguard.evaluation.harness import Harness
    from safeguard.evaluation.prompt_sets import BENIGN
    from safeguard_demo.pipelines import GUIDANCE, call_options
    from safeguard_demo.pipelines import STEPS as SAMPLING
    from safeguard_demo.prompt_set import DemoPrompts

    file = assets / "judge" / FILE
    network = pixel_judge_stage(out, 0).averaged()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)
    judge, cases = PixelJudge(file), DemoPrompts().cases(BENIGN, "dev", 400)
    highest = dict.fromkeys(CONCEPTS, 0.0)
    for pipe in pipes.values():
        studio = Harness(pipe, judge, SAMPLING, GUIDANCE, usual=call_options(pipe))
        pictures = np.concatenate([studio.paint(cases[first : first + 20]) for first in range(0, len(cases), 20)])
        for concept, areas in judge.areas(pictures).items():
            highest[concept] = max(highest[concept], float(np.quantile(areas, 0.99)))
    facts = {"prompts": len(cases), "split": "dev", "pipelines": list(pipes), "percentile_99": highest}
    write_whole(file.with_name(ORDINARY), (json.dumps(facts, indent=1) + "\n").encode())
