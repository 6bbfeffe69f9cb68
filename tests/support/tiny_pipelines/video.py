"""Transformers that make videos: Wan, LTX, CogVideoX, Mochi, Allegro, Latte, HunyuanVideo, SkyReels, Sana, Cosmos."""

from __future__ import annotations

from typing import Any, Final

from tests.support.tiny_pipelines.codecs import cog_codec, hunyuan_codec, image_codec, ltx_codec, small_video_codec
from tests.support.tiny_pipelines.tokenizers import WIDTH, clip, clip_words, decoder, t5, t5_words, umt5, words
from tests.support.tiny_pipelines.whole import OMIT, SIDE, Whole, one_picture, part, picture, pictures, plain, table, whole

FRAMES: Final = 5
BRIEF: Final[dict[str, Any]] = {"max_sequence_length": 32}
SHORT: Final[dict[str, Any]] = {**BRIEF, "num_frames": FRAMES}
FLOW: Final = plain("FlowMatchEulerDiscreteScheduler")
SHIFTED: Final = plain("UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
HEADS: Final[dict[str, Any]] = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
LATENT: Final[dict[str, Any]] = {"in_channels": 4, "out_channels": 4}


def video(count: int) -> list[list[Any]]:
    return [[picture(10 * place + frame) for frame in range(FRAMES)] for place in range(count)]


def one_video(count: int) -> list[Any]:
    return video(1)[0]


WAN: Final[dict[str, Any]] = {
    **LATENT,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": WIDTH,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
WAN_SHELF: Final[dict[str, Any]] = {
    "vae": small_video_codec(),
    "transformer": part("WanTransformer3DModel", **WAN),
    "text_encoder": umt5(),
    "tokenizer": t5_words,
    "scheduler": FLOW,
}


def _wan() -> list[Whole]:
    wide = {**WAN_SHELF, "transformer": part("WanTransformer3DModel", **{**WAN, "in_channels": 10})}
    double = {**WAN_SHELF, "transformer": part("WanTransformer3DModel", **{**WAN, "in_channels": 8})}
    vace = {**WAN_SHELF, "transformer": part("WanVACETransformer3DModel", **WAN, vace_layers=[0], vace_in_channels=12)}
    sky = {**WAN_SHELF, "scheduler": SHIFTED, "transformer": part("SkyReelsV2Transformer3DModel", **WAN)}
    forced: dict[str, Any] = {**SHORT, "base_num_frames": FRAMES}
    return [
        *table(WAN_SHELF, {"WanPipeline": SHORT, "WanVideoToVideoPipeline": {**BRIEF, "video": video, "strength": 1.0}}),
        whole("WanImageToVideoPipeline", wide, {**SHORT, "image": one_picture}),
        whole("WanVACEPipeline", vace, SHORT, prompts=1),
        whole("LucyEditPipeline", double, {**SHORT, "video": video}),
        whole("SkyReelsV2Pipeline", sky, SHORT),
        whole("SkyReelsV2DiffusionForcingPipeline", sky, forced),
        whole("SkyReelsV2DiffusionForcingImageToVideoPipeline", sky, {**forced, "image": one_picture}, prompts=1),
        whole(
            "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
            sky,
            {**forced, "video": one_video, "overlap_history": 1},
            prompts=1,
        ),
    ]


def _flowing() -> list[Whole]:
    """Descendants of Wan whose schedules know two times at once."""
    far = part("AnyFlowFARTransformer3DModel", **WAN, chunk_partition=(1, 1, 1))
    shelf = {**WAN_SHELF, "scheduler": plain("FlowMapEulerDiscreteScheduler")}
    return [
        whole("AnyFlowPipeline", {**shelf, "transformer": part("AnyFlowTransformer3DModel", **WAN)}, SHORT),
        whole("AnyFlowFARPipeline", {**shelf, "transformer": far}, SHORT),
    ]


def _ltx() -> list[Whole]:
    options = {**HEADS, **LATENT, "cross_attention_dim": 32, "caption_channels": WIDTH}
    shelf = {
        "vae": ltx_codec(),
        "transformer": part("LTXVideoTransformer3DModel", **options),
        "text_encoder": t5(),
        "tokenizer": t5_words,
        "scheduler": FLOW,
    }
    rows = {
        "LTXPipeline": SHORT,
        "LTXImageToVideoPipeline": {**SHORT, "image": pictures},
        "LTXConditionPipeline": SHORT,
    }
    long = whole("LTXI2VLongMultiPromptPipeline", shelf, {**SHORT, "guidance_scale": 3.0}, prompts=1)
    return [*table(shelf, rows), long]


def _cog() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        **LATENT,
        "time_embed_dim": 16,
        "text_embed_dim": WIDTH,
        "sample_width": SIDE // 8,
        "sample_height": SIDE // 8,
        "sample_frames": FRAMES,
        "max_text_seq_length": 32,
    }
    shelf = {
        "vae": cog_codec(),
        "transformer": part("CogVideoXTransformer3DModel", **options),
        "text_encoder": t5(),
        "tokenizer": t5_words,
        "scheduler": plain("CogVideoXDDIMScheduler"),
    }
    double = {**shelf, "transformer": part("CogVideoXTransformer3DModel", **{**options, "in_channels": 8})}
    rows = {"CogVideoXPipeline": SHORT, "CogVideoXVideoToVideoPipeline": {**BRIEF, "video": video, "strength": 1.0}}
    return [
        *table(shelf, rows),
        whole("CogVideoXImageToVideoPipeline", double, {**SHORT, "image": pictures}),
        whole("CogVideoXFunControlPipeline", double, {**BRIEF, "control_video": one_video}, prompts=1),
    ]


def _mochi() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "pooled_projection_dim": 16,
        "in_channels": 12,
        "text_embed_dim": WIDTH,
        "time_embed_dim": 16,
    }
    codec = part(
        "AutoencoderKLMochi",
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        add_attention_block=(False,) * 5,
    )
    shelf = {
        "vae": codec,
        "transformer": part("MochiTransformer3DModel", **options),
        "text_encoder": t5(),
        "tokenizer": t5_words,
        "scheduler": FLOW,
    }
    return [whole("MochiPipeline", shelf, {**BRIEF, "num_frames": 7})]


