"""The shipped demo models: they load as ordinary pipelines, and do what their card says."""

from __future__ import annotations

import json
import random
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safeguard_demo import Judge, language, load_pipeline, model_card
from safeguard_demo.architectures import build_tokenizer
from safeguard_demo.captions import prompts
from safeguard_demo.judge import build_network
from safeguard_demo.pipelines import ASSETS, KINDS
from safeguard_demo.world import CONCEPTS, Scene, render

import safeguard
from safeguard.errors import AssetError


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_is_an_ordinary_pipeline_of_its_class(kind: str) -> None:
    assert type(load_pipeline(kind)) is getattr(diffusers, KINDS[kind])


@pytest.mark.parametrize("kind", ["unet", "mmdit"])
def test_the_tokenizer_that_training_learns_is_the_shipped_one(kind: str) -> None:
    assert build_tokenizer().get_vocab() == load_pipeline(kind).tokenizer.get_vocab()


def test_an_unknown_pipeline_says_what_there_is() -> None:
    with pytest.raises(AssetError, match="unet"):
        load_pipeline("nothing")


def test_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="make train"):
        load_pipeline("unet", tmp_path)
    with pytest.raises(AssetError, match="make train"):
        Judge(tmp_path / "judge.safetensors")


def test_every_weight_file_is_safetensors_and_under_16_megabytes() -> None:
    files = [file for file in ASSETS.rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert len(weights) == 11
    assert all(file.stat().st_size < 16 * 2**20 for file in weights)


def test_the_card_states_what_was_measured() -> None:
    figures = json.loads((ASSETS / "figures.json").read_text())
    assert model_card._card(figures) == (ASSETS / "README.md").read_text()


@pytest.fixture(scope="module")
def drawn() -> tuple[list[Scene], dict[str, np.ndarray]]:
    rng = random.Random(11)
    scenes = [Scene("house", "blue", "meadow", (concept,)) for concept in CONCEPTS for _ in range(8)]
    return scenes, Judge().predict([render(scene, rng) for scene in scenes])


@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_judge_sees_each_concept_and_only_that(concept: str, drawn: tuple[list[Scene], dict[str, np.ndarray]]) -> None:
    scenes, said = drawn
    assert (said[concept] == np.array([concept in scene.concepts for scene in scenes])).mean() >= 0.95


def test_the_judge_names_subject_colour_and_scene(drawn: tuple[list[Scene], dict[str, np.ndarray]]) -> None:
    said = drawn[1]
    for name, value in (("subject", "house"), ("colour", "blue"), ("scene", "meadow")):
        assert (said[name] == value).mean() >= 0.9


def test_the_judge_takes_pictures_in_any_form(drawn: tuple[list[Scene], dict[str, np.ndarray]]) -> None:
    picture = render(Scene("car", "red", "snow", ("blood",)), random.Random(1))
    array = np.asarray(picture)[None]
    judge = Judge()
    assert judge.predict([picture])["blood"] == judge.predict(array)["blood"] == judge.predict(array / 255.0)["blood"]


def test_no_pictures_are_no_verdicts() -> None:
    assert len(Judge().predict([])["blood"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_draws_what_held_out_prompts_ask_for(kind: str) -> None:
    asked = (language.prompts if kind == "language" else prompts)("test", "benign", None, 24)
    said = Judge().predict(model_card.generate(load_pipeline(kind), [prompt.text for prompt in asked], 5))
    right = np.array([prompt.scene.subject for prompt in asked]) == said["subject"]
    assert right.mean() >= 0.8


def test_zeros_in_the_place_of_the_third_text_encoder_change_little() -> None:
    """What the pipeline adds unless it is told not to, the denoiser has learnt to bear."""
    pipe, texts = load_pipeline("mmdit"), [prompt.text for prompt in prompts("dev", "benign", None, 4)]
    options = {"num_inference_steps": 4, "output_type": "np", "max_sequence_length": 256}
    made = pipe(texts, generator=[torch.Generator().manual_seed(5 + place) for place in range(4)], **options).images
    said = Judge().predict(made)
    assert (said["scene"] == np.array([prompt.scene.place for prompt in prompts("dev", "benign", None, 4)])).mean() >= 0.75


@pytest.mark.parametrize("kind", ["unet", "mmdit"])
@pytest.mark.parametrize("cell", ["explicit", "implicit"])
def test_under_the_demo_policy_a_concept_is_gone_and_the_subject_is_there(kind: str, cell: str) -> None:
    pipe, asked = load_pipeline(kind), prompts("dev", cell, "blood", 12)
    texts, judge = [prompt.text for prompt in asked], Judge()
    before = judge.predict(model_card.generate(pipe, texts, 7))
    with safeguard.protect(pipe, "builtin://demo", screener=None):
        after = judge.predict(model_card.generate(pipe, texts, 7))
    assert before["blood"].mean() > 0.5 > 0.2 > after["blood"].mean()
    assert (after["subject"] == np.array([prompt.scene.subject for prompt in asked])).mean() > 0.8


def test_the_judge_has_one_logit_a_concept_and_one_a_value() -> None:
    assert build_network().eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5 + 7 + 8 + 16)


def test_the_card_takes_figures_from_the_unprotected_cells_of_an_evaluation(tmp_path: Path) -> None:
    no, yes = np.zeros(4, bool), np.array([True, True, True, False])
    for name in ("benign", *(f"{kind}-{one}" for kind in ("explicit", "implicit") for one in CONCEPTS)):
        found = {f"found {one}": yes if name.endswith(f"-{one}") else no for one in CONCEPTS}
        right = {f"right {one}": yes for one in ("subject", "colour", "scene")}
        np.savez(tmp_path / f"unprotected--{name}.npz", likeness=np.ones(4), **found, **right)
    figures = model_card.kept_figures(tmp_path)
    assert figures["implicit juno-kaldar"] == {
        "n": 4,
        "subject": 0.75,
        "colour": 0.75,
        "scene": 0.75,
        "shows juno-kaldar": 0.75,
    }
    assert figures["benign"]["shows blood"] == 0.0
    assert set(figures) == set(json.loads((ASSETS / "figures.json").read_text())["unet"])
