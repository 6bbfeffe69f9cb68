"""Kind C for videos: text and video tokens attend to each other in one attention, each with projections of its own."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from tests.support.tiny_denoisers.specimen import Shelf, call, noise, ones, pool, project, rows, turns

JOINT_VIDEO: Final = Shelf("C")
HEADS: Final = {"num_attention_heads": 2, "attention_head_dim": 16}
AXES: Final = (4, 6, 6)
VIDEO: Final = (4, 2, 8, 8)  # channels, frames, height, width

HUNYUAN: Final = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 24,
    "rope_axes_dim": AXES,
}


@JOINT_VIDEO.add(
    "HunyuanVideoTransformer3DModel",
    {**HUNYUAN, "pooled_projection_dim": 20},
    width=24,
    pooled=("pooled_projections",),
    note="a mask of the text, which attends to itself in a refiner first; the text stands behind the video",
)
def hunyuan_video(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    extra = {"pooled_projections": pool(states, 20), "guidance": rows(seeds, 6000.0)}
    return call(states, seeds, 1000 * time, *VIDEO, encoder_attention_mask=ones(states), **extra)


@JOINT_VIDEO.add(
    "MochiTransformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "pooled_projection_dim": 16,
        "in_channels": 4,
        "text_embed_dim": 24,
        "time_embed_dim": 16,
    },
    width=24,
    note="a mask of the text; the modulation reads a pooled form of the text that an attention makes inside",
)
def mochi(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, *VIDEO, encoder_attention_mask=ones(states).bool())


def _small_glyphs(model: Any) -> None:
    """The projection of the second text is 2048 wide inside: a narrow one of the same class."""
    model.context_embedder_2 = type(model.context_embedder_2)(20, 16, 32)


@JOINT_VIDEO.add(
    "HunyuanVideo15Transformer3DModel",
    {
        **{name: value for name, value in HUNYUAN.items() if name != "num_single_layers"},
        "text_embed_2_dim": 20,
        "image_embed_dim": 8,
    },
    width=24,
    text=("encoder_hidden_states", "encoder_hidden_states_2"),
    note="a mask a text; the first attends to itself in a refiner; both and an image (zeros here: none) are put together as "
    "image, second, first, their masked rest; the text stands behind the video",
    refit=_small_glyphs,
    loud=1.5,
)
def hunyuan_video_15(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    second = project(states[:, :6], 20)
    masks = {"encoder_attention_mask": ones(states), "encoder_attention_mask_2": ones(second)}
    image = torch.zeros(len(seeds), 3, 8)
    return call(states, seeds, 1000 * time, *VIDEO, encoder_hidden_states_2=second, image_embeds=image, **masks)


@JOINT_VIDEO.add(
    "HunyuanVideoFramepackTransformer3DModel",
    {
        **HUNYUAN,
        "pooled_projection_dim": 20,
        "has_image_proj": True,
        "image_proj_dim": 8,
        "has_clean_x_embedder": True,
    },
    width=24,
    pooled=("pooled_projections",),
    note="a mask of the text; tokens of an image stand before the text, and both behind the video; frames of the past stand "
    "before the new ones; with one row alone the masked text is cut off instead of masked",
)
def framepack(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    def frames(*numbers: int) -> Tensor:
        return torch.tensor(numbers)

    past = {
        "indices_latents": frames(9, 10),
        "latents_clean": noise(seeds, 4, 2, 8, 8),
        "indices_latents_clean": frames(0, 8),
        "latents_history_2x": noise(seeds, 4, 2, 8, 8),
        "indices_latents_history_2x": frames(6, 7),
        "latents_history_4x": noise(seeds, 4, 4, 8, 8),
        "indices_latents_history_4x": frames(2, 3, 4, 5),
    }
    text = {"encoder_attention_mask": ones(states), "pooled_projections": pool(states, 20)}
    extra = {"image_embeds": noise(seeds, 3, 8), "guidance": rows(seeds, 6000.0)}
    return call(states, seeds, 1000 * time, *VIDEO, **text, **past, **extra)


COG: Final = {
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 24,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "max_text_seq_length": 12,
}


@JOINT_VIDEO.add(
    "CogVideoXTransformer3DModel",
    {**HEADS, **COG},
    width=24,
    note="one length of text only, the configuration's; text and video share the projections of the attention; the text stands "
    "first; no mask",
)
def cogvideox(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, 2, 4, 8, 8)


@JOINT_VIDEO.add(
    "ConsisIDTransformer3DModel",
    {
        **COG,
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "use_rotary_positional_embeddings": True,
        "is_train_face": True,
        "cross_attn_dim_head": 8,
        "cross_attn_num_heads": 2,
        "LFE_id_dim": 12,
        "LFE_vit_dim": 16,
        "LFE_depth": 5,
        "LFE_dim_head": 8,
        "LFE_num_heads": 2,
        "LFE_num_id_token": 2,
        "LFE_num_querie": 4,
        "LFE_output_dim": 32,
        "LFE_ff_mult": 2,
    },
    width=24,
    note="text and video share the projections of the attention; the text stands first; attentions besides read a face, never "
    "the text; no mask",
)
def consisid(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    face = {"id_cond": noise(seeds, 12), "id_vit_hidden": [noise(seeds, 3, 16)] * 5}
    return call(states, seeds, 1000 * time, 2, 4, 8, 8, image_rotary_emb=turns(32, 16), **face)


@JOINT_VIDEO.add(
    "EasyAnimateTransformer3DModel",
    {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "sample_width": 8,
        "sample_height": 8,
        "num_layers": 3,
        "mmdit_layers": 2,
        "time_embed_dim": 16,
        "add_norm_text_encoder": True,
        "text_embed_dim": 24,
    },
    width=24,
    note="in the last block text and video share the projections; the text stands first; no mask",
)
def easy_animate(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, *VIDEO)


@JOINT_VIDEO.add(
    "MotifVideoTransformer3DModel",
    {
        **{name: value for name, value in HUNYUAN.items() if name != "num_refiner_layers"},
        "num_single_layers": 3,
        "num_decoder_layers": 1,
        "enable_text_cross_attention_dual": True,
        "enable_text_cross_attention_single": True,
    },
    width=24,
    note="a mask of the text; blocks read the text a second time through attentions made for it; the text stands behind the "
    "video; the last block decodes what the others made of the video",
    loud=1.5,
)
def motif(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, *VIDEO, encoder_attention_mask=ones(states))
