"""By which path a concept reaches the picture, told by swapping texts with a twin's."""

from __future__ import annotations

import pytest
from safeguard_demo import Judge, load_pipeline
from safeguard_demo.captions import prompts

from docs.studies.text_paths import follow, twin
from safeguard.errors import CapabilityError
from safeguard.evaluation.harness import Harness


def test_with_all_of_the_twins_text_nothing_of_the_concept_is_left() -> None:
    studio = Harness(load_pipeline("mmdit"), Judge(), steps=6, guidance=4.0)
    found = follow(studio, "explicit", "veska-rimm", 6)
    assert found.whole > 0.5 > 0.2 > found.twins_both


@pytest.mark.parametrize("cell", ["explicit", "implicit"])
def test_a_twin_says_the_same_and_neither_names_nor_implies_the_concept(cell: str) -> None:
    for prompt in prompts("dev", cell, "blood", 8):
        text = twin(prompt, "dev")
        assert prompt.scene.subject in text
        assert prompt.scene.colour in text
        assert not {"blood", "battlefield", "accident"} & set(text.split())


def test_a_pipeline_without_a_pooled_text_is_refused(studio: Harness) -> None:
    with pytest.raises(CapabilityError, match="third encoder"):
        follow(studio, "explicit", "blood", 2)
