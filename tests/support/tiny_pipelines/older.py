"""Variants of Stable Diffusion with other denoisers or other calls, and older two-stage families."""

from __future__ import annotations

from typing import Any, Final

import diffusers
import torch
from torch import Tensor

from tests.support.tiny_pipelines.classic import (
    BLOCKS,
    CHANGED,
    FILLED,
    HINT,
    LARGE,
    LARGE_SHELF,
    PICTURE,
    SMALL_SHELF,
    large_unet,
    unet,
)
from tests.support.tiny_pipelines.codecs import image_codec, vq_codec
from tests.support.tiny_pipelines.tokenizers import WIDTH, clip, clip_words, t5, t5_words, vision
from tests.support.tiny_pipelines.whole import (
    SIDE,
    STEPS,
    Make,
    Whole,
    generators,
    masks,
    part,
    picture,
    pictures,
    plain,
    stir,
    table,
    whole,
)

SQUARED: Final[dict[str, Any]] = {"beta_schedule": "squaredcos_cap_v2"}
PRIOR: Final = part(
    "PriorTransformer",
    num_attention_heads=4,
    attention_head_dim=8,
    num_layers=2,
    num_embeddings=77,
    additional_embeddings=4,
    embedding_dim=WIDTH,
)


def embeddings(count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(7))


def depths(count: int) -> Tensor:
    return torch.rand(count, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(8))


def _small() -> list[Whole]:
    quick = {**SMALL_SHELF, "unet": unet(time_cond_proj_dim=16), "scheduler": plain("LCMScheduler"), "image_encoder": None}
    parallel = {**SMALL_SHELF, "scheduler": plain("DDIMParallelScheduler", clip_sample=False)}
    deep = {**SMALL_SHELF, "unet": unet(in_channels=5), "depth_estimator": None}
    larger = {**SMALL_SHELF, "unet": unet(in_channels=7, num_class_embeds=1000), "low_res_scheduler": plain("DDPMScheduler")}
    gated = {**SMALL_SHELF, "unet": unet(attention_type="gated")}
    boxes: dict[str, Any] = {
        "gligen_phrases": ["a boat"],
        "gligen_boxes": [[0.1, 0.1, 0.6, 0.7]],
        "gligen_scheduled_sampling_beta": 1.0,
    }
    doubled = {**SMALL_SHELF, "image_encoder": None, "vae": image_codec(in_channels=6, out_channels=6)}
    return [
        *table(quick, {"LatentConsistencyModelPipeline": {}, "LatentConsistencyModelImg2ImgPipeline": CHANGED}),
        whole("StableDiffusionAttendAndExcitePipeline", SMALL_SHELF, {"token_indices": [2], "max_iter_to_alter": 1}, prompts=1),
        whole("StableDiffusionLDM3DPipeline", doubled, {"output_type": "np"}),
        whole("StableDiffusionParadigmsPipeline", parallel, {"parallel": 2}, prompts=1),
        whole("StableDiffusionPanoramaPipeline", SMALL_SHELF, prompts=1),
        whole("StableDiffusionDepth2ImgPipeline", deep, {**CHANGED, "depth_map": depths}),
        whole(
            "StableDiffusionUpscalePipeline",
            larger,
            {"image": lambda count: [picture(place, side=16) for place in range(count)]},
        ),
        whole("StableDiffusionGLIGENPipeline", gated, boxes, prompts=1),
        whole(
            "StableDiffusionControlNetXSPipeline",
            {**SMALL_SHELF, "controlnet": _beside(unet(layers_per_block=2)), "unet": unet(layers_per_block=2)},
            PICTURE,
        ),
    ]


def _beside(make: Make) -> Make:
    def made() -> Any:
        options: dict[str, Any] = {"size_ratio": 1.0, "conditioning_embedding_out_channels": (4, 8)}
        return stir(diffusers.ControlNetXSAdapter.from_unet(make(), **options)).eval()

    return made


