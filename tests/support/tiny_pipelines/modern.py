"""Recent transformers whose text is read by a language model: Bria, Flux 2, Ovis, HiDream, Kandinsky 5, Cosmos and others."""

from __future__ import annotations

from typing import Any, Final

import transformers

from tests.support.tiny_pipelines.codecs import (
    cosmos_codec,
    flux2_codec,
    hunyuan_codec,
    image_codec,
    small_video_codec,
    wan_codec,
)
from tests.support.tiny_pipelines.still import CONTROLLED, ZIMAGE, ZIMAGE_SHELF
from tests.support.tiny_pipelines.tokenizers import (
    WIDTH,
    clip,
    clip_words,
    decoder,
    mistral_vl,
    qwen3_vl,
    qwen_vl,
    t5,
    t5_gemma,
    t5_words,
    words,
)
from tests.support.tiny_pipelines.whole import (
    SIDE,
    Shelf,
    Whole,
    masks,
    one_picture,
    part,
    picture,
    pictures,
    plain,
    table,
    whole,
)

BRIEF: Final[dict[str, Any]] = {"max_sequence_length": 32}
HEADS: Final[dict[str, Any]] = {"num_attention_heads": 4, "attention_head_dim": 8}
JOINT: Final[dict[str, Any]] = {
    **HEADS,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (2, 2, 4),
}
FLOW: Final = plain("FlowMatchEulerDiscreteScheduler")
FRAMES: Final = 5


def _flux_like(transformer: Any, text_encoder: Any, tokenizer: Any, **others: Any) -> Shelf:
    shelf = {"vae": image_codec(shift_factor=0.1), "scheduler": FLOW}
    return {**shelf, "transformer": transformer, "text_encoder": text_encoder, "tokenizer": tokenizer, **others}


def _bria() -> list[Whole]:
    first = _flux_like(part("BriaTransformer2DModel", **JOINT), t5(), t5_words)
    options = {**JOINT, "joint_attention_dim": 2 * WIDTH, "text_encoder_dim": WIDTH, "in_channels": 4}
    smol = decoder("SmolLM3ForCausalLM", "SmolLM3Config")
    codec = wan_codec(channels=4)
    second = _flux_like(part("BriaFiboTransformer2DModel", **options), smol, words("right", "<s>"), vae=codec)
    given: dict[str, Any] = {**BRIEF, "negative_prompt": lambda count: ["a plain photo"] * count}
    return [
        whole("BriaPipeline", first, BRIEF),
        whole("BriaFiboPipeline", second, given),
    ]


def _flux2() -> list[Whole]:
    options: dict[str, Any] = {
        **JOINT,
        "joint_attention_dim": 3 * WIDTH,
        "timestep_guidance_channels": 16,
        "axes_dims_rope": (2, 2, 2, 2),
        "guidance_embeds": False,
    }
    language_model = decoder("Qwen3ForCausalLM", "Qwen3Config")
    shelf = _flux_like(part("Flux2Transformer2DModel", loud=1.5, **options), language_model, words(), vae=flux2_codec())
    given: dict[str, Any] = {**BRIEF, "text_encoder_out_layers": (0, 1, 2)}
    rows = {
        "Flux2KleinPipeline": given,
        "Flux2KleinKVPipeline": {**given, "image": lambda count: picture(side=64)},
        "Flux2KleinInpaintPipeline": {**given, "image": pictures, "mask_image": masks, "strength": 1.0},
    }
    return table(shelf, rows)


def _chatty() -> list[Whole]:
    ovis = _flux_like(
        part("OvisImageTransformer2DModel", **JOINT, out_channels=16), decoder("Qwen3Model", "Qwen3Config"), words()
    )
    cat_parts = part("LongCatImageTransformer2DModel", **{**JOINT, "in_channels": 64}, pooled_projection_dim=WIDTH)
    long_cat = _flux_like(cat_parts, qwen_vl(), words(), text_processor=None, vae=image_codec(16, shift_factor=0.1))
    ernie: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_layers": 2,
        "ffn_hidden_size": 64,
        "in_channels": 16,
        "out_channels": 16,
        "text_in_dim": WIDTH,
        "rope_axes_dim": (4, 2, 2),
    }
    ernie_shelf = _flux_like(
        part("ErnieImageTransformer2DModel", **ernie), mistral_vl(), words("right", "<s>"), vae=flux2_codec()
    )
    return [
        whole("OvisImagePipeline", ovis, {"max_sequence_length": 64}),
        whole("LongCatImagePipeline", long_cat, {"enable_prompt_rewrite": False}),
        whole("ErnieImagePipeline", ernie_shelf, {"use_pe": False}),
    ]


def _hidream() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "caption_channels": [WIDTH, WIDTH],
        "text_emb_dim": 2 * WIDTH,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (16, 16),
        "llama_layers": [0, 1],
        "force_inference_output": True,
    }
    shelf = {
        "vae": image_codec(shift_factor=0.1),
        "transformer": part("HiDreamImageTransformer2DModel", **options),
        "text_encoder": clip("CLIPTextModelWithProjection"),
        "tokenizer": clip_words,
        "text_encoder_2": clip("CLIPTextModelWithProjection", hidden_act="gelu"),
        "tokenizer_2": clip_words,
        "text_encoder_3": t5(),
        "tokenizer_3": t5_words,
        "text_encoder_4": decoder("LlamaForCausalLM", "LlamaConfig"),
        "tokenizer_4": words("right", "<s>"),
        "scheduler": FLOW,
        ".default_sample_size": SIDE // 2,
    }
    return [whole("HiDreamImagePipeline", shelf, BRIEF)]


