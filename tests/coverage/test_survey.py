"""The proof of coverage: what it finds on a sample of classes, and that it would see a gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.coverage import survey
from tests.coverage.survey import CHECKS, PROMPTS, ROWS, CoverageRow, of_denoiser, of_whole, page
from tests.support.stub_pipeline import StubPipeline
from tests.support.tiny_denoisers import SPECIMENS, UNBUILT

KEPT = json.loads((Path(__file__).parents[2] / "docs" / "results" / "coverage.json").read_text("utf-8"))
SAMPLE = (
    "UNet2DConditionModel",
    "UNetMotionModel",
    "PixArtTransformer2DModel",
    "WanTransformer3DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "MochiTransformer3DModel",
    "ZImageTransformer2DModel",
    "Lumina2Transformer2DModel",
    "BriaFibo2Transformer2DModel",
)
WHOLE_SAMPLE = ("StableDiffusionXLPipeline", "FluxPipeline", "PixArtSigmaPipeline", "Lumina2Pipeline")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``denoiser`` is each of `SAMPLE`, or with ``--all-products`` every class there is."""
    if "denoiser" in metafunc.fixturenames:
        metafunc.parametrize("denoiser", list(SPECIMENS) if metafunc.config.getoption("--all-products") else SAMPLE)


def test_a_denoiser_class_passes_the_checks_that_the_page_says(denoiser: str) -> None:
    (kept,) = [CoverageRow(**line) for line in KEPT["denoisers"] if line["name"] == denoiser]
    line = of_denoiser(denoiser)
    assert (bool(line.refused), line.failed, line.passed) == (bool(kept.refused), tuple(kept.failed), tuple(kept.passed))


@pytest.mark.parametrize("name", WHOLE_SAMPLE)
def test_a_whole_pipeline_passes_every_check(name: str) -> None:
    line = of_whole(name)
    assert (line.refused, line.failed) == ("", ())


def test_a_class_in_reach_of_no_site_is_refused_with_a_reason() -> None:
    assert "carries text tokens to the image" in of_denoiser("WuerstchenPrior").refused


def test_a_pipeline_that_ignores_its_guard_is_a_silent_gap() -> None:
    pipe = StubPipeline.of(SPECIMENS["SD3Transformer2DModel"])
    kept: list[torch.Tensor] = []

    def paint(pipe: Any) -> torch.Tensor:
        if not kept:
            kept.append(pipe(PROMPTS))
        return kept[0].clone()

    line = survey.inspect("a pipeline that paints from memory", "C", pipe, paint)
    assert "effect at strength" in line.failed
    assert line.silent


def test_to_protect_every_row_is_no_gap() -> None:
    line = CoverageRow("any", "C", "3 joint", 3, False, tuple(check for check in CHECKS if check != ROWS), (ROWS,))
    assert not line.silent
    assert not line.protected


def test_the_kept_results_hold_no_silent_gap() -> None:
    lines = [CoverageRow(**line) for line in (*KEPT["denoisers"], *KEPT["pipelines"])]
    assert [line.name for line in lines if line.silent] == []


def test_the_kept_results_are_of_every_class_there_is() -> None:
    """A new diffusers brings new classes: `make coverage` then says what changed."""
    assert {line["name"] for line in KEPT["denoisers"]} == {*SPECIMENS, *UNBUILT}
    assert KEPT["diffusers"] == diffusers.__version__


def test_the_page_says_what_the_results_say() -> None:
    shown = (Path(__file__).parents[2] / "docs" / "coverage.md").read_text("utf-8")
    denoisers, wholes = ([CoverageRow(**line) for line in KEPT[kind]] for kind in ("denoisers", "pipelines"))
    assert shown == page(denoisers, wholes, KEPT["diffusers"])
