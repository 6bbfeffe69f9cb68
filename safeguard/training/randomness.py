"""Random sources that depend on a seed, a name and a step alone, so that a training can stop and go on anywhere."""

from __future__ import annotations

import hashlib
import random

import torch


def step_rng(seed: int, stage: str, step: int) -> tuple[random.Random, torch.Generator]:
    """The random sources of one step of one stage."""
    digest = hashlib.sha256(f"{seed}:{stage}:{step}".encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    return random.Random(number), torch.Generator().manual_seed(number % 2**63)