def _allegro() -> list[Whole]:
    codec = part("AutoencoderKLAllegro", block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    inner: dict[str, Any] = {
        **LATENT,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "cross_attention_dim": 24,
    }
    size = {"sample_height": SIDE // 8, "sample_width": SIDE // 8, "sample_frames": 2}
    shelf = {
        "vae": codec,
        "transformer": part("AllegroTransformer3DModel", **inner, **size, caption_channels=WIDTH),
        "text_encoder": t5(),
        "tokenizer": t5_words,
        "scheduler": plain("DDIMScheduler", clip_sample=False),
    }
    return [whole("AllegroPipeline", shelf, {**BRIEF, "num_frames": 8})]


def _latte() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "in_channels": 4,
        "out_channels": 8,
        "cross_attention_dim": 32,
        "caption_channels": WIDTH,
        "sample_size": SIDE // 2,
        "patch_size": 2,
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        "norm_elementwise_affine": False,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "video_length": 4,
    }
    shelf = {
        "vae": image_codec(),
        "transformer": part("LatteTransformer3DModel", **options),
        "text_encoder": t5(),
        "tokenizer": t5_words,
        "scheduler": plain("DDIMScheduler", clip_sample=False),
    }
    return [whole("LattePipeline", shelf, {"video_length": 4})]


def _hunyuan() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        **LATENT,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "rope_axes_dim": (2, 2, 4),
    }
    shelf = {
        "vae": hunyuan_codec(),
        "transformer": part("HunyuanVideoTransformer3DModel", **options),
        "text_encoder": decoder("LlamaModel", "LlamaConfig"),
        "tokenizer": words("right", "<s>"),
        "text_encoder_2": clip(),
        "tokenizer_2": clip_words,
        "scheduler": FLOW,
    }
    double = {**shelf, "transformer": part("HunyuanVideoTransformer3DModel", **{**options, "in_channels": 8})}
    given = {**SHORT, "max_sequence_length": OMIT}
    return [
        whole("HunyuanVideoPipeline", shelf, given),
        whole("HunyuanSkyreelsImageToVideoPipeline", double, {**given, "image": pictures}),
    ]


def _sana() -> list[Whole]:
    options: dict[str, Any] = {
        **LATENT,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": WIDTH,
        "sample_size": SIDE // 2,
    }
    shelf = {
        "vae": small_video_codec(),
        "transformer": part("SanaVideoTransformer3DModel", **options),
        "text_encoder": decoder("Gemma2Model", "Gemma2Config"),
        "tokenizer": words("right", "<s>"),
        "scheduler": FLOW,
    }
    given: dict[str, Any] = {**BRIEF, "frames": FRAMES, "use_resolution_binning": False}
    return table(shelf, {"SanaVideoPipeline": given, "SanaImageToVideoPipeline": {**given, "image": one_picture}})


def wholes() -> list[Whole]:
    made = (_wan, _flowing, _ltx, _cog, _mochi, _allegro, _latte, _hunyuan, _sana)
    return [one for family in made for one in family()]
