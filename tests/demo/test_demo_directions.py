"""The directions that the package has for the demo's UNet."""

from __future__ import annotations

import pytest
from safeguard_plugins.self_discovery import SHIPPED

from safeguard import demo
from safeguard.attaching.attachment import Attachment
from safeguard.demo.world import CONCEPTS
from safeguard.erasing import Direction
from safeguard.erasing.directions import find_direction


@pytest.fixture(scope="module")
def unet() -> Attachment:
    return Attachment(demo.load_pipeline("unet"))


@pytest.mark.parametrize("concept", CONCEPTS)
def test_each_concept_has_one_that_fits(concept: str, unet: Attachment) -> None:
    found = find_direction(concept, "self_discovery", unet.fingerprint, [SHIPPED])
    assert found is not None
    assert unet.middle is not None
    assert found.module == unet.middle.name


def test_none_is_large() -> None:
    files = list(SHIPPED.glob("**/*.safetensors"))
    assert len(files) == len(CONCEPTS)
    assert sum(file.stat().st_size for file in files) < 2**18


def test_each_says_how_it_was_learnt_and_made_the_loss_less() -> None:
    for file in SHIPPED.glob("**/*.safetensors"):
        made = Direction.load(file)
        assert {"updates", "rate", "seed"} <= set(made.settings)
        assert made.report["loss_with"] < made.report["loss_without"]
