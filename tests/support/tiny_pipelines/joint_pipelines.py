"""Stable Diffusion 3, Flux and Chroma: denoisers whose picture and text attend to each other."""

from __future__ import annotations

from typing import Any, Final

from safeguard.testing.tiny_pipelines import JOINT_OPTIONS
from tests.support.tiny_pipelines.codecs import image_codec
from tests.support.tiny_pipelines.tokenizers import WIDTH, clip, clip_words, t5, t5_words
from tests.support.tiny_pipelines.whole import SIDE, Whole, masks, part, pictures, plain, table, whole

BRIEF: Final[dict[str, Any]] = {"max_sequence_length": 32}
PICTURE: Final[dict[str, Any]] = {**BRIEF, "image": pictures}
CHANGED: Final[dict[str, Any]] = {**PICTURE, "strength": 1.0}
FILLED: Final[dict[str, Any]] = {**CHANGED, "mask_image": masks}
STEERED: Final[dict[str, Any]] = {**BRIEF, "control_image": pictures}
FLOW: Final = plain("FlowMatchEulerDiscreteScheduler")

SD3: Final = JOINT_OPTIONS
SD3_SHELF: Final[dict[str, Any]] = {
    "vae": image_codec(shift_factor=0.1),
    "transformer": part("SD3Transformer2DModel", **SD3),
    "text_encoder": clip("CLIPTextModelWithProjection"),
    "text_encoder_2": clip("CLIPTextModelWithProjection", hidden_act="gelu"),
    "text_encoder_3": t5(2 * WIDTH),
    "tokenizer": clip_words,
    "tokenizer_2": clip_words,
    "tokenizer_3": t5_words,
    "scheduler": FLOW,
    "controlnet": part("SD3ControlNetModel", **SD3),
}
FLUX: Final[dict[str, Any]] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (2, 2, 4),
}
GUIDED: Final[dict[str, Any]] = {**FLUX, "pooled_projection_dim": WIDTH, "guidance_embeds": True}
FLUX_SHELF: Final[dict[str, Any]] = {
    "vae": image_codec(shift_factor=0.1),
    "transformer": part("FluxTransformer2DModel", **GUIDED),
    "text_encoder": clip(),
    "text_encoder_2": t5(),
    "tokenizer": clip_words,
    "tokenizer_2": t5_words,
    "scheduler": FLOW,
    "controlnet": part("FluxControlNetModel", **GUIDED),
}
CHROMA: Final = part(
    "ChromaTransformer2DModel", **FLUX, approximator_num_channels=16, approximator_hidden_dim=32, approximator_layers=1
)


def chroma() -> Any:
    """The inpainting class asks the denoiser for a setting that the denoiser's class does not have."""
    transformer = CHROMA()
    transformer.register_to_config(guidance_embeds=False)
    return transformer


CHROMA_SHELF: Final[dict[str, Any]] = {
    "vae": image_codec(shift_factor=0.1),
    "transformer": chroma,
    "text_encoder": t5(),
    "tokenizer": t5_words,
    "scheduler": FLOW,
}


def _sd3() -> list[Whole]:
    rows = {
        "StableDiffusion3Pipeline": BRIEF,
        "StableDiffusion3Img2ImgPipeline": CHANGED,
        "StableDiffusion3PAGPipeline": BRIEF,
        "StableDiffusion3PAGImg2ImgPipeline": CHANGED,
        "StableDiffusion3ControlNetPipeline": STEERED,
    }
    masked = {**SD3_SHELF, "controlnet": part("SD3ControlNetModel", **SD3, extra_conditioning_channels=1)}
    given = {**BRIEF, "control_image": pictures, "control_mask": masks}
    steered = whole("StableDiffusion3ControlNetInpaintingPipeline", masked, given)
    broad = part("SD3Transformer2DModel", **{**SD3, "in_channels": 16, "out_channels": 16})
    filled = whole(
        "StableDiffusion3InpaintPipeline", {**SD3_SHELF, "vae": image_codec(16, shift_factor=0.1), "transformer": broad}, FILLED
    )
    return [*table(SD3_SHELF, rows), steered, filled]


def _flux() -> list[Whole]:
    kontext = {"max_area": SIDE * SIDE, "_auto_resize": False}
    rows = {
        "FluxPipeline": BRIEF,
        "FluxImg2ImgPipeline": CHANGED,
        "FluxInpaintPipeline": FILLED,
        "FluxControlNetPipeline": STEERED,
        "FluxControlNetImg2ImgPipeline": {**CHANGED, **STEERED},
        "FluxControlNetInpaintPipeline": {**FILLED, **STEERED},
        "FluxKontextPipeline": {**PICTURE, **kontext},
        "FluxKontextInpaintPipeline": {**FILLED, **kontext},
    }
    doubled = {**FLUX_SHELF, "transformer": part("FluxTransformer2DModel", **{**GUIDED, "in_channels": 32, "out_channels": 16})}
    tripled = {**FLUX_SHELF, "transformer": part("FluxTransformer2DModel", **{**GUIDED, "in_channels": 48, "out_channels": 16})}
    steered = {
        "FluxControlPipeline": STEERED,
        "FluxControlImg2ImgPipeline": {**CHANGED, **STEERED},
        "FluxControlInpaintPipeline": {**FILLED, **STEERED},
    }
    fill = whole("FluxFillPipeline", tripled, {**PICTURE, "mask_image": masks})
    return [*table(FLUX_SHELF, rows), *table(doubled, steered), fill]


def _chroma() -> list[Whole]:
    rows = {"ChromaPipeline": BRIEF, "ChromaImg2ImgPipeline": CHANGED, "ChromaInpaintPipeline": FILLED}
    return table(CHROMA_SHELF, rows)


def wholes() -> list[Whole]:
    return [*_sd3(), *_flux(), *_chroma()]
