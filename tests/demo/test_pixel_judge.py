"""The judge that measures areas: what it makes of drawings whose areas the renderer knows."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safeguard_demo.pixel_judge import PixelJudge
from safeguard_demo.world import CONCEPTS, SIZE, Scene, render, render_areas

from safeguard.errors import AssetError
from safeguard.evaluation.harness import JUDGES, AreaJudge
from safeguard.evaluation.pipeline_sources import registered


@pytest.fixture(scope="module")
def judge() -> PixelJudge:
    return PixelJudge()


@pytest.mark.parametrize("concept", CONCEPTS)
def test_an_area_is_near_the_one_that_was_drawn(concept: str, judge: PixelJudge) -> None:
    pictures, areas = zip(
        *(render_areas(Scene("house", "blue", "meadow", (concept,)), random.Random(n)) for n in range(8)), strict=True
    )
    drawn = np.array([np.asarray(area[concept].mask).mean() / 255 for area in areas])
    assert judge.areas(pictures)[concept] == pytest.approx(drawn, abs=0.08)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_drawing_without_a_concept_has_none_of_its_area(concept: str, judge: PixelJudge) -> None:
    pictures = [render(Scene("house", "blue", "meadow"), random.Random(n)) for n in range(8)]
    assert not judge.predict(pictures)[concept].any()


def test_a_faded_splatter_is_still_seen(judge: PixelJudge) -> None:
    scene = Scene("dog", "white", "snow", ("blood",))
    shown, areas = render_areas(scene, random.Random(4))
    half = Image.blend(areas["blood"].bare, shown, 0.6)
    assert judge.predict([half])["blood"][0]


def test_areas_are_of_what_each_concept_changed() -> None:
    scene = Scene("dog", "white", "snow", ("weapon", "blood"))
    shown, areas = render_areas(scene, random.Random(4))
    assert shown.tobytes() == render(scene, random.Random(4)).tobytes()
    assert set(areas) == {"weapon", "blood"}
    outside = np.asarray(areas["blood"].mask) == 0
    assert np.array_equal(np.asarray(areas["blood"].bare)[outside], np.asarray(shown)[outside])


def test_it_comes_by_the_entry_point_of_judges_and_measures() -> None:
    made = registered(JUDGES, "demo-pixels", "judge", "")(None)
    assert isinstance(made, AreaJudge)
    assert len(made.areas([])["blood"]) == 0


def test_it_takes_pictures_of_any_size(judge: PixelJudge) -> None:
    large = render(Scene("car", "red", "snow", ("blood",)), random.Random(1)).resize((2 * SIZE, 2 * SIZE))
    assert judge.predict([large])["blood"][0]


def test_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="make train"):
        PixelJudge(tmp_path / "none.safetensors")
