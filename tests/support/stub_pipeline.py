"""A stand-in for the pipeline of a denoiser: words to states, states to the denoiser, with classifier-free guidance.

It has what every diffusers pipeline has that protection builds on, and nothing that any one of them is: so a denoiser class
can be tried before its pipeline can be built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from safeguard.instrument.discover.nan_trace import tensors_of
from tests.support.tiny_denoisers import Specimen

TIMES = (1.0, 0.5)
OPEN, CLOSE = 1, 2


class HashEncoder(nn.Module):
    """Words to numbers to states [n, L, D]: a text is opened, closed and padded, and every state knows what came before it."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length = length
        generator = torch.Generator().manual_seed(5)
        self.table = nn.Parameter(torch.randn(512, width, generator=generator), requires_grad=False)
        self.places = nn.Parameter(0.1 * torch.randn(length, width, generator=generator), requires_grad=False)

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """Token numbers of texts, int64 [n, L]."""
        rows = []
        for text in texts:
            words = [3 + hashlib.sha256(word.encode()).digest()[0] for word in text.split()]
            row = [OPEN, *words[: self.length - 2], CLOSE][: self.length]
            rows.append(row + [0] * (self.length - len(row)))
        return torch.tensor(rows)

    def forward(self, input_ids: Tensor) -> Tensor:
        states = self.table[input_ids] + self.places
        past = states.cumsum(1) / torch.arange(1.0, self.length + 1)[:, None]
        mixed: Tensor = states + 0.3 * past
        return mixed


class StubPipeline(DiffusionPipeline):  # type: ignore[misc]
    """``specimen``'s denoiser in a pipeline that draws nothing, but walks the way that every pipeline walks."""

    def __init__(self, denoiser: Any, text_encoder: HashEncoder) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, text_encoder=text_encoder)
        self.specimen: Specimen | None = None

    @staticmethod
    def of(specimen: Specimen) -> StubPipeline:
        made = StubPipeline(specimen.build(), HashEncoder(specimen.length, specimen.width))
        made.specimen = specimen
        made.set_progress_bar_config(disable=True)
        return made

    def encode_prompt(self, prompt: Sequence[str], negative_prompt: Sequence[str], num_images_per_prompt: int = 1) -> Any:
        """Texts as the denoiser is given them: prompts, negative prompts; then the states that these are made of."""
        assert self.specimen is not None
        both, given = [], []
        for texts in (prompt, negative_prompt):
            states = self.text_encoder(input_ids=self.text_encoder.numbers(texts)).repeat_interleave(num_images_per_prompt, 0)
            both.append(states)
            text = self.specimen.inputs(states, torch.zeros(len(states), dtype=torch.long), 1.0)[self.specimen.text[0]]
            given.append(text[:: len(text) // len(states)])  # some repeat it for each frame only afterwards
        return (*given, *both)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Sequence[str] | str,
        negative_prompt: Sequence[str] | str | None = None,
        guidance_scale: float = 4.0,
        num_images_per_prompt: int = 1,
        generator: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """The sum of the guided predictions of all steps: [images, ...]."""
        assert self.specimen is not None
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        several = isinstance(negative_prompt, (list, tuple))
        negatives = list(negative_prompt or ()) if several else [str(negative_prompt or "")] * len(prompts)
        *_, states, against = self.encode_prompt(prompts, negatives, num_images_per_prompt)
        seeds = torch.tensor([one.initial_seed() % 2**31 for one in generator or ()] or range(len(states)))
        guided = guidance_scale > 1
        total = torch.zeros(())
        for time in TIMES:
            rows = torch.cat([against, states]) if guided else states
            values = self.specimen.inputs(rows, seeds.repeat(2 if guided else 1), time)
            made = tensors_of(self.denoiser(**values), len(rows))[0]
            if guided:
                empty, full = made.chunk(2)
                made = empty + guidance_scale * (full - empty)
            total = total + made
        return total
