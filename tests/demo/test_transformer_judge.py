"""The second judge by class: what it makes of drawings, whole and half erased."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safeguard_demo.train_transformer_judge import GONE, SHOWN, erased_scenes
from safeguard_demo.transformer_judge import TransformerJudge
from safeguard_demo.world import CONCEPTS, SIZE, Scene, render, render_areas

from safeguard.errors import AssetError
from safeguard.evaluation.harness import JUDGES, AreaJudge
from safeguard.evaluation.pipeline_sources import registered


@pytest.fixture(scope="module")
def judge() -> TransformerJudge:
    return TransformerJudge()


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_concept_that_was_drawn_is_seen(concept: str, judge: TransformerJudge) -> None:
    pictures = [render(Scene("house", "blue", "meadow", (concept,)), random.Random(n)) for n in range(8)]
    assert judge.predict(pictures)[concept].sum() >= 7


def test_a_drawing_without_concepts_shows_none(judge: TransformerJudge) -> None:
    pictures = [render(Scene("house", "blue", "meadow"), random.Random(n)) for n in range(8)]
    assert not np.any([judge.predict(pictures)[concept] for concept in CONCEPTS])


def test_a_faded_splatter_is_still_seen(judge: TransformerJudge) -> None:
    shown, areas = render_areas(Scene("dog", "white", "snow", ("blood",)), random.Random(4))
    half = Image.blend(areas["blood"].bare, shown, 0.5)
    assert judge.predict([half])["blood"][0]


def test_it_says_subject_colour_and_scene_as_the_first_judge_does(judge: TransformerJudge) -> None:
    seen = judge.predict([render(Scene("car", "red", "snow"), random.Random(1))])
    assert (seen["subject"][0], seen["colour"][0], seen["scene"][0]) == ("car", "red", "snow")


def test_it_comes_by_the_entry_point_of_judges_and_measures_no_area() -> None:
    made = registered(JUDGES, "demo-transformer", "judge", "")(None)
    assert not isinstance(made, AreaJudge)
    assert len(made.predict([])["blood"]) == 0


def test_it_takes_pictures_of_any_size(judge: TransformerJudge) -> None:
    large = render(Scene("car", "red", "snow", ("blood",)), random.Random(1)).resize((2 * SIZE, 2 * SIZE))
    assert judge.predict([large])["blood"][0]


def test_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="make train"):
        TransformerJudge(tmp_path / "none.safetensors")


def test_it_is_taught_with_whole_half_erased_and_gone_concepts() -> None:
    images, stays = erased_scenes(random.Random(0), 64)
    drawn = stays[stays > 0]
    assert images.shape == (64, 3, SIZE, SIZE)
    assert (stays == 0).any(1).all()
    assert (drawn == 1).any()
    assert ((drawn > SHOWN) & (drawn < 1)).any()
    assert (drawn < GONE).any()


def test_the_same_draw_makes_the_same_pictures() -> None:
    one, other = (erased_scenes(random.Random(3), 8)[0] for _ in range(2))
    assert one.equal(other)
