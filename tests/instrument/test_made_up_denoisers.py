"""Denoisers that nobody has seen before: protected without a word about them in the code, or refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

import safeguard
from safeguard.errors import CapabilityError
from tests.support.contract_policies import Words, concept, policy, rows_changed, same
from tests.support.stub_pipeline import StubPipeline
from tests.support.tiny_denoisers import Specimen

WIDTH, HEADS, LENGTH, TOKENS = 16, 2, 8, 9
PROMPTS = ("a red boat", "blood on snow", "a green tree")
GATED = {"form": "gated"}


def heads(part: Tensor) -> Tensor:
    return part.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Turned(nn.Module):
    """An attention of its own making: the text in the middle of the image tokens, keys and queries turned before they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def mixed(self, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = map(heads, self.project(stream).chunk(3, -1))
        angle = torch.arange(stream.shape[1]).float()[:, None]
        return query * angle.cos(), key * angle.cos(), value

    def forward(self, stream: Tensor) -> Tensor:
        return stream + F.scaled_dot_product_attention(*self.mixed(stream)).transpose(1, 2).flatten(2)


class ByHand(Turned):
    """The same, its softmax written out: no attention of torch's is called."""

    def forward(self, stream: Tensor) -> Tensor:
        query, key, value = self.mixed(stream)
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        return stream + (weights @ value).transpose(1, 2).flatten(2)


class Strange(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A denoiser that no library has: image, text, image in one stream."""

    attention: type = Turned
    leak = False

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([self.attention(), self.attention()])
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, latents: Tensor, words: Tensor, t: Tensor) -> tuple[Tensor]:
        half = TOKENS // 2
        stream = torch.cat([latents[:, :half], words, latents[:, half:]], 1) + t[:, None, None]
        for block in self.inner:
            stream = block(stream)
        image = torch.cat([stream[:, :half], stream[:, half + words.shape[1] :]], 1)
        if self.leak:
            image = image + words.amax(1, keepdim=True)
        return (self.out(image),)


class HandMade(Strange):
    attention = ByHand


class Leaking(Strange):
    leak = True


def inputs(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    noise = [torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return {"latents": torch.stack(noise), "words": states, "t": torch.full((len(seeds),), time)}


def pipeline(kind: type) -> StubPipeline:
    torch.manual_seed(0)
    return StubPipeline.of(Specimen(kind.__name__, "?", lambda: kind().eval(), ("words",), WIDTH, inputs, length=LENGTH))


def paint(pipe: StubPipeline) -> Tensor:
    return pipe(PROMPTS, generator=[torch.Generator().manual_seed(place) for place in range(len(PROMPTS))])


def test_a_denoiser_with_an_attention_of_its_own_is_protected() -> None:
    pipe = pipeline(Strange)
    plain = paint(pipe)
    with safeguard.protect(pipe, policy(concept("blood", params=GATED)), screener=Words()) as guard:
        assert guard.attachment.mechanism == "2 joint"
        assert rows_changed(paint(pipe), plain) == [False, True, False]
    assert same(paint(pipe), plain)


@pytest.mark.parametrize("kind", [HandMade, Leaking])
def test_text_that_reaches_the_image_past_every_attention_in_reach_is_refused(kind: type) -> None:
    pipe = pipeline(kind)
    plain = paint(pipe)
    with pytest.raises(CapabilityError, match="something other than attention carries text tokens"):
        safeguard.protect(pipe, policy(concept("blood")), screener=Words())
    assert same(paint(pipe), plain)


class TwoExperts(StubPipeline):
    """A second denoiser takes over in long runs only, which nobody sees who tries a short one."""

    def __init__(self, denoiser: Any, second: Any, text_encoder: Any) -> None:
        super().__init__(denoiser, text_encoder)
        self.register_modules(second=second)

    def __call__(self, prompt: Any, num_inference_steps: int = 4, **more: Any) -> Tensor:  # type: ignore[override]
        first = self.denoiser
        try:
            self.denoiser = self.second if num_inference_steps > 10 else first
            return super().__call__(prompt, **more)
        finally:
            self.denoiser = first


def test_a_second_denoiser_that_no_short_run_calls_is_protected() -> None:
    one = pipeline(Strange)
    both = TwoExperts(one.denoiser, pipeline(Strange).denoiser, one.text_encoder)
    both.specimen = one.specimen
    with safeguard.protect(both, policy(concept("blood", params=GATED)), screener=Words()) as guard:
        assert guard.attachment.mechanism == "4 joint"
        assert set(guard.attachment.denoisers) == {"denoiser", "second"}


def test_torchs_attention_is_its_own_again_when_no_guard_needs_it() -> None:
    before = F.scaled_dot_product_attention
    with safeguard.protect(pipeline(Strange), policy(concept("blood", params=GATED)), screener=Words()):
        assert F.scaled_dot_product_attention is not before
    assert F.scaled_dot_product_attention is before
