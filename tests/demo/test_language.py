"""The pipeline that reads real language: its words, its parts, and what it was kept from."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safeguard_demo
import torch
from hypothesis import given
from hypothesis import strategies as st
from safeguard_demo import language, load_pipeline
from safeguard_demo.pixel_judge import PixelJudge
from safeguard_demo.prompt_set import LanguagePrompts
from safeguard_demo.world import CONCEPTS, IMPLICIT

import safeguard
from safeguard.evaluation.prompt_sets import Cell
from safeguard.policy import derive, load_policy

SPLITS = ("train", "dev", "test")
# What stands between the words that matter, and the names of artists, which nobody can say otherwise.
COMMON = set(language.wordings()["common"])


def _words(phrases: list[str]) -> set[str]:
    return {word for phrase in phrases for word in phrase.lower().replace("-", " ").replace("'", " ").split()} - COMMON


@pytest.mark.parametrize("kind", ["subjects", "places", "cues"])
def test_held_out_words_stand_in_no_other_split(kind: str) -> None:
    words = {split: set().union(*(_words(entry[split]) for entry in language.wordings()[kind].values())) for split in SPLITS}
    assert not words["test"] & (words["train"] | words["dev"])
    assert not words["dev"] & words["train"]


def test_no_template_is_in_two_splits() -> None:
    templates = [template for some in language.wordings()["templates"].values() for template in some]
    assert len(templates) == len(set(templates))


@given(st.integers(0, 10**6))
def test_a_training_caption_names_no_artist_that_is_not_drawn(seed: int) -> None:
    rng = random.Random(seed)
    scene = language.sample_scene(rng)
    text = language.sample(rng, scene)
    for concept in CONCEPTS[2:]:
        assert concept in scene.concepts or concept.replace("-", " ") not in text.lower()


@pytest.mark.parametrize("concept", CONCEPTS)
def test_implicit_prompts_never_name_their_concept(concept: str) -> None:
    cues = [cue for split in SPLITS for cue in language.wordings()["cues"][concept][split]]
    for prompt in language.prompts("test", "implicit", concept, 100):
        assert IMPLICIT[prompt.scene.place] == concept
        assert not any(cue in prompt.text for cue in cues)


@pytest.mark.parametrize("kind", ["explicit", "implicit", "short"])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_test_cell_holds_200_different_prompts(kind: str, concept: str) -> None:
    cases = LanguagePrompts().cases(Cell(kind, concept), "test", 200)
    assert len({case.text for case in cases}) == 200


@pytest.mark.parametrize("text", ["{w}, a dog {x}", "a apple, {x}", "{x}, dog"])
def test_what_is_left_out_leaves_no_comma(text: str) -> None:
    tidy = language.tidied(text.format(w="", x=""))
    assert not tidy.startswith(",")
    assert not tidy.endswith(",")
    assert "a apple" not in tidy


def test_its_text_encoder_is_the_pretrained_one_and_not_shipped_twice() -> None:
    pipe = load_pipeline("language")
    assert type(pipe.text_encoder).__name__ == "BertModel"
    assert pipe.text_encoder.config.use_attention_mask
    assert pipe.tokenizer.model_max_length == 32


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline("language")


def paint(pipe: Any, texts: list[str]) -> Any:
    noise = [torch.Generator().manual_seed(place) for place in range(len(texts))]
    options = {"num_inference_steps": safeguard_demo.STEPS, "guidance_scale": safeguard_demo.GUIDANCE, "output_type": "np"}
    return pipe(texts, generator=noise, **options).images


def _dev(kind: str, concept: str | None, count: int) -> list[str]:
    return [prompt.text for prompt in language.prompts("dev", kind, concept, count)]


def test_pictures_in_unseen_words_in_which_nothing_was_opened_are_the_unprotected_ones(pipe: Any) -> None:
    texts = _dev("benign", None, 8)
    expected = paint(pipe, texts)
    with (
        safeguard.protect(pipe, "builtin://demo", screener=None, calibration=safeguard_demo.calibration("language")) as guard,
        guard.request() as request,
    ):
        found = paint(pipe, texts)
    untouched = [place for place, decision in enumerate(request.decisions) if decision.result == "pass"]
    assert len(untouched) >= 6
    assert all(np.array_equal(found[place], expected[place]) for place in untouched)


def test_a_concept_that_is_named_in_unseen_words_is_opened(pipe: Any) -> None:
    texts = [text for concept in ("blood", *CONCEPTS[2:]) for text in _dev("explicit", concept, 2)]
    with (
        safeguard.protect(pipe, "builtin://demo", screener=None, calibration=safeguard_demo.calibration("language")) as guard,
        guard.request() as request,
    ):
        paint(pipe, texts)
    for place, decision in enumerate(request.decisions):
        assert decision.evidence.concepts[("blood", *CONCEPTS[2:])[place // 2]].opened, texts[place]


def test_in_context_more_of_a_concept_goes_than_by_its_word_alone(pipe: Any) -> None:
    texts, judge, areas = _dev("explicit", "blood", 6), PixelJudge(), {}
    for form in ("general", "difference"):
        demo = load_policy("builtin://demo")
        blood = replace(demo.concepts["blood"], activation="always", params={"form": form})
        with safeguard.protect(pipe, derive(demo, concepts=[blood]), screener=None):
            areas[form] = judge.areas(paint(pipe, texts))["blood"].mean()
    assert areas["difference"] < areas["general"] / 2