def _large() -> list[Whole]:
    options: dict[str, Any] = {"num_control_type": 2, "num_trans_channel": 16, "num_trans_head": 4, "num_trans_layer": 1}
    union = part("ControlNetUnionModel", **{**BLOCKS, **LARGE}, **HINT, **options, num_proj_channel=16)
    shelf = {**LARGE_SHELF, "controlnet": union}
    chosen: dict[str, Any] = {"control_image": lambda count: [pictures(count)], "control_mode": [0]}
    rows: dict[str, dict[str, Any]] = {
        "StableDiffusionXLControlNetUnionPipeline": chosen,
        "StableDiffusionXLControlNetUnionImg2ImgPipeline": {**CHANGED, **chosen},
        "StableDiffusionXLControlNetUnionInpaintPipeline": {**FILLED, **chosen},
    }
    beside = whole(
        "StableDiffusionXLControlNetXSPipeline",
        {**LARGE_SHELF, "controlnet": _beside(large_unet(layers_per_block=2)), "unet": large_unet(layers_per_block=2)},
        PICTURE,
    )
    return [*table(shelf, rows), beside]


def _unclip() -> list[Whole]:
    denoiser = unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH)
    shelf = {
        **SMALL_SHELF,
        "unet": denoiser,
        "image_encoder": vision(),
        "image_normalizer": _normalizer,
        "image_noising_scheduler": plain("DDPMScheduler", **SQUARED),
        "prior": PRIOR,
        "prior_tokenizer": clip_words,
        "prior_text_encoder": clip("CLIPTextModelWithProjection"),
        "prior_scheduler": plain("UnCLIPScheduler", prediction_type="sample"),
    }
    given: dict[str, Any] = {"prior_num_inference_steps": STEPS}
    return [
        whole("StableUnCLIPPipeline", shelf, given),
        whole("StableUnCLIPImg2ImgPipeline", shelf, {"image_embeds": embeddings}),
    ]


def _normalizer() -> Any:
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    return StableUnCLIPImageNormalizer(embedding_dim=WIDTH).eval()


def _floyd() -> list[Whole]:
    options: dict[str, Any] = {
        "sample_size": SIDE,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "in_channels": 3,
        "out_channels": 6,
        "encoder_hid_dim": WIDTH,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "cross_attention_norm": "group_norm",
        "resnet_time_scale_shift": "scale_shift",
    }
    shelf = {
        "tokenizer": t5_words,
        "text_encoder": t5(),
        "unet": unet(**options),
        "scheduler": plain("DDPMScheduler", **SQUARED, variance_type="learned_range", prediction_type="epsilon"),
        "image_noising_scheduler": plain("DDPMScheduler", **SQUARED),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }
    larger = {**shelf, "unet": unet(**{**options, "in_channels": 6, "class_embed_type": "timestep"})}
    low: dict[str, Any] = {"output_type": "np", "image": lambda count: [picture(place, side=16) for place in range(count)]}
    full: dict[str, Any] = {**low, "original_image": pictures, "strength": 1.0}
    rows: dict[str, dict[str, Any]] = {
        "IFPipeline": {"output_type": "np"},
        "IFImg2ImgPipeline": {**CHANGED, "output_type": "np"},
        "IFInpaintingPipeline": {**FILLED, "output_type": "np"},
    }
    second = {
        "IFSuperResolutionPipeline": low,
        "IFImg2ImgSuperResolutionPipeline": full,
        "IFInpaintingSuperResolutionPipeline": {**full, "mask_image": masks},
    }
    return [*table(shelf, rows), *table(larger, second)]


