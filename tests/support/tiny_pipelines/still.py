"""Other transformers that make still pictures: PixArt, Sana, AuraFlow, Lumina, HunyuanDiT, CogView, Qwen-Image, Z-Image."""

from __future__ import annotations

from typing import Any, Final

from tests.support.tiny_pipelines.codecs import deep_codec, image_codec, wan_codec
from tests.support.tiny_pipelines.tokenizers import WIDTH, clip_words, decoder, qwen_vl, t5, t5_words, umt5, words
from tests.support.tiny_pipelines.whole import SIDE, Whole, masks, one_picture, part, pictures, plain, table, whole

BRIEF: Final[dict[str, Any]] = {"max_sequence_length": 32}
LATENT: Final = SIDE // 2
HEADS: Final[dict[str, Any]] = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
FLOW: Final = plain("FlowMatchEulerDiscreteScheduler")
UNBINNED: Final[dict[str, Any]] = {"use_resolution_binning": False}

ZIMAGE: Final[dict[str, Any]] = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "cap_feat_dim": WIDTH,
    "axes_dims": [4, 2, 2],
    "axes_lens": [1024, 64, 64],
}
ZIMAGE_SHELF: Final[dict[str, Any]] = {
    "vae": image_codec(shift_factor=0.1),
    "transformer": part("ZImageTransformer2DModel", **ZIMAGE),
    "text_encoder": decoder("Qwen3Model", "Qwen3Config"),
    "tokenizer": words(),
    "scheduler": FLOW,
}
CONTROLLED: Final[dict[str, Any]] = {**BRIEF, "control_image": one_picture}


def _pixart() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "in_channels": 4,
        "out_channels": 8,
        "cross_attention_dim": 32,
        "caption_channels": WIDTH,
        "sample_size": LATENT,
        "norm_type": "ada_norm_single",
        "use_additional_conditions": False,
    }
    shelf = {
        "vae": image_codec(),
        "transformer": part("PixArtTransformer2DModel", **options),
        "text_encoder": t5(),
        "tokenizer": t5_words,
        "scheduler": plain("DDIMScheduler", clip_sample=False),
        "pag_applied_layers": ["blocks.1"],
    }
    given = {**BRIEF, **UNBINNED}
    return table(shelf, {"PixArtAlphaPipeline": given, "PixArtSigmaPipeline": given, "PixArtSigmaPAGPipeline": given})


def _sana() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 32,
        "caption_channels": WIDTH,
        "sample_size": LATENT,
        "patch_size": 1,
    }
    shelf = {
        "vae": deep_codec(),
        "transformer": part("SanaTransformer2DModel", **options),
        "text_encoder": decoder("Gemma2Model", "Gemma2Config"),
        "tokenizer": words("right", "<s>"),
        "scheduler": FLOW,
        "pag_applied_layers": ["transformer_blocks.1"],
        "controlnet": part("SanaControlNetModel", **{**options, "num_layers": 1}),
    }
    guided = part("SanaTransformer2DModel", **options, guidance_embeds=True, qk_norm="rms_norm_across_heads")
    sprint = {**shelf, "transformer": guided, "scheduler": plain("SCMScheduler")}
    given = {**BRIEF, **UNBINNED}
    rows = {"SanaPipeline": given, "SanaPAGPipeline": given, "SanaControlNetPipeline": {**given, "control_image": pictures}}
    quick = {"SanaSprintPipeline": given, "SanaSprintImg2ImgPipeline": {**given, "image": pictures, "strength": 1.0}}
    return [*table(shelf, rows), *table(sprint, quick)]


def _aura() -> list[Whole]:
    options: dict[str, Any] = {
        "sample_size": LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": WIDTH,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 64,
    }
    shelf = {
        "vae": image_codec(),
        "transformer": part("AuraFlowTransformer2DModel", loud=2.0, **options),
        "text_encoder": umt5(),
        "tokenizer": t5_words,
        "scheduler": FLOW,
    }
    return table(shelf, {"AuraFlowPipeline": BRIEF})


def _lumina() -> list[Whole]:
    options: dict[str, Any] = {
        "sample_size": LATENT,
        "in_channels": 4,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "multiple_of": 16,
    }
    first = {
        "vae": image_codec(),
        "transformer": part("LuminaNextDiT2DModel", **options, cross_attention_dim=WIDTH),
        "text_encoder": decoder("GemmaModel", "GemmaConfig"),
        "tokenizer": words("right", "<s>"),
        "scheduler": FLOW,
    }
    axes: dict[str, Any] = {"axes_dim_rope": (4, 2, 2), "axes_lens": (512, 64, 64)}
    transformer = part("Lumina2Transformer2DModel", **options, **axes, num_refiner_layers=1, cap_feat_dim=WIDTH)
    second = {**first, "transformer": transformer, "text_encoder": decoder("Gemma2Model", "Gemma2Config")}
    return [
        whole("LuminaPipeline", first, {"max_sequence_length": 128}),
        whole("Lumina2Pipeline", second, {"max_sequence_length": 256}),
    ]


