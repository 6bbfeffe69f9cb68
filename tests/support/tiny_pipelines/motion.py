"""Denoisers of Stable Diffusion that learnt to move: AnimateDiff, text to video, I2VGen."""

from __future__ import annotations

from typing import Any, Final

from tests.support.tiny_pipelines.classic import LARGE_SHELF, SMALL_SHELF
from tests.support.tiny_pipelines.codecs import image_codec
from tests.support.tiny_pipelines.tokenizers import WIDTH, clip, clip_words
from tests.support.tiny_pipelines.video import one_video
from tests.support.tiny_pipelines.whole import SIDE, Whole, generators, one_picture, part, plain, table, whole

FRAMES: Final = 5
MOTION: Final[dict[str, Any]] = {
    "block_out_channels": (16, 32),
    "motion_layers_per_block": 1,
    "motion_num_attention_heads": 4,
    "motion_norm_num_groups": 8,
    "motion_max_seq_length": 16,
}
SPARSE: Final[dict[str, Any]] = {
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "motion_max_seq_length": 16,
    "motion_num_attention_heads": 4,
}


def _animated() -> list[Whole]:
    linear = plain("DDIMScheduler", clip_sample=False, beta_schedule="linear", timestep_spacing="linspace", steps_offset=1)
    shelf = {
        **SMALL_SHELF,
        "motion_adapter": part("MotionAdapter", **MOTION),
        "scheduler": linear,
        "feature_extractor": None,
        "image_encoder": None,
    }
    large = {**LARGE_SHELF, "motion_adapter": shelf["motion_adapter"], "scheduler": linear}
    sparse = {**shelf, "controlnet": part("SparseControlNetModel", **SPARSE)}
    short: dict[str, Any] = {"num_frames": FRAMES}
    rows: dict[str, dict[str, Any]] = {
        "AnimateDiffPipeline": short,
        "AnimateDiffPAGPipeline": short,
    }
    changed: dict[str, Any] = {"video": one_video, "strength": 1.0, "generator": lambda count: generators(1)}
    return [
        *table(shelf, rows),
        whole("AnimateDiffControlNetPipeline", shelf, {**short, "conditioning_frames": one_video}, prompts=1),
        whole("AnimateDiffVideoToVideoPipeline", shelf, changed, prompts=1),
        whole("AnimateDiffVideoToVideoControlNetPipeline", shelf, {**changed, "conditioning_frames": one_video}, prompts=1),
        whole("AnimateDiffSDXLPipeline", large, short),
        whole("AnimateDiffSparseControlNetPipeline", sparse, {**short, "conditioning_frames": one_picture}),
    ]


def _moving() -> list[Whole]:
    blocks: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    shelf = {
        "vae": image_codec(),
        "text_encoder": clip(),
        "tokenizer": clip_words,
        "unet": part("UNet3DConditionModel", **blocks, sample_size=SIDE // 2),
        "scheduler": SMALL_SHELF["scheduler"],
    }
    changed: dict[str, Any] = {"video": one_video, "strength": 1.0}
    return [
        whole("TextToVideoSDPipeline", shelf, {"num_frames": FRAMES}),
        whole("VideoToVideoSDPipeline", shelf, changed, prompts=1),
    ]


def _zero() -> list[Whole]:
    given: dict[str, Any] = {"video_length": 2, "t0": 0, "t1": 1}
    return [
        whole("TextToVideoZeroPipeline", SMALL_SHELF, given, prompts=1),
        whole("TextToVideoZeroSDXLPipeline", LARGE_SHELF, given, prompts=1),
    ]


def wholes() -> list[Whole]:
    return [*_animated(), *_moving(), *_zero()]
