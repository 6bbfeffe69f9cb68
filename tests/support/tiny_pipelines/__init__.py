"""Tiny random whole pipelines of diffusers: every text-conditioned class that can be built without a hub."""

from __future__ import annotations

from typing import Final

from tests.support.tiny_pipelines import classic, joint_pipelines, late, modern, modular, motion, older, still, video
from tests.support.tiny_pipelines.whole import Whole, run

__all__ = ["UNBUILT", "WHOLES", "Whole", "run"]

FAMILIES: Final = (classic, older, joint_pipelines, still, modern, video, motion, late, modular)
WHOLES: Final[dict[str, Whole]] = {one.pipeline: one for family in FAMILIES for one in family.wholes()}
UNBUILT: Final[dict[str, str]] = {
    "AmusedImg2ImgPipeline": "runs, but with random weights too few tokens change for every prompt to matter",
    "BriaFiboEditPipeline": "takes prompts in the form of structured edits only",
    "ConsisIDPipeline": "needs opencv",
    "CycleDiffusionPipeline": "runs, but its output stays the same whatever the prompt, in two and three steps",
    "KolorsImg2ImgPipeline": "needs sentencepiece",
    "KolorsPAGPipeline": "needs sentencepiece",
    "KolorsPipeline": "needs sentencepiece",
    **modular.UNBUILT,
    "OmniGenPipeline": "its processor needs torchvision",
}
