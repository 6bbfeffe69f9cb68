"""Which linear layers of a denoiser read the text alone, what they weigh, and what they are given."""

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
from safeguard.instrument.attachment import Attachment
from tests.support.contract_policies import Words, concept, policy, rows_changed
from tests.support.families import PROMPTS, generate, sd1, sd3
from tests.support.stub_pipeline import StubPipeline
from tests.support.tiny_denoisers import Specimen

WIDTH, HEADS, LENGTH, TOKENS = 16, 2, 8, 9


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, stream: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.project(stream).chunk(3, -1))
        return stream + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Worked(ModelMixin, ConfigMixin):
    """A text that is normed, projected twice, by name, and only then read; ``timed``: together with the time from the start."""

    timed = False

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attention, self.out = Attention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, latents: Tensor, words: Tensor, t: Tensor) -> tuple[Tensor]:
        words = self.norm(words) + (t[:, None, None] if self.timed else 0)
        words = self.second(input=F.gelu(self.first(input=words)))
        stream = self.attention(torch.cat([latents, words], 1) + t[:, None, None])
        return (self.out(stream[:, :TOKENS]),)


class Timed(Worked):
    timed = True


def standin(kind: type) -> StubPipeline:
    def inputs(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
        noise = [torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return {"latents": torch.stack(noise), "words": states, "t": torch.full((len(seeds),), time)}

    torch.manual_seed(0)
    return StubPipeline.of(Specimen(kind.__name__, "?", lambda: kind().eval(), ("words",), WIDTH, inputs, length=LENGTH))


def test_at_cross_attention_they_make_keys_and_values() -> None:
    pipe = sd1()
    (layers,) = Attachment(pipe).text_layers
    names = [name for name, _ in pipe.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    assert sorted(layers.modules) == sorted(f"unet.{name}" for name in names)
    assert layers.tokens


def test_in_joint_attention_they_embed_tokens_and_pooled_text() -> None:
    found = {layers.modules: layers.tokens for layers in Attachment(sd3()).text_layers}
    assert found == {
        ("transformer.context_embedder",): True,
        ("transformer.time_text_embed.text_embedder.linear_1",): False,
    }


def test_they_are_given_the_text_untrimmed() -> None:
    attachment = Attachment(sd1())
    (layers,) = attachment.text_layers
    (given,), (text,) = attachment.inputs(layers, ["blood"]), attachment.encode(["blood"])
    assert given.shape == (77, 32)
    assert torch.equal(given[list(text.places)].float(), text.states)


def test_of_layers_in_a_chain_the_first_is_offered() -> None:
    (layers,) = Attachment(standin(Worked)).text_layers
    assert layers.modules == ("denoiser.first",)


def test_what_a_denoiser_does_before_them_is_in_what_they_are_given() -> None:
    pipe = standin(Worked)
    attachment = Attachment(pipe)
    (layers,) = attachment.text_layers
    (given,), (text,) = attachment.inputs(layers, ["blood"]), attachment.encode(["blood"])
    with torch.no_grad():
        expected = pipe.denoiser.norm(text.states)
    assert torch.allclose(given[list(text.places)].float(), expected, atol=1e-6)


def test_layers_that_are_called_by_keyword_are_edited() -> None:
    pipe = standin(Worked)
    seeds = [torch.Generator().manual_seed(place) for place in range(len(PROMPTS))]
    plain = pipe(PROMPTS, generator=[seed.clone_state() for seed in seeds])
    with safeguard.protect(pipe, policy(concept("blood", eraser="uce")), screener=Words()):
        assert rows_changed(pipe(PROMPTS, generator=seeds), plain) == [False, True, False]


@pytest.mark.parametrize("eraser", ["uce", "rece"])
def test_a_text_that_is_never_read_alone_is_refused(eraser: str) -> None:
    with pytest.raises(CapabilityError, match="no linear layer that reads the text alone"):
        safeguard.protect(standin(Timed), policy(concept("blood", eraser=eraser)), screener=Words())


def test_a_weight_has_the_adapters_in_it_and_is_no_ones_own() -> None:
    from peft import LoraConfig

    pipe = sd1()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False))
    attachment = Attachment(pipe)
    module = next(name for name in attachment.text_layers[0].modules if name.endswith("to_k"))
    found = attachment.weight(module)
    pipe.unet.fuse_lora()
    live = pipe.unet.get_submodule(module.removeprefix("unet.")).base_layer.weight
    assert torch.allclose(found.float(), live, atol=1e-5)
    found.zero_()
    assert live.abs().max() > 0


def test_a_layer_that_is_passed_by_is_an_error() -> None:
    pipe = sd1()
    with safeguard.protect(pipe, policy(concept("blood", eraser="uce", activation="always")), screener=Words()):
        pipe.unet.fuse_qkv_projections()
        with pytest.raises(CapabilityError, match="which was not run in a call of its denoiser"):
            generate(pipe, PROMPTS)
