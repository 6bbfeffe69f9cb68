"""A pipeline whose weights stand still while something is learnt beside it: pictures of its own, and its loss on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from safeguard.attaching.attachment import Attachment
from safeguard.attaching.capture import Catch, Values, catch_call, inner, leaves, pick, put, row_count
from safeguard.attaching.denoiser import TIMES
from safeguard.attaching.hooks import quiet
from safeguard.errors import CapabilityError


class FrozenPipeline:
    """A pipeline to learn beside. ``options`` is what it is called with besides prompts, steps and guidance.

    Raises CapabilityError where the pipeline cannot be attached to.
    """

    def __init__(self, pipe: Any, options: Mapping[str, Any] | None = None) -> None:
        self.pipe, self.options = pipe, dict(options or {})
        self.attachment = Attachment(pipe, self.options)
        self.name = self.attachment.main
        self.denoiser = inner(getattr(pipe, self.name))
        self.text = self.attachment.parts[self.name].text

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
        """Latents of pictures of these prompts, one seed each: [n, ...], as the denoiser is trained on them."""
        with torch.no_grad(), quiet():
            made = self.pipe(
                list(prompts),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
                **self.options,
            )
        latents: Tensor = made.images if hasattr(made, "images") else made[0]
        return latents

    def arguments(self, texts: Sequence[str]) -> Values:
        """What the denoiser is called with for these texts without guidance, one row each, at its own size."""
        with torch.no_grad(), quiet():
            how = Catch(side=None, guidance=1.0, example=self.options)
            values = catch_call(self.pipe, type(self.pipe), self.name, texts, how)
        if row_count(pick(values, self.text.states)) != len(texts):
            raise CapabilityError(
                f"{type(self.pipe).__name__} does not call its {self.name} with one row a text; nothing can be learnt so",
                pipeline=type(self.pipe).__name__,
                missing="rows",
            )
        return values

    def loss(self, values: Values, latents: Tensor, places: Sequence[int], source: torch.Generator) -> Tensor:
        """The mean square error of the denoiser's prediction on the latents at these places of ``values``, at times and with
        noise from ``source``: what it was trained to make small.
        """
        rows, clean = list(places), latents[list(places)]
        noise = torch.randn(clean.shape, generator=source).to(clean)
        noisy, target, time = _noised(self.pipe.scheduler, clean, noise, torch.rand(len(rows), generator=source))
        for path, value in leaves(values, len(latents)):
            if path[-1] in TIMES:
                values = put(values, path, time.to(clean.device))
            elif isinstance(value, Tensor) and value.shape == latents.shape and path not in self.text.every:
                values = put(values, path, noisy)
            elif row_count(value) == len(latents):
                picked = value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
                values = put(values, path, picked)
        with quiet():
            made = self.denoiser(**values)
        predicted: Tensor = made if isinstance(made, Tensor) else made[0]
        return (predicted.float() - target.float()).square().mean()


def _noised(scheduler: Any, clean: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, what is to be predicted of them, and their times, by the rule of the pipeline's scheduler. ``share`` [n]
    in [0, 1) says how far into the noise.
    """
    if hasattr(scheduler, "scale_noise"):  # flow matching: a straight line from the picture to the noise
        sigma = share.view(-1, *[1] * (clean.dim() - 1)).to(clean)
        return (1 - sigma) * clean + sigma * noise, noise - clean, share * scheduler.config.num_train_timesteps
    from diffusers import DDPMScheduler

    rule = DDPMScheduler.from_config(scheduler.config)
    time = (share * rule.config.num_train_timesteps).long()
    noisy: Tensor = rule.add_noise(clean, noise, time.to(clean.device))
    kind = rule.config.prediction_type
    velocity = kind == "v_prediction"
    target = rule.get_velocity(clean, noise, time.to(clean.device)) if velocity else noise if kind == "epsilon" else clean
    return noisy, target, time


@contextmanager
def weights_frozen(module: torch.nn.Module) -> Iterator[None]:
    """No weight of the module takes a gradient inside; each is as before at the end."""
    before = [(weight, weight.requires_grad) for weight in module.parameters()]
    try:
        module.requires_grad_(False)
        yield
    finally:
        for weight, needed in before:
            weight.requires_grad_(needed)


@contextmanager
def changed_output(module: torch.nn.Module, change: Callable[[Tensor], Tensor], place: int) -> Iterator[None]:
    """Inside, ``change`` is done to the module's output, or to the one of several at ``place``."""

    def on_done(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        return (*output[:place], change(output[place]), *output[place + 1 :])

    handle = module.register_forward_hook(on_done)
    try:
        yield
    finally:
        handle.remove()
