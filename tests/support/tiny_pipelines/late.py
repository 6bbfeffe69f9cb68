"""Classes with parts of their own: guiders, cascades, history of frames."""

from __future__ import annotations

from typing import Any, Final

import transformers

from tests.support.tiny_pipelines.classic import SMALL_SHELF, unet
from tests.support.tiny_pipelines.codecs import image_codec, small_video_codec
from tests.support.tiny_pipelines.motion import MOTION
from tests.support.tiny_pipelines.tokenizers import TOKENS, WIDTH, clip, clip_words, decoder, t5, t5_gemma, words
from tests.support.tiny_pipelines.video import FRAMES, WAN, WAN_SHELF
from tests.support.tiny_pipelines.whole import SIDE, Whole, one_picture, part, plain, whole

FLOW: Final = plain("FlowMatchEulerDiscreteScheduler")
TURNS: Final[dict[str, Any]] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
VIDEO: Final[dict[str, Any]] = {
    "in_channels": 9,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": WIDTH,
    "rope_axes_dim": (2, 2, 4),
}


def _hunyuan() -> list[Whole]:
    """The second text model reads only what stands in quotes."""
    codec = part(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32, 32),
        layers_per_block=1,
    )
    options = {**VIDEO, "num_refiner_layers": 1, "text_embed_2_dim": WIDTH, "image_embed_dim": 8, "target_size": SIDE}
    shelf = {
        "vae": codec,
        "transformer": part("HunyuanVideo15Transformer3DModel", loud=1.5, **options),
        "text_encoder": decoder("Qwen2_5_VLTextModel", "Qwen2_5_VLTextConfig", rope_parameters=TURNS),
        "tokenizer": words(),
        "text_encoder_2": t5(vocab_size=384),
        "tokenizer_2": lambda: transformers.ByT5Tokenizer(),
        "scheduler": FLOW,
        "guider": plain("ClassifierFreeGuidance"),
        ".tokenizer_max_length": 400,
        ".tokenizer_2_max_length": 16,
        ".vision_num_semantic_tokens": 4,
    }
    return [whole("HunyuanVideo15Pipeline", shelf, {"num_frames": FRAMES})]


def _motif() -> list[Whole]:
    options = {**VIDEO, "num_single_layers": 2, "num_decoder_layers": 1}
    shelf = {
        "vae": small_video_codec(),
        "transformer": part("MotifVideoTransformer3DModel", loud=1.5, **options),
        "text_encoder": t5_gemma(),
        "tokenizer": words("right", "<s>"),
        "scheduler": FLOW,
        "guider": plain("ClassifierFreeGuidance"),
        "feature_extractor": None,
    }
    return [whole("MotifVideoPipeline", shelf, {"num_frames": FRAMES, "max_sequence_length": 32})]


def _helios() -> list[Whole]:
    options = {key: value for key, value in WAN.items() if key != "rope_max_seq_len"}
    transformer = part("HeliosTransformer3DModel", **options, rope_dim=(4, 4, 4))
    shelf = {**WAN_SHELF, "transformer": transformer, "scheduler": plain("HeliosScheduler", stages=1)}
    given: dict[str, Any] = {
        "num_frames": FRAMES,
        "max_sequence_length": 32,
        "num_latent_frames_per_chunk": 3,
        "history_sizes": [4, 2, 1],
    }
    return [whole("HeliosPipeline", shelf, given)]


def _animated() -> list[Whole]:
    shelf = {
        **SMALL_SHELF,
        "motion_adapter": part("MotionAdapter", **MOTION, conv_in_channels=9),
        "image_encoder": None,
    }
    return [whole("PIAPipeline", shelf, {"num_frames": FRAMES, "image": one_picture}, prompts=1)]


def _bert() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    options: dict[str, Any] = {"encoder_layers": 2, "encoder_ffn_dim": 64, "encoder_attention_heads": 4, "head_dim": 8}
    config = LDMBertConfig(vocab_size=len(clip_words()), max_position_embeddings=TOKENS, d_model=WIDTH, **options)
    return LDMBertModel(config).eval()


def _latent() -> list[Whole]:
    shelf = {
        "vqvae": image_codec(),
        "bert": _bert,
        "tokenizer": clip_words,
        "unet": unet(),
        "scheduler": plain("DDIMScheduler", clip_sample=False, prediction_type="sample"),
    }
    return [whole("LDMTextToImagePipeline", shelf, {"output_type": "np", "guidance_scale": 4.0})]


def _cascade() -> list[Whole]:
    options: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "timestep_ratio_embedding_dim": 8,
        "conditioning_dim": WIDTH,
        "block_out_channels": (16, 16),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "clip_text_in_channels": WIDTH,
        "clip_text_pooled_in_channels": WIDTH,
        "clip_image_in_channels": WIDTH,
        "clip_seq": 2,
        "dropout": (0.0, 0.0),
    }
    shelf = {
        "prior": part("StableCascadeUNet", **options),
        "text_encoder": clip("CLIPTextModelWithProjection"),
        "tokenizer": clip_words,
        "scheduler": plain("DDPMWuerstchenScheduler"),
        "resolution_multiple": 4.0,
        "feature_extractor": None,
        "image_encoder": None,
    }
    return [whole("StableCascadePriorPipeline", shelf, {"output_type": "pt"})]


def wholes() -> list[Whole]:
    made = (_hunyuan, _motif, _helios, _animated, _latent, _cascade)
    return [one for family in made for one in family()]
