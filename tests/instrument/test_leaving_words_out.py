"""What a text is without each of its words, against the encoders called by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.instrument.attachment import Attachment
from tests.support.families import FAMILIES, tokenizer

TEXT = "a red boat"


def blanked() -> torch.Tensor:
    """The numbers of the text, one word less in every row: [n, 77]."""
    numbers = tokenizer()(TEXT, padding="max_length", return_tensors="pt").input_ids
    words = [place for place, one in enumerate(numbers[0].tolist()) if one not in tokenizer().all_special_ids]
    rows = numbers.repeat(len(words), 1)
    rows[range(len(words)), words] = 0
    return rows


def closing(states: torch.Tensor) -> torch.Tensor:
    end = tokenizer()(TEXT).input_ids.index(tokenizer().eos_token_id)
    return states[:, end]


@pytest.fixture(params=["sd1", "sdxl", "sd3"])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def left_out(pipe: Any) -> Any:
    attachment = Attachment(pipe)
    return attachment.encoding.left_out(attachment.main, TEXT)


def test_it_is_what_the_encoders_make_of_a_blank_in_the_words_place(family: str) -> None:
    pipe = FAMILIES[family]()
    (segment,) = left_out(pipe).segments

    def states(encoder: Any) -> torch.Tensor:
        made = encoder(blanked(), output_hidden_states=True)
        states: torch.Tensor = made.last_hidden_state if family == "sd1" else made.hidden_states[-2]
        return states

    encoders = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
    with torch.no_grad():
        expected = closing(torch.cat([states(encoder) for encoder in encoders if encoder is not None], -1))
    torch.testing.assert_close(segment.without, expected, rtol=1e-4, atol=1e-4)


def test_the_whole_text_is_beside_it(family: str) -> None:
    found = left_out(FAMILIES[family]())
    assert torch.equal(found.segments[0].whole, found.states[found.segments[0].places[-1]])


def test_every_word_counts(family: str) -> None:
    found = left_out(FAMILIES[family]())
    (segment,) = found.segments
    assert len(segment.words) == len(segment.without) == len(blanked())
    assert all(not torch.equal(one, segment.whole) for one in segment.without)
    if family != "sd1":
        assert found.pooled is not None
        assert len(found.pooled) == len(segment.words)


def test_the_encoders_are_left_without_hooks(family: str) -> None:
    pipe = FAMILIES[family]()
    left_out(pipe)
    assert not any(module._forward_pre_hooks for module in pipe.text_encoder.modules())
