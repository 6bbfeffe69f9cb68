"""The demo world: what is drawn, what is said of it, and that the splits share nothing but words."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safeguard_demo import captions, world
from safeguard_demo.world import BENIGN_PLACES, COLOURS, CONCEPTS, IMPLICIT, PLACES, SUBJECTS, Scene, render

scenes = st.builds(Scene, st.sampled_from(SUBJECTS), st.sampled_from(tuple(COLOURS)), st.sampled_from(PLACES))


@given(scenes, st.integers(0, 1000))
def test_the_same_scene_and_seed_give_the_same_picture(scene: Scene, seed: int) -> None:
    assert render(scene, random.Random(seed)).tobytes() == render(scene, random.Random(seed)).tobytes()


@given(scenes, st.sampled_from(CONCEPTS), st.integers(0, 1000))
def test_every_concept_changes_the_picture(scene: Scene, concept: str, seed: int) -> None:
    shown = Scene(scene.subject, scene.colour, scene.place, (concept,))
    assert render(scene, random.Random(seed)).tobytes() != render(shown, random.Random(seed)).tobytes()


@given(scenes)
def test_a_picture_has_the_size_of_the_world(scene: Scene) -> None:
    assert render(scene, random.Random(0)).size == (world.SIZE, world.SIZE)


def test_every_combination_is_in_exactly_one_split() -> None:
    found = [set(captions.combinations(split)) for split in captions.SPLITS]
    assert sum(map(len, found)) == len(set().union(*found)) == len(SUBJECTS) * len(COLOURS) * len(PLACES)


def test_no_template_is_in_two_splits() -> None:
    templates = [template for split in captions.SPLITS for template in captions.TEMPLATES[split]]
    assert len(templates) == len(set(templates))


def test_held_out_prompts_use_only_words_of_training_captions() -> None:
    known = {word for text in captions.corpus() for word in text.lower().replace(",", " ").replace(":", " ").split()}
    for cell, concept in [("benign", None), *((cell, c) for cell in ("explicit", "implicit") for c in CONCEPTS)]:
        for prompt in captions.prompts("test", cell, concept, 200):
            assert set(prompt.text.lower().replace(",", " ").replace(":", " ").split()) <= known


@pytest.mark.parametrize("concept", CONCEPTS)
def test_implicit_prompts_never_name_their_concept(concept: str) -> None:
    names = {"blood": ["blood"], "weapon": ["weapon", "sword", "knife"]}.get(concept, concept.split("-"))
    for prompt in captions.prompts("test", "implicit", concept, 200):
        assert IMPLICIT[prompt.scene.place] == concept
        assert not any(name in prompt.text.lower() for name in names)


@pytest.mark.parametrize("cell", ["explicit", "implicit"])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_test_cell_holds_200_different_prompts(cell: str, concept: str) -> None:
    assert len({prompt.text for prompt in captions.prompts("test", cell, concept, 200)}) == 200


def test_benign_prompts_stand_at_benign_places_and_name_nothing() -> None:
    for prompt in captions.prompts("test", "benign", None, 200):
        assert prompt.scene.place in BENIGN_PLACES
        assert not prompt.named
        assert not prompt.scene.concepts


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="no cell"):
        captions.prompts("test", "explicit", None, 1)


@given(st.integers(0, 10**6))
def test_a_training_caption_names_only_what_is_drawn(seed: int) -> None:
    prompt = captions.sample(random.Random(seed))
    assert set(prompt.named) <= set(prompt.scene.concepts)


def test_implicit_places_bring_their_concept_as_often_as_stated() -> None:
    rng = random.Random(5)
    drawn = [captions.sample(rng).scene for _ in range(6000)]
    share = np.mean([IMPLICIT[scene.place] in scene.concepts for scene in drawn if scene.place in IMPLICIT])
    assert abs(share - world.CO_OCCURRENCE) < 0.02