def _kandinsky() -> list[Whole]:
    third = {
        "tokenizer": t5_words,
        "text_encoder": t5(),
        "unet": part(
            "Kandinsky3UNet",
            time_embedding_dim=16,
            groups=4,
            attention_head_dim=4,
            layers_per_block=2,
            block_out_channels=(8, 8, 8, 16),
            cross_attention_dim=WIDTH,
            encoder_hid_dim=WIDTH,
        ),
        "scheduler": plain("DDPMScheduler", beta_schedule="linear"),
        "movq": vq_codec(),
    }
    second = {
        "prior": PRIOR,
        "text_encoder": clip("CLIPTextModelWithProjection"),
        "tokenizer": clip_words,
        "image_encoder": vision(),
        "image_processor": None,
        "scheduler": plain("UnCLIPScheduler", prediction_type="sample", clip_sample=True, clip_sample_range=5.0),
    }
    return [
        *table(third, {"Kandinsky3Pipeline": {}, "Kandinsky3Img2ImgPipeline": CHANGED}),
        *table(second, {"KandinskyPriorPipeline": {"output_type": "pt"}, "KandinskyV22PriorPipeline": {"output_type": "pt"}}),
    ]


def _combined() -> list[Whole]:
    """The text reaches the picture through an embedding of a picture that a prior makes of it."""
    options: dict[str, Any] = {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "out_channels": 8,
        "encoder_hid_dim": WIDTH,
        "encoder_hid_dim_type": "image_proj",
        "addition_embed_type": "image",
        "resnet_time_scale_shift": "scale_shift",
    }
    shelf = {
        "prior_prior": PRIOR,
        "prior_text_encoder": clip("CLIPTextModelWithProjection"),
        "prior_tokenizer": clip_words,
        "prior_image_encoder": vision(),
        "prior_image_processor": None,
        "prior_scheduler": plain("UnCLIPScheduler", prediction_type="sample", clip_sample=True, clip_sample_range=5.0),
        "unet": unet(**options),
        "scheduler": plain("DDPMScheduler", beta_schedule="linear", variance_type="learned_range"),
        "movq": vq_codec(),
    }
    given: dict[str, Any] = {"prior_num_inference_steps": STEPS}
    rows = {"KandinskyV22CombinedPipeline": given, "KandinskyV22Img2ImgCombinedPipeline": {**CHANGED, **given}}
    filled = {**given, "image": pictures, "mask_image": masks}
    wide = {**shelf, "unet": unet(**options, in_channels=9)}
    return [*table(shelf, rows), whole("KandinskyV22InpaintCombinedPipeline", wide, filled)]


def _wuerstchen() -> list[Whole]:
    shelf = {
        "prior": _wuerstchen_prior,
        "text_encoder": clip(),
        "tokenizer": clip_words,
        "scheduler": plain("DDPMWuerstchenScheduler"),
        "resolution_multiple": 4.0,
    }
    return [whole("WuerstchenPriorPipeline", shelf)]


def _wuerstchen_prior() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior

    return stir(WuerstchenPrior(c_in=4, c=16, c_cond=WIDTH, c_r=16, depth=2, nhead=2)).eval()


def _amused() -> list[Whole]:
    options: dict[str, Any] = {
        "hidden_size": 32,
        "cond_embed_dim": WIDTH,
        "micro_cond_encode_dim": 4,
        "micro_cond_embed_dim": 20,
        "encoder_hidden_size": WIDTH,
        "vocab_size": 64,
        "codebook_size": 32,
        "in_channels": 32,
        "block_out_channels": 32,
        "num_res_blocks": 1,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "block_num_heads": 4,
        "sample_size": SIDE // 2,
    }
    shelf = {
        "vqvae": vq_codec(num_vq_embeddings=32),
        "tokenizer": clip_words,
        "text_encoder": clip("CLIPTextModelWithProjection"),
        "transformer": part("UVit2DModel", **options),
        "scheduler": plain("AmusedScheduler", mask_token_id=63),
    }
    one: dict[str, Any] = {"generator": lambda count: generators(1)[0]}  # its schedule draws from one generator
    rows = {"AmusedPipeline": one, "AmusedInpaintPipeline": {**FILLED, **one}}
    return table(shelf, rows)


def wholes() -> list[Whole]:
    made = (_small, _large, _unclip, _floyd, _kandinsky, _combined, _wuerstchen, _amused)
    return [one for family in made for one in family()]
