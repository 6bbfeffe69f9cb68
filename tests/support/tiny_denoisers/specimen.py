"""A specimen: one tiny random denoiser, and how to call it. Shared by the modules that list them, one a kind.

Every row of a call is made from that row's text states and seed alone, so that a check may change one row and expect all
others to stay as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

WEIGHTS: Final = 20240229  # the seed of every specimen's weights
STD: Final = 0.1  # of the noise on weights that were made as constants

Inputs = Callable[[Tensor, Tensor, float], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Specimen:
    """A tiny random denoiser, and how to call it for texts.

    ``text`` names the arguments of ``forward`` that carry token states [B, L, D], the main one first; ``width`` is D of that
    one and ``length`` an L that it takes. ``pooled`` names the arguments with pooled texts [B, P], dotted for a key inside a
    dict. ``inputs`` makes the keyword arguments of ``forward`` from states [B, L, D], a seed a row [B], and a time in (0, 1].
    ``note`` says what is special, such as text of another shape.
    """

    denoiser: str
    kind: str
    build: Callable[[], Any]
    text: tuple[str, ...]
    width: int
    inputs: Inputs
    pooled: tuple[str, ...] = ()
    note: str = ""
    length: int = 12


@dataclass(frozen=True, slots=True)
class Shelf:
    """The specimens of one kind, in the order in which they are listed."""

    kind: str
    specimens: dict[str, Specimen] = field(default_factory=dict)

    def add(
        self,
        denoiser: str,
        config: Mapping[str, Any],
        width: int,
        text: Sequence[str] = ("encoder_hidden_states",),
        pooled: Sequence[str] = (),
        note: str = "",
        length: int = 12,
        home: str = "diffusers",
        refit: Callable[[Any], None] | None = None,
        loud: float = 1.0,
    ) -> Callable[[Inputs], Inputs]:
        """Put a denoiser on the shelf; the decorated function makes its inputs. For the rest see ``grow``."""

        def shelve(inputs: Inputs) -> Inputs:
            build = partial(grow, home, denoiser, config, refit, loud)
            self.specimens[denoiser] = Specimen(
                denoiser, self.kind, build, tuple(text), width, inputs, tuple(pooled), note, length
            )
            return inputs

        return shelve


def grow(home: str, denoiser: str, config: Mapping[str, Any], refit: Callable[[Any], None] | None, loud: float) -> Any:
    """The denoiser of the module ``home`` in evaluation mode, with the same weights every time.

    ``refit`` mends what no configuration sets: parts too large, weights left undrawn; ``loud`` scales the weight matrices of
    a class whose text would hardly be heard at the size of fresh weights. The caller's random numbers stay as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS)
        model = getattr(importlib.import_module(home), denoiser)(**config)
        if refit is not None:
            refit(model)
    awaken(model, WEIGHTS, loud)
    return model.eval()


@torch.no_grad()
def awaken(model: Any, seed: int, loud: float = 1.0) -> None:
    """Add small noise to every parameter that is one constant, and scale the weight matrices.

    Gates, modulations and output layers are often made as zeros: until trained they hide the text, or everything, from the
    output. Ones (of norms) and zeros (of biases) are stirred too.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.numel() and parameter.min() == parameter.max():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * STD)
        if parameter.ndim > 1:
            parameter.mul_(loud)


def noise(seeds: Tensor, *shape: int) -> Tensor:
    """Normal numbers [B, *shape], a row from its own seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def picks(seeds: Tensor, top: int, *shape: int) -> Tensor:
    """Whole numbers below ``top``, [B, *shape], a row from its own seed."""
    return torch.stack([torch.randint(top, shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def project(states: Tensor, width: int) -> Tensor:
    """States of another width, by a fixed random matrix: a second text encoder's view of the same text."""
    matrix = torch.randn(states.shape[-1], width, generator=torch.Generator().manual_seed(width))
    projected: Tensor = states @ (matrix / states.shape[-1] ** 0.5).to(states)
    return projected


def pool(states: Tensor, width: int) -> Tensor:
    """A pooled text [B, width]: a fixed linear function of the mean of the row's states."""
    return project(states.mean(1), width)


def rows(seeds: Tensor, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same number for every row, [B]."""
    return torch.full((len(seeds),), value, dtype=dtype)


def ones(states: Tensor, dtype: torch.dtype = torch.long) -> Tensor:
    """A mask [B, L] that hides nothing."""
    return torch.ones(states.shape[:2], dtype=dtype)


def call(states: Tensor, seeds: Tensor, step: float, *shape: int, **more: Any) -> dict[str, Any]:
    """The three arguments that most denoisers have, with latents [B, *shape] of noise; ``more`` adds to them."""
    three = {"hidden_states": noise(seeds, *shape), "encoder_hidden_states": states, "timestep": rows(seeds, step)}
    return {**three, **more}


def places(height: int, width: int, axes: int = 3) -> Tensor:
    """Positions [height * width, axes] of the tokens of a picture: row and column in the last two axes, zeros before."""
    grid = torch.zeros(height, width, axes)
    grid[..., -2] = torch.arange(height)[:, None]
    grid[..., -1] = torch.arange(width)
    return grid.flatten(0, 1)


def turns(count: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [count, width] of rotary positions along one line."""
    angles = torch.arange(float(count))[:, None] / torch.arange(1.0, width // 2 + 1).repeat_interleave(2)
    return angles.cos(), angles.sin()