def _hunyuan() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "num_layers": 4,
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 8,
        "hidden_size": 32,
        "cross_attention_dim": WIDTH,
        "cross_attention_dim_t5": WIDTH,
        "pooled_projection_dim": 16,
    }
    control = {key: options[key] for key in options if key != "num_layers"}
    bert = decoder("BertModel", "BertConfig")
    shelf = {
        "vae": image_codec(halvings=3),
        "transformer": part("HunyuanDiT2DModel", **options),
        "text_encoder": bert,
        "tokenizer": clip_words,
        "text_encoder_2": t5(),
        "tokenizer_2": t5_words,
        "scheduler": plain("DDIMScheduler", clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        "pag_applied_layers": ["blocks.1"],
        "controlnet": part("HunyuanDiT2DControlNetModel", transformer_num_layers=4, **control),
    }
    given: dict[str, Any] = {**UNBINNED, "height": 64, "width": 64}  # its classes take the picture to be halved three times
    rows = {
        "HunyuanDiTPipeline": given,
        "HunyuanDiTPAGPipeline": given,
        "HunyuanDiTControlNetPipeline": {**given, "control_image": pictures},
    }
    return table(shelf, rows)


def _cogview() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "text_embed_dim": WIDTH,
        "time_embed_dim": 16,
        "condition_dim": 8,
        "pos_embed_max_size": 16,
        "sample_size": LATENT,
    }
    third = {
        "vae": image_codec(),
        "transformer": part("CogView3PlusTransformer2DModel", **options),
        "text_encoder": t5(),
        "tokenizer": t5_words,
        "scheduler": plain("CogVideoXDDIMScheduler"),
    }
    fourth = {
        "vae": image_codec(),
        "transformer": part("CogView4Transformer2DModel", loud=1.5, **options, rope_axes_dim=(8, 8)),
        "text_encoder": decoder("GlmModel", "GlmConfig"),
        "tokenizer": words("left", "<s>"),
        "scheduler": FLOW,
    }
    doubled = part("CogView4Transformer2DModel", loud=1.5, **{**options, "in_channels": 8}, rope_axes_dim=(8, 8))
    return [
        whole("CogView3PlusPipeline", third, BRIEF),
        whole("CogView4Pipeline", fourth, BRIEF),
        whole("CogView4ControlPipeline", {**fourth, "transformer": doubled}, {**BRIEF, "control_image": pictures}),
    ]


def _qwen() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "in_channels": 16,
        "out_channels": 4,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": (2, 2, 4),
    }
    shelf = {
        "vae": wan_codec("AutoencoderKLQwenImage"),
        "transformer": part("QwenImageTransformer2DModel", **options),
        "text_encoder": qwen_vl(),
        "tokenizer": words(),
        "scheduler": FLOW,
        "controlnet": part("QwenImageControlNetModel", **{**options, "num_layers": 1}),
    }
    masked = {
        **shelf,
        "controlnet": part("QwenImageControlNetModel", **{**options, "num_layers": 1}, extra_condition_channels=4),
    }
    cfg: dict[str, Any] = {"true_cfg_scale": 4.0, "negative_prompt": lambda count: [" "] * count, "max_sequence_length": 64}
    changed = {**cfg, "image": pictures, "strength": 1.0}
    rows = {
        "QwenImagePipeline": cfg,
        "QwenImageImg2ImgPipeline": changed,
        "QwenImageInpaintPipeline": {**changed, "mask_image": masks},
        "QwenImageControlNetPipeline": {**cfg, "control_image": pictures},
    }
    given = {**cfg, "control_image": pictures, "control_mask": masks}
    return [*table(shelf, rows), whole("QwenImageControlNetInpaintPipeline", masked, given)]


def _zimage() -> list[Whole]:
    changed = {**BRIEF, "image": pictures, "strength": 1.0}
    rows = {
        "ZImagePipeline": BRIEF,
        "ZImageImg2ImgPipeline": changed,
        "ZImageInpaintPipeline": {**changed, "mask_image": masks},
    }
    return table(ZIMAGE_SHELF, rows)


def wholes() -> list[Whole]:
    made = (_pixart, _sana, _aura, _lumina, _hunyuan, _cogview, _qwen, _zimage)
    return [one for family in made for one in family()]
