"""The adapters that come with the package: they fit the demo pipelines, are small, and do what they were trained for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safeguard_demo
import torch
from safeguard_demo.captions import prompts
from safeguard_demo.world import CONCEPTS

import safeguard
from safeguard.instrument import Attachment
from safeguard.policy import Policy, derive, load_policy
from safeguard.sdk.adapter import Adapter, shipped
from safeguard.training.textual_inversion import LearnedWord

COUNT = 4
SHIPPED = Path(safeguard_demo.__file__).with_name("adapters")
WORDS = sorted(SHIPPED.glob("*.word.safetensors"))
FILES = sorted(set(SHIPPED.glob("*.safetensors")) - set(WORDS))


@pytest.fixture(scope="module", params=["unet", "mmdit"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return safeguard_demo.load_pipeline(str(request.param))


def blood(adapter: str) -> Policy:
    own: dict[str, Any] = {"eraser": "gie", "params": {"adapter": adapter}, "strength": 1.0}
    return derive(load_policy("builtin://demo"), concepts=["blood"], activation="always", **own)


def paint(pipe: Any, cell: str, policy: Policy | None) -> Any:
    texts = [prompt.text for prompt in prompts("dev", cell, "blood" if cell == "explicit" else None, COUNT)]
    noise = [torch.Generator().manual_seed(place) for place in range(len(texts))]
    options = {"num_inference_steps": safeguard_demo.STEPS, "guidance_scale": safeguard_demo.GUIDANCE, "output_type": "np"}
    call = {**options, **safeguard_demo.call_options(pipe), "generator": noise}
    if policy is None:
        return pipe(texts, **call).images
    with safeguard.protect(pipe, policy, screener=None):
        return pipe(texts, **call).images


def changed(pipe: Any, cell: str, adapter: str) -> float:
    """By how much ``gie`` changes the pictures of a cell, in the mean."""
    return float(np.abs(paint(pipe, cell, blood(adapter)) - paint(pipe, cell, None)).mean())


def test_a_concept_is_told_from_benign_pictures_better_than_by_a_constant(pipe: Any) -> None:
    fitted, constant = (changed(pipe, "explicit", one) / changed(pipe, "benign", one) for one in ("default", "none"))
    assert fitted > constant


def test_benign_pictures_of_the_unet_change_less_than_with_a_constant() -> None:
    """On the MMDiT they hardly do: much of a concept comes by the pooled text there, which the features do not show."""
    unet = safeguard_demo.load_pipeline("unet")
    assert changed(unet, "benign", "default") < 0.9 * changed(unet, "benign", "none")


def test_all_together_are_small() -> None:
    assert sum(file.stat().st_size for file in (*FILES, *WORDS)) < 2**23


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_each_is_named_by_its_method_and_says_how_it_was_trained(file: Path) -> None:
    made = Adapter.load(file, file.stem.partition("-")[0])
    assert {"seed", "steps", "guidance"} <= set(made.settings)
    assert made.report


def test_gie_has_one_for_each_pipeline(pipe: Any) -> None:
    found = shipped("gie", Attachment(pipe).fingerprint)
    assert found is not None
    assert set(found.settings["concepts"]) == set(CONCEPTS)


def test_self_discovery_has_one_for_each_concept(pipe: Any) -> None:
    attachment = Attachment(pipe)
    for concept in CONCEPTS:
        found = shipped("self_discovery", attachment.fingerprint, concept=concept)
        assert found is not None
        assert attachment.middle is not None
        assert found.settings["module"] == attachment.middle.name
        assert found.report["loss_with"] < found.report["loss_without"]


@pytest.mark.parametrize("method", ["sdd", "esd"])
def test_deltas_come_for_each_concept(pipe: Any, method: str) -> None:
    fingerprint = Attachment(pipe).fingerprint
    for concept in CONCEPTS:
        found = shipped(method, fingerprint, concept=concept)
        assert found is not None
        assert found.report["along"] < 0.5


@pytest.mark.parametrize("file", WORDS, ids=[file.name for file in WORDS])
def test_each_word_can_be_loaded(file: Path) -> None:
    word, unet = LearnedWord.load(file), safeguard_demo.load_pipeline("unet")
    unet.load_textual_inversion(str(file), token=word.token)
    (text,) = Attachment(unet).encode([word.token])
    assert len(text.content) == len(word.rows["clip_l"])


@pytest.mark.parametrize("concept", CONCEPTS)
def test_hfi_has_one_for_each_concept_of_the_unet_and_its_word_beside_it(concept: str) -> None:
    found = shipped("hfi", Attachment(safeguard_demo.load_pipeline("unet")).fingerprint, concept=concept)
    assert found is not None
    word = LearnedWord.load(SHIPPED / f"hfi-unet-{concept}.word.safetensors")
    assert (word.digest, word.token) == (found.settings["word"], found.settings["token"])
    assert found.report["loss_after"] < found.report["loss_before"]
    assert found.report["along"] < 0.35
    assert found.settings["by_person"] == 0  # nobody was asked


def test_a_sequence_comes_with_the_package(pipe: Any) -> None:
    found = shipped("ccrt", Attachment(pipe).fingerprint)
    assert found is not None
    for concept in found.settings["sequence"]:
        assert concept in CONCEPTS
        assert found.report[f"{concept}_along"] < 0.5
