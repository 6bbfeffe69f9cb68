"""What a text is with other tokens, against the encoders called by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from safeguard.errors import CapabilityError
from safeguard.instrument.apply.text_states import DenoiserTokens
from safeguard.instrument.attachment import Attachment
from safeguard.sdk.pipeline import TokenizedText, TokenVariant
from tests.support.families import FAMILIES, tokenizer

TEXT = "a red boat"
BLANK = 0


def blanked() -> torch.Tensor:
    """The numbers of the text, one word less in every row: [n, 77]."""
    numbers = tokenizer()(TEXT, padding="max_length", return_tensors="pt").input_ids
    words = [place for place, one in enumerate(numbers[0].tolist()) if one not in tokenizer().all_special_ids]
    rows = numbers.repeat(len(words), 1)
    rows[range(len(words)), words] = BLANK
    return rows


def end() -> int:
    """The place of the token that closes the text."""
    place: int = tokenizer()(TEXT).input_ids.index(tokenizer().eos_token_id)
    return place


@pytest.fixture(params=["sd1", "sdxl", "sd3"])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def tokens_of(pipe: Any) -> DenoiserTokens:
    attachment = Attachment(pipe)
    return DenoiserTokens(attachment.encoding, attachment.main)


def without_each_word(text: TokenizedText) -> list[list[list[int]]]:
    return [
        [[BLANK if place == words[turn] else number for place, number in enumerate(numbers)] for numbers, words in pairs]
        for turn in range(len(text.words[0]))
        for pairs in [list(zip(text.numbers, text.words, strict=True))]
    ]


def occluded(pipe: Any) -> tuple[TokenizedText, Sequence[TokenVariant]]:
    tokens = tokens_of(pipe)
    text = tokens.read(TEXT)
    return text, tokens.encode(text, without_each_word(text))


def test_it_is_what_the_encoders_make_of_these_numbers(family: str) -> None:
    pipe = FAMILIES[family]()
    text, variants = occluded(pipe)

    def states(encoder: Any) -> torch.Tensor:
        made = encoder(blanked(), output_hidden_states=True)
        states: torch.Tensor = made.last_hidden_state if family == "sd1" else made.hidden_states[-2]
        return states

    encoders = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
    with torch.no_grad():
        expected = torch.cat([states(encoder) for encoder in encoders if encoder is not None], -1)[:, end()]
    (span,) = text.spans
    found = torch.stack([variant.states[span.places[-1]] for variant in variants])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_every_word_counts(family: str) -> None:
    text, variants = occluded(FAMILIES[family]())
    (span,) = text.spans
    assert len(span.words) == len(variants) == len(blanked())
    assert all(not torch.equal(variant.states[span.places[-1]], text.states[span.places[-1]]) for variant in variants)
    assert all((variant.pooled is None) == (family == "sd1") for variant in variants)


def test_the_same_numbers_give_the_same_text(family: str) -> None:
    tokens = tokens_of(FAMILIES[family]())
    text = tokens.read(TEXT)
    (variant,) = tokens.encode(text, [text.numbers])
    torch.testing.assert_close(variant.states, text.states)


def test_a_variant_has_as_many_tokens_as_the_text() -> None:
    tokens = tokens_of(FAMILIES["sd1"]())
    text = tokens.read(TEXT)
    with pytest.raises(CapabilityError, match="as many"):
        tokens.encode(text, [[numbers[1:] for numbers in text.numbers]])


def test_the_encoders_are_left_without_hooks(family: str) -> None:
    pipe = FAMILIES[family]()
    occluded(pipe)
    assert not any(module._forward_pre_hooks for module in pipe.text_encoder.modules())
