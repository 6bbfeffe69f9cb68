"""Where the middle of a denoiser is."""

from __future__ import annotations

import pytest

from safeguard.instrument.attachment import Attachment
from tests.support.families import FAMILIES


@pytest.mark.parametrize("family", ["sd1", "sdxl", "inpaint", "controlnet", "pag"])
def test_it_is_a_unets_middle_block(family: str) -> None:
    middle = Attachment(FAMILIES[family]()).middle
    assert middle is not None
    assert (middle.name, middle.channels, len(middle.shape)) == ("unet.mid_block", 32, 3)


def test_it_is_the_image_stream_behind_a_transformers_middle_block() -> None:
    middle = Attachment(FAMILIES["sd3"]()).middle
    assert middle is not None
    assert (middle.name, middle.shape) == ("transformer.transformer_blocks.0#1", (16, 32))
