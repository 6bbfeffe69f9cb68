"""Where a policy's words stand among what a denoiser is given, and that all of them do: on whole pipelines of several kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import safeguard
from safeguard.errors import CapabilityError
from safeguard.instrument.attachment import Attachment
from tests.support.contract_policies import concept, policy
from tests.support.older_diffusers import needs
from tests.support.stub_pipeline import StubPipeline
from tests.support.tiny_denoisers import SPECIMENS
from tests.support.tiny_pipelines import WHOLES, run

ASKED = ("prompt", "generator", "num_inference_steps", "output_type")
KINDS = {
    "StableDiffusionGLIGENPipeline": "other texts beside the prompt go into its encoder",
    "StableDiffusion3Pipeline": "two encoders side by side",
    "Kandinsky3Pipeline": "padded to a length",
    "PixArtAlphaPipeline": "reads fewer tokens than its tokenizer knows of",
    "Lumina2Pipeline": "a system prompt before it",
    "QwenImagePipeline": "the head of a template is cut off",
    "LongCatImagePipeline": "head and tail of a template are cut off",
    "BriaPipeline": "encoded one by one",
}


@pytest.fixture(scope="module", params=KINDS)
def attachment(request: pytest.FixtureRequest) -> Iterator[Attachment]:
    needs(request.param)
    whole = WHOLES[request.param]
    pipe = whole.build()  # held here: an attachment does not
    yield Attachment(pipe, {name: value for name, value in whole.call(["a cat"]).items() if name not in ASKED})
    del pipe


def test_its_words_are_found_and_nothing_else(attachment: Attachment) -> None:
    empty, one, two, four = (len(text.content) for text in attachment.encode(["", "d", "d d", "d d d d"]))
    assert empty == 0 < one
    assert four - two == 2 * (two - one) > 0


@pytest.mark.parametrize("name", ["BriaFibo2Transformer2DModel", "Krea2Transformer2DModel"])
def test_of_several_layers_of_an_encoder_the_tokens_are_found(name: str) -> None:
    needs(name)
    pipe = StubPipeline.of(SPECIMENS[name])
    text, _ = Attachment(pipe).encode(["d d", ""])
    assert (list(text.places), list(text.content), list(text.states.shape)) == ([0, 1, 2, 3], [1, 2], [4, 3 * 24])


def test_what_it_does_not_read_to_the_end_is_refused(attachment: Attachment) -> None:
    with pytest.raises(CapabilityError, match="shorten them"):
        attachment.encode(["blood on snow " * 1000])


def test_a_text_that_was_refused_leaves_no_trace(attachment: Attachment) -> None:
    """Texts are encoded together, so that one is filled up, or cut, to fit beside another."""
    with pytest.raises(CapabilityError):
        attachment.encode(["a bird", "blood on snow " * 1000])
    empty, bird = attachment.encode(["", "a bird"])
    assert len(empty.content) == 0 < len(bird.content) < len(bird.states)


def test_phrases_that_a_call_leaves_no_room_for_are_refused() -> None:
    """Of the three rows one is active, and texts have 32 tokens in this call."""
    whole = WHOLES["PixArtAlphaPipeline"]
    pipe: Any = whole.build()
    blood = concept("blood", eraser="negative_prompt", phrases=("blood", "blood on snow " * 10))
    with safeguard.protect(pipe, policy(blood), screener=None), pytest.raises(CapabilityError, match="32 tokens"):
        run(whole, pipe, ["a red boat", "blood on snow", "a green tree"])