def _prx() -> list[Whole]:
    options: dict[str, Any] = {
        "in_channels": 4,
        "context_in_dim": WIDTH,
        "hidden_size": 32,
        "num_heads": 4,
        "depth": 2,
        "axes_dim": [4, 4],
        "mlp_ratio": 2.0,
    }
    shelf = _flux_like(part("PRXTransformer2DModel", **options), t5_gemma(), words("right", "<s>"))
    return [
        whole(
            "PRXPipeline",
            shelf,
            {"use_resolution_binning": False, "skip_text_cleaning": True, "tokenizer_max_length": 64},
            prompts=1,
        )
    ]


def _krea() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "in_channels": 16,
        "num_layers": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "timestep_embed_dim": 16,
        "text_hidden_dim": WIDTH,
        "num_text_layers": 2,
        "text_num_attention_heads": 4,
        "text_num_key_value_heads": 4,
        "text_intermediate_size": 64,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 2, 2),
    }
    shelf = {
        "vae": wan_codec("AutoencoderKLQwenImage"),
        "transformer": part("Krea2Transformer2DModel", **options),
        "text_encoder": qwen3_vl(),
        "tokenizer": words(),
        "scheduler": FLOW,
        "text_encoder_select_layers": (1, 2),
    }
    return [whole("Krea2Pipeline", shelf, {"max_sequence_length": 64})]


def _kandinsky() -> list[Whole]:
    options: dict[str, Any] = {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "in_text_dim": WIDTH,
        "in_text_dim2": WIDTH,
        "time_dim": 16,
        "model_dim": 32,
        "ff_dim": 64,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
        "axes_dims": (4, 2, 2),
    }
    shelf = {
        "vae": image_codec(halvings=3),
        "transformer": part("Kandinsky5Transformer3DModel", **options),
        "text_encoder": qwen_vl(),
        "tokenizer": words(),
        "text_encoder_2": clip(),
        "tokenizer_2": clip_words,
        "scheduler": FLOW,
        ".resolutions": [(SIDE, SIDE)],
    }
    moving = {**shelf, "vae": hunyuan_codec()}
    return [
        whole("Kandinsky5T2IPipeline", shelf, {"max_sequence_length": 64}),
        whole("Kandinsky5T2VPipeline", moving, {"max_sequence_length": 64, "num_frames": FRAMES}),
    ]


class Permits:
    """Stands where the checkers of these classes stand, which need a package of their own: it lets everything pass."""

    def to(self, *places: Any) -> Permits:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def _cosmos() -> list[Whole]:
    options: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": WIDTH,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "extra_pos_embed_type": None,
        "concat_padding_mask": False,  # its resizing needs torchvision
    }
    shelf = {
        "vae": small_video_codec(),
        "transformer": part("CosmosTransformer3DModel", **options),
        "text_encoder": t5(),
        "tokenizer": t5_words,
        "scheduler": plain("FlowMatchEulerDiscreteScheduler", use_karras_sigmas=True),
        "safety_checker": Permits(),
    }
    first = {**shelf, "vae": cosmos_codec(), "scheduler": plain("EDMEulerScheduler")}
    first_marked = {**first, "transformer": part("CosmosTransformer3DModel", **{**options, "in_channels": 5})}
    marked = {**shelf, "transformer": part("CosmosTransformer3DModel", **{**options, "in_channels": 5})}
    return [
        whole("Cosmos2TextToImagePipeline", shelf, BRIEF),
        whole("Cosmos2VideoToWorldPipeline", marked, {**BRIEF, "num_frames": FRAMES, "image": one_picture}, prompts=1),
        whole("CosmosTextToWorldPipeline", first, {**BRIEF, "num_frames": FRAMES}),
        whole("CosmosVideoToWorldPipeline", first_marked, {**BRIEF, "num_frames": 9, "image": one_picture}, prompts=1),
    ]


def _hunyuan() -> list[Whole]:
    options: dict[str, Any] = {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": WIDTH,
        "text_embed_2_dim": WIDTH,
        "rope_axes_dim": (4, 4),
    }
    codec = part(
        "AutoencoderKLHunyuanImage",
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=SIDE,
    )
    shelf = {
        "vae": codec,
        "transformer": part("HunyuanImageTransformer2DModel", loud=2.0, **options),
        "text_encoder": qwen_vl(),
        "tokenizer": words(),
        "text_encoder_2": t5(vocab_size=384),
        "tokenizer_2": lambda: transformers.ByT5Tokenizer(),
        "scheduler": FLOW,
        ".tokenizer_max_length": 64,
        ".tokenizer_2_max_length": 16,
    }
    return [whole("HunyuanImagePipeline", shelf)]


def _zimage() -> list[Whole]:
    small = {key: ZIMAGE[key] for key in ("dim", "n_refiner_layers", "n_heads", "n_kv_heads")}
    places: dict[str, Any] = {"control_layers_places": [0], "control_refiner_layers_places": [0]}
    places["add_control_noise_refiner"] = "control_noise_refiner"
    plain_control = part("ZImageControlNetModel", **small, **places, control_in_dim=4)
    wide_control = part("ZImageControlNetModel", **small, **places, control_in_dim=9)
    filled: dict[str, Any] = {**CONTROLLED, "image": pictures, "mask_image": masks}
    return [
        whole("ZImageControlNetPipeline", {**ZIMAGE_SHELF, "controlnet": plain_control}, CONTROLLED),
        whole("ZImageControlNetInpaintPipeline", {**ZIMAGE_SHELF, "controlnet": wide_control}, filled),
    ]


def wholes() -> list[Whole]:
    made = (_bria, _flux2, _chatty, _hidream, _prx, _krea, _kandinsky, _cosmos, _hunyuan, _zimage)
    return [one for family in made for one in family()]
