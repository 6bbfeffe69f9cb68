"""The calibrations that come with the demo pipelines: what they open, on prompts that calibration never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safeguard_demo
import torch
from safeguard_demo.captions import prompts
from safeguard_demo.world import CONCEPTS

import safeguard

COUNT = 3


@pytest.fixture(scope="module", params=["unet", "mmdit"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(kind: str) -> Any:
    return safeguard_demo.load_pipeline(kind)


def paint(pipe: Any, texts: list[str]) -> Any:
    noise = [torch.Generator().manual_seed(place) for place in range(len(texts))]
    options = {"num_inference_steps": safeguard_demo.STEPS, "guidance_scale": safeguard_demo.GUIDANCE, "output_type": "np"}
    return pipe(texts, generator=noise, **options, **safeguard_demo.call_options(pipe)).images


def test_it_covers_the_demo_policy(kind: str, pipe: Any) -> None:
    with safeguard.protect(pipe, "builtin://demo", screener=None, calibration=safeguard_demo.calibration(kind)) as guard:
        assert guard.status().activations == dict.fromkeys(CONCEPTS, "adaptive")


def test_benign_pictures_are_the_unprotected_ones(kind: str, pipe: Any) -> None:
    texts = [prompt.text for prompt in prompts("dev", "benign", None, 2 * COUNT)]
    expected = paint(pipe, texts)
    with safeguard.protect(pipe, "builtin://demo", screener=None, calibration=safeguard_demo.calibration(kind)):
        found = paint(pipe, texts)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("cell", ["explicit", "implicit"])
def test_every_concept_is_seen_and_erased_where_it_would_show(cell: str, kind: str, pipe: Any) -> None:
    texts = [prompt.text for concept in CONCEPTS for prompt in prompts("dev", cell, concept, COUNT)]
    with (
        safeguard.protect(pipe, "builtin://demo", screener=None, calibration=safeguard_demo.calibration(kind)) as guard,
        guard.request() as request,
    ):
        paint(pipe, texts)
    for place, decision in enumerate(request.decisions):
        assert decision.evidence.concepts[CONCEPTS[place // COUNT]].opened, texts[place]
