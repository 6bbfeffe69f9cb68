"""A pipeline whose weights stand still while something is learnt beside it: pictures of its own, and its loss on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.attachment import Attachment
from safeguard.instrument.call_values import Values, argument_names, inner, leaves, named, pick, put, row_count
from safeguard.instrument.discover.denoiser import TIMES
from safeguard.instrument.discover.dry_run import Catch, catch_call
from safeguard.plan.request_state import quiet

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """What a denoiser is given of n pictures while they are painted: ``latents`` [S, n, ...] at ``times`` [S], from pure noise
    on, as its own arguments have them.
    """

    latents: Tensor
    times: Tensor

    def places(self, source: torch.Generator, beta: int = 1) -> tuple[list[int], Tensor]:
        """Of each picture a step, and how far it is in the interval of that, as `at` takes them: how far on their way they are
        is drawn from Beta(``beta``, ``beta``), at 1 each step as often.
        """
        count, pictures = self.latents.shape[:2]
        if beta == 1:
            return torch.randint(count, (pictures,), generator=source).tolist(), torch.rand(pictures, generator=source)
        way = count * middling(beta, pictures, source)
        steps = way.long().clamp(max=count - 1)
        return steps.tolist(), (way - steps).clamp(0, 1)

    def at(self, steps: Sequence[int], shares: Tensor) -> tuple[Tensor, Tensor]:
        """The latents of each picture at its own step, [n, ...], and for each a time of that step's interval, [n]: ``shares``
        [n] in [0, 1) of the way to the next one, or to the end behind the last.
        """
        times = self.times.cpu().double()
        ends = torch.cat([times[1:], times.new_zeros(1)])
        time = times[list(steps)] + shares.to(times) * (ends - times)[list(steps)]
        drawn = time if self.times.is_floating_point() else time.ceil()
        return self.latents[list(steps), list(range(len(steps)))], drawn.to(self.times)


def middling(beta: int, count: int, source: torch.Generator) -> Tensor:
    """Numbers from Beta(``beta``, ``beta``), [count] in 0..1: such is the middle one of 2 beta - 1 uniform ones."""
    return torch.rand(count, 2 * beta - 1, generator=source).median(1).values


class FrozenPipeline:
    """A pipeline to learn beside: it is called, and never changed.

    Args:
        pipe: The pipeline.
        options: What it is called with besides prompts, steps and guidance.

    Attributes:
        attachment: How its denoisers read text: text sites, layers, fingerprint.
        name: Of its main denoiser among the pipeline's parts.
        denoiser: That denoiser.
        text: Which arguments of the denoiser are text.

    Raises:
        CapabilityError: The pipeline cannot be attached to.
    """

    def __init__(self, pipe: Any, options: Mapping[str, Any] | None = None) -> None:
        self.pipe, self.options = pipe, dict(options or {})
        self.attachment = Attachment(pipe, self.options)
        self.name = self.attachment.main
        self.denoiser = inner(getattr(pipe, self.name))
        self.text = self.attachment.parts[self.name].text

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
        """Latents of pictures of these prompts, as the denoiser is trained on them.

        Args:
            prompts: One a picture.
            seeds: One a picture.
            steps: Of the schedule.
            guidance: The scale of classifier-free guidance.

        Shapes:
            returns: [n, ...].
        """
        with torch.no_grad(), quiet():
            images = self.pipe(
                list(prompts),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
                **self.options,
            )
        latents: Tensor = images.images if hasattr(images, "images") else images[0]
        return latents

    def course(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Course:
        """What the denoiser is given on the way to `paint`.

        Args:
            prompts: As of `paint`.
            seeds: As of `paint`.
            steps: As of `paint`.
            guidance: As of `paint`.

        Raises:
            CapabilityError: What it is given is not a latent and a time.
        """
        names, seen = argument_names(self.denoiser), list[tuple[Values, Tensor]]()

        def look(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            values = named(names, args, kwargs)
            time = next((value for path, value in leaves(values, 0) if path[-1] in TIMES), None)
            time = torch.as_tensor(-1.0 if time is None else time).detach().flatten()[-1]
            if not seen or time != seen[-1][1]:  # some pipelines call it once for each branch
                seen.append((values, time))

        handle = self.denoiser.register_forward_pre_hook(look, with_kwargs=True)
        try:
            images = self.paint(prompts, seeds, steps, guidance)
        finally:
            handle.remove()
        latents = [self._latent(values, images) for values, _ in seen]
        course = [latent[-len(images) :].detach().clone() for latent in latents if latent is not None]
        if not course or len(course) != len(seen) or float(seen[0][1]) <= 0:
            raise self._refusal(
                f"does not call its {self.name} with its latents and a time; nothing can be learnt from its way there",
                "latents",
            )
        return Course(torch.stack(course), torch.stack([time for _, time in seen]))

    def _latent(self, values: Values, like: Tensor) -> Tensor | None:
        """The argument that is pictures of this shape, [rows, ...]."""
        return next((value for path, value in leaves(values, 0) if self._is_latent(path, value, like)), None)

    def _is_latent(self, path: Any, value: Any, like: Tensor) -> bool:
        return isinstance(value, Tensor) and value.shape[1:] == like.shape[1:] and path not in self.text.every

    def arguments(self, texts: Sequence[str], *, gradients: bool = False) -> Values:
        """What the denoiser is called with for these texts without guidance, one row each, at its own size; with the gradients
        of what encodes them, where asked for.
        """
        with torch.set_grad_enabled(gradients), quiet():
            how = Catch(side=None, guidance=1.0, gradients=gradients, example=self.options)
            values = catch_call(self.pipe, type(self.pipe), self.name, texts, how)
        if row_count(pick(values, self.text.states)) != len(texts):
            raise self._refusal(f"does not call its {self.name} with one row a text; nothing can be learnt so", "rows")
        return values

    def _refusal(self, what: str, missing: str) -> CapabilityError:
        name = type(self.pipe).__name__
        return CapabilityError(f"{name} {what}", pipeline=name, missing=missing)

    def latents_of(self, images: Pixels, batch: int = 32) -> Tensor:
        """Pictures uint8 [n, h, w, 3] as latents [n, ...], as the denoiser is trained on them. Raises CapabilityError where no
        autoencoder says how.
        """
        vae: Any = getattr(self.pipe, "vae", None)
        scale, shift = (getattr(getattr(vae, "config", None), f"{name}_factor", None) for name in ("scaling", "shift"))
        if scale is None or getattr(vae.config, "latents_mean", None) is not None:
            raise self._refusal("does not say by one factor how pictures become latents; nothing can be learnt of them", "vae")
        latents = []
        with torch.no_grad():
            for start in range(0, len(images), batch):
                pixels = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).to(vae.device, vae.dtype)
                latents.append((vae.encode(pixels / 127.5 - 1).latent_dist.mode() - (shift or 0.0)) * scale)
        return torch.cat(latents)

    def require_latents(self, values: Values, latents: Tensor) -> None:
        """Raises CapabilityError where the call ``values`` has no place for such latents [n, ...]."""
        if self._latent(values, latents) is None:
            raise self._refusal(
                f"does not give its {self.name} latents of {'x'.join(map(str, latents.shape[1:]))}, as its autoencoder makes "
                "them of these pictures; take pictures that it painted at its own size",
                "latents",
            )

    def predict(self, values: Values, rows: Sequence[int], noisy: Tensor, time: Tensor) -> Tensor:
        """What the denoiser makes of ``noisy`` [n, ...] at ``time`` [n] for the texts of these rows of ``values``: [n, ...]."""
        picked, count = list(rows), row_count(pick(values, self.text.states))
        for path, value in leaves(values, count):
            if path[-1] in TIMES:
                values = put(values, path, time)
            elif self._is_latent(path, value, noisy):
                values = put(values, path, noisy)
            elif row_count(value) == count:
                some = value[picked] if isinstance(value, Tensor) else [value[row] for row in picked]
                values = put(values, path, some)
        with quiet():
            output = self.denoiser(**values)
        predicted: Tensor = output if isinstance(output, Tensor) else output[0]
        return predicted

    def loss(self, values: Values, latents: Tensor, places: Sequence[int], source: torch.Generator) -> Tensor:
        """The mean of `squares`: what the denoiser was trained to make small."""
        return self.squares(values, latents, places, source).mean()

    def squares(self, values: Values, latents: Tensor, places: Sequence[int], source: torch.Generator) -> Tensor:
        """The square errors [n, ...] of the denoiser's prediction on the latents at these places of ``values``, at times and
        with noise from ``source``.
        """
        rows, clean = list(places), latents[list(places)]
        noise = torch.randn(clean.shape, generator=source).to(clean)
        noisy, target, time = _noised(self.pipe.scheduler, clean, noise, torch.rand(len(rows), generator=source))
        predicted = self.predict(values, rows, noisy, time.to(clean.device))
        return (predicted.float() - target.float()).square()


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


def call_options(pipe: Any) -> dict[str, Any]:
    """What a pipeline is best called with besides steps and guidance: Stable Diffusion 3 without its third text encoder puts
    256 tokens of zeros in its place, which cost time and say nothing, unless it is told to put none.
    """
    bare = "text_encoder_3" in pipe.components and pipe.text_encoder_3 is None
    return {"max_sequence_length": 0} if bare else {}


def weights_digest(parts: Mapping[str, Any]) -> str:
    """Names weights: hex SHA-256 over every parameter of some modules; what else is among the parts does not count."""
    total = hashlib.sha256()
    for name, part in sorted(parts.items()):
        if hasattr(part, "state_dict"):
            for key, value in sorted(part.state_dict().items()):
                total.update(f"{name}.{key}".encode() + value.detach().cpu().contiguous().float().numpy().tobytes())
    return total.hexdigest()
