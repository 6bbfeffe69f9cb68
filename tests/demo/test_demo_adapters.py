"""The adapters that come with the package: they fit the demo pipelines, and say more where a concept is than where none is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import safeguard
from safeguard import demo
from safeguard.demo.captions import prompts
from safeguard.policy import Policy, derive, load_policy

COUNT = 4


@pytest.fixture(scope="module", params=["unet", "mmdit"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return demo.load_pipeline(str(request.param))


def blood(adapter: str) -> Policy:
    own: dict[str, Any] = {"eraser": "gie", "params": {"adapter": adapter}, "strength": 1.0}
    return derive(load_policy("builtin://demo"), concepts=["blood"], activation="always", **own)


def paint(pipe: Any, cell: str, policy: Policy | None) -> Any:
    texts = [prompt.text for prompt in prompts("dev", cell, "blood" if cell == "explicit" else None, COUNT)]
    noise = [torch.Generator().manual_seed(place) for place in range(len(texts))]
    options = {"num_inference_steps": demo.STEPS, "guidance_scale": demo.GUIDANCE, "output_type": "np"}
    call = {**options, **demo.call_options(pipe), "generator": noise}
    if policy is None:
        return pipe(texts, **call).images
    with safeguard.protect(pipe, policy, screener=None):
        return pipe(texts, **call).images


def test_benign_pictures_change_less_than_with_a_constant(pipe: Any) -> None:
    plain, fitted, constant = (paint(pipe, "benign", policy) for policy in (None, blood("default"), blood("none")))
    assert np.abs(fitted - plain).mean() < 0.9 * np.abs(constant - plain).mean()


def test_a_concept_that_is_named_is_inhibited_more_than_benign_pictures(pipe: Any) -> None:
    changes = {
        cell: np.abs(paint(pipe, cell, blood("default")) - paint(pipe, cell, None)).mean() for cell in ("explicit", "benign")
    }
    assert changes["explicit"] > changes["benign"]
