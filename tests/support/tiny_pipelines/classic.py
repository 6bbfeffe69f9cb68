"""Stable Diffusion 1, 2 and XL, and what was made of them."""

from __future__ import annotations

from typing import Any, Final

from safeguard.testing.tiny_pipelines import UNET_OPTIONS
from tests.support.tiny_pipelines.codecs import image_codec
from tests.support.tiny_pipelines.tokenizers import WIDTH, clip, clip_words
from tests.support.tiny_pipelines.whole import Make, Whole, masks, one_picture, part, pictures, plain, table, whole

TIME: Final = 8
BLOCKS: Final[dict[str, Any]] = {
    name: value for name, value in UNET_OPTIONS.items() if name not in ("up_block_types", "sample_size")
}
LARGE: Final[dict[str, Any]] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
    "cross_attention_dim": 2 * WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME,
    "projection_class_embeddings_input_dim": WIDTH + 6 * TIME,
}
HINT: Final[dict[str, Any]] = {"conditioning_embedding_out_channels": (4, 8)}
DDIM: Final = plain("DDIMScheduler", clip_sample=False, timestep_spacing="trailing", steps_offset=1)


def unet(**changes: Any) -> Make:
    return part("UNet2DConditionModel", **{**UNET_OPTIONS, **changes})


def large_unet(**changes: Any) -> Make:
    return unet(**{**LARGE, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **changes})


SMALL_SHELF: Final[dict[str, Any]] = {
    "vae": image_codec(),
    "text_encoder": clip(),
    "tokenizer": clip_words,
    "unet": unet(),
    "scheduler": DDIM,
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
    "controlnet": part("ControlNetModel", **BLOCKS, **HINT),
    "adapter": part("T2IAdapter", in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2),
}
LARGE_SHELF: Final[dict[str, Any]] = {
    "vae": image_codec(),
    "text_encoder": clip(),
    "text_encoder_2": clip("CLIPTextModelWithProjection", hidden_act="gelu"),
    "tokenizer": clip_words,
    "tokenizer_2": clip_words,
    "unet": large_unet(),
    "scheduler": DDIM,
    "add_watermarker": False,
    "controlnet": part("ControlNetModel", **{**BLOCKS, **LARGE}, **HINT),
    "adapter": part(
        "T2IAdapter",
        in_channels=3,
        channels=[16, 32, 32, 32],
        num_res_blocks=1,
        downscale_factor=4,
        adapter_type="full_adapter_xl",
    ),
}
PICTURE: Final[dict[str, Any]] = {"image": pictures}
CHANGED: Final[dict[str, Any]] = {"image": pictures, "strength": 1.0}
FILLED: Final[dict[str, Any]] = {"image": pictures, "mask_image": masks, "strength": 1.0}
STEERED: Final[dict[str, Any]] = {"control_image": pictures}


def _small() -> list[Whole]:
    plain_rows: dict[str, dict[str, Any]] = {
        "StableDiffusionPipeline": {},
        "StableDiffusionPAGPipeline": {},
        "StableDiffusionImg2ImgPipeline": CHANGED,
        "StableDiffusionPAGImg2ImgPipeline": CHANGED,
        "StableDiffusionInpaintPipeline": FILLED,
        "StableDiffusionPAGInpaintPipeline": FILLED,
        "StableDiffusionControlNetPipeline": PICTURE,
        "StableDiffusionControlNetPAGPipeline": PICTURE,
        "StableDiffusionControlNetImg2ImgPipeline": {**CHANGED, **STEERED},
        "StableDiffusionControlNetInpaintPipeline": {**FILLED, **STEERED},
        "StableDiffusionControlNetPAGInpaintPipeline": {**FILLED, **STEERED},
        "StableDiffusionAdapterPipeline": PICTURE,
        "StableDiffusionSAGPipeline": {},
        "SemanticStableDiffusionPipeline": {},
        "StableDiffusionModelEditingPipeline": {},
    }
    wide = {**SMALL_SHELF, "unet": unet(in_channels=8)}
    return [*table(SMALL_SHELF, plain_rows), whole("StableDiffusionInstructPix2PixPipeline", wide, PICTURE)]


def _large() -> list[Whole]:
    rows: dict[str, dict[str, Any]] = {
        "StableDiffusionXLPipeline": {},
        "StableDiffusionXLPAGPipeline": {},
        "StableDiffusionXLImg2ImgPipeline": CHANGED,
        "StableDiffusionXLPAGImg2ImgPipeline": CHANGED,
        "StableDiffusionXLInpaintPipeline": FILLED,
        "StableDiffusionXLPAGInpaintPipeline": FILLED,
        "StableDiffusionXLControlNetPipeline": PICTURE,
        "StableDiffusionXLControlNetPAGPipeline": PICTURE,
        "StableDiffusionXLControlNetImg2ImgPipeline": {**CHANGED, **STEERED},
        "StableDiffusionXLControlNetPAGImg2ImgPipeline": {**CHANGED, **STEERED},
        "StableDiffusionXLControlNetInpaintPipeline": {**FILLED, **STEERED},
        "StableDiffusionXLAdapterPipeline": PICTURE,
    }
    wide = {**LARGE_SHELF, "unet": large_unet(in_channels=8)}
    return [*table(LARGE_SHELF, rows), whole("StableDiffusionXLInstructPix2PixPipeline", wide, {"image": one_picture})]


def wholes() -> list[Whole]:
    return [*_small(), *_large()]
