"""What every training stage shares: batches that depend on the step alone, averages, and checkpoints one can stop at.

A stage is stopped at any moment and goes on where its last checkpoint left it: all randomness of a step is drawn from
``(seed, stage, step)``, so nothing but weights, averages and optimiser state has to be kept.
"""

from __future__ import annotations

import io
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safeguard._io import write_whole
from safeguard_demo.world import Scene, render

log = logging.getLogger("safeguard_demo.train_models")
CHECKPOINT_SECONDS = 60.0


def pixels(scenes: list[Scene], rng: random.Random) -> Tensor:
    """Renders as a batch, float32 in [-1, 1], shape [n, 3, 64, 64]."""
    stack = np.stack([np.asarray(render(scene, rng)) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def cosine(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Learning rate: linear warm-up, then half a cosine down to a fiftieth of ``peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    phase = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, phase))))


class Average:
    """An exponential moving average of a module's parameters (decay ramps up over the first steps)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in module.state_dict().items():
                mean = self.shadow[name]
                if value.dtype.is_floating_point:
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)


class Stage:
    """One model in training: ``loss(step)`` is minimised for ``steps`` steps, checkpointed under ``folder``.

    ``rate`` is the highest learning rate, or several of them, each with the parameters that learn at it.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        folder: Path,
        *,
        steps: int,
        rate: float | Sequence[tuple[float, Sequence[nn.Parameter]]],
        decay: float = 0.998,
        weight_decay: float = 1e-2,
    ) -> None:
        self.name, self.module, self.steps = name, module, steps
        parts = [(rate, list(module.parameters()))] if isinstance(rate, float) else rate
        self._rates = [highest for highest, _ in parts]
        self.file = folder / f"{name}.checkpoint"
        self.average = Average(module, decay)
        fused = all(p.device.type == "cuda" for p in module.parameters())
        own = [{"params": list(some), "lr": highest} for highest, some in parts]
        self.optimiser = torch.optim.AdamW(own, weight_decay=weight_decay, fused=fused or None)
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            self._restore(torch.load(self.file, weights_only=True))

    def _restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.average.shadow = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        log.info("%s: going on at step %d of %d", self.name, self.step, self.steps)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "module": self.module.state_dict(),
            "average": self.average.shadow,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self.file, buffer.getvalue())

    def run(self, loss: Callable[[int], Tensor], *, clip: float = 1.0) -> None:
        """Train to the last step."""
        begun = saved = time.monotonic()
        first, mean = self.step, None
        while self.step < self.steps:
            for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
                group["lr"] = cosine(self.step, self.steps, rate)
            value = loss(self.step)
            self.optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), clip)
            self.optimiser.step()
            self.average.update(self.module, self.step)
            self.step += 1
            mean = value.item() if mean is None else 0.98 * mean + 0.02 * value.item()
            now = time.monotonic()
            if now - saved > CHECKPOINT_SECONDS or self.step == self.steps:
                self.save()
                saved = now
                left = (now - begun) / (self.step - first) * (self.steps - self.step) / 60
                log.info("%s: step %d of %d, loss %.5f, %.0f min left", self.name, self.step, self.steps, mean, left)

    def averaged(self) -> nn.Module:
        """The module, with its averaged weights, ready to be used."""
        self.module.load_state_dict(self.average.shadow)
        return self.module.eval().requires_grad_(False)
