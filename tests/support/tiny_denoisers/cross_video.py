"""Kind B for videos: transformers in which the video reads the text through attentions made for it."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from tests.support.tiny_denoisers.cross import SANA
from tests.support.tiny_denoisers.specimen import Shelf, call, noise, ones, pool, project, rows, turns

CROSS_VIDEO: Final = Shelf("B")
HEADS: Final = {"num_attention_heads": 2, "attention_head_dim": 16}
FOUR: Final = {"in_channels": 4, "out_channels": 4}
WAN: Final = {**HEADS, **FOUR, "text_dim": 24, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2}
VIDEO: Final = (4, 2, 8, 8)  # channels, frames, height, width


@CROSS_VIDEO.add("WanTransformer3DModel", WAN, width=24, note="no mask: padding is zeros, and read")
def wan(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, *VIDEO)


@CROSS_VIDEO.add(
    "LTXVideoTransformer3DModel",
    {**HEADS, **FOUR, "cross_attention_dim": 32, "num_layers": 2, "caption_channels": 24},
    width=24,
    note="a mask of the text; latents come as tokens",
)
def ltx(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    grid = {"num_frames": 2, "height": 4, "width": 4}
    return call(states, seeds, 1000 * time, 32, 4, encoder_attention_mask=ones(states), **grid)


@CROSS_VIDEO.add(
    "SanaVideoTransformer3DModel", SANA, width=24, note="a mask of the text; the video reads itself by linear attention"
)
def sana_video(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, *VIDEO, encoder_attention_mask=ones(states))


@CROSS_VIDEO.add(
    "SanaWMTransformer3DModel",
    {
        "in_channels": 4,
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "softmax_every_n": 2,
        "linear_head_dim": 16,
        "chunk_plucker_channels": 6,
        "caption_channels": 24,
        "mlp_ratio": 2.0,
    },
    width=24,
    note="a mask of the text, which must have two tokens at least; a camera a frame; one of two "
    "blocks reads the video itself by a recurrence",
)
def sana_wm(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    pose = torch.cat([torch.eye(4).flatten(), torch.tensor([4.0, 4.0, 2.0, 2.0])]).expand(len(seeds), 2, -1)
    camera = {"camera_conditions": pose, "chunk_plucker": noise(seeds, 6, 2, 4, 4)}
    steps = rows(seeds, 1000 * time)[:, None, None].expand(-1, 1, 2)
    return {**call(states, seeds, 0, 4, 2, 4, 4, mask=ones(states), **camera), "timestep": steps}


@CROSS_VIDEO.add("SkyReelsV2Transformer3DModel", WAN, width=24, note="no mask: padding is zeros, and read")
def skyreels(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, *VIDEO)


@CROSS_VIDEO.add(
    "WanVACETransformer3DModel",
    {**WAN, "vace_layers": [0, 1], "vace_in_channels": 6},
    width=24,
    note="no mask: padding is zeros, and read; blocks besides read the text for the hints of a control video",
)
def wan_vace(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    control = {"control_hidden_states": noise(seeds, 6, 2, 8, 8), "control_hidden_states_scale": torch.ones(2)}
    return call(states, seeds, 1000 * time, *VIDEO, **control)


PICTURE: Final = {"image_dim": 8, "added_kv_proj_dim": 32}


SPLIT: Final = "512 tokens of text only: what stands before the last 512 is a picture, with keys and values of its own"


@CROSS_VIDEO.add("ChronoEditTransformer3DModel", {**WAN, **PICTURE}, width=24, length=512, note=SPLIT)
def chrono_edit(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, *VIDEO, encoder_hidden_states_image=noise(seeds, 3, 8))


@CROSS_VIDEO.add(
    "WanAnimateTransformer3DModel",
    {
        **WAN,
        **PICTURE,
        "in_channels": 12,
        "latent_channels": 4,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 8,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    },
    width=24,
    length=512,
    note=SPLIT + "; attentions besides read a face, never the text",
)
def wan_animate(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    video = {"pose_hidden_states": noise(seeds, 4, 1, 8, 8), "face_pixel_values": noise(seeds, 3, 4, 16, 16)}
    return call(states, seeds, 1000 * time, 12, 2, 8, 8, encoder_hidden_states_image=noise(seeds, 3, 8), **video)


@CROSS_VIDEO.add(
    "AllegroTransformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 2,
        "cross_attention_dim": 48,
        "sample_height": 8,
        "sample_width": 8,
        "sample_frames": 2,
        "caption_channels": 24,
    },
    width=24,
    note="a mask of the text and one of the video",
)
def allegro(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    cells = torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(4))
    line = turns(4, 8)
    places = ((line, line, line), tuple(cells.T[:, None]))
    return call(
        states,
        seeds,
        1000 * time,
        *VIDEO,
        attention_mask=torch.ones(len(seeds), 2, 8, 8),
        encoder_attention_mask=ones(states),
        image_rotary_emb=places,
    )


@CROSS_VIDEO.add(
    "LatteTransformer3DModel",
    {
        **HEADS,
        **FOUR,
        "num_layers": 2,
        "cross_attention_dim": 32,
        "attention_bias": True,
        "sample_size": 8,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": 24,
        "video_length": 2,
    },
    width=24,
    note="no mask; frames are rows inside: the text is repeated for each of them",
)
def latte(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, *VIDEO)


@CROSS_VIDEO.add(
    "CosmosTransformer3DModel",
    {
        **HEADS,
        **FOUR,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 24,
        "adaln_lora_dim": 8,
        "max_size": (2, 8, 8),
        "concat_padding_mask": False,  # it would need torchvision
    },
    width=24,
    note="no mask: padding is zeros, and read",
)
def cosmos(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, time, *VIDEO, fps=16)


@CROSS_VIDEO.add(
    "AnyFlowTransformer3DModel",
    WAN,
    width=24,
    note="no mask: padding is zeros, and read; two times a frame; frames before channels",
)
def any_flow(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    times = {"timestep": rows(seeds, 1000 * time)[:, None].expand(-1, 2), "r_timestep": torch.zeros(len(seeds), 2)}
    return {**call(states, seeds, 0, 2, 4, 8, 8), **times}


@CROSS_VIDEO.add(
    "AnyFlowFARTransformer3DModel",
    {**WAN, "chunk_partition": (1, 1), "full_chunk_limit": 2},
    width=24,
    note="no mask: padding is zeros, and read; two times a frame; frames before channels; the video reads itself causally",
)
def any_flow_far(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return {**any_flow(states, seeds, time), "chunk_partition": [1, 1]}


@CROSS_VIDEO.add(
    "HeliosTransformer3DModel",
    {**WAN, "rope_dim": (4, 6, 6)},
    width=24,
    note="no mask: padding is zeros, and read; frames of the past stand before the new ones, which alone read the text",
)
def helios(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    def frames(*numbers: int) -> Tensor:
        return torch.tensor(numbers).expand(len(seeds), -1)

    past = {
        "indices_hidden_states": frames(9, 10),
        "latents_history_short": noise(seeds, 4, 1, 8, 8),
        "indices_latents_history_short": frames(8),
        "latents_history_mid": noise(seeds, 4, 2, 8, 8),
        "indices_latents_history_mid": frames(6, 7),
        "latents_history_long": noise(seeds, 4, 4, 8, 8),
        "indices_latents_history_long": frames(2, 3, 4, 5),
    }
    return call(states, seeds, 1000 * time, *VIDEO, **past)


KANDINSKY: Final = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": 24,
    "in_text_dim2": 20,
    "time_dim": 16,
    "model_dim": 32,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
}


@CROSS_VIDEO.add(
    "Kandinsky5Transformer3DModel",
    KANDINSKY,
    width=24,
    pooled=("pooled_projections",),
    note="the text attends to itself in blocks of its own first; channels last; no mask",
)
def kandinsky5(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    grid = {
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(states.shape[1]),
    }
    return call(states, seeds, 1000 * time, 2, 8, 8, 4, pooled_projections=pool(states, 20), **grid)


@CROSS_VIDEO.add(
    "Kandinsky6Transformer3DModel",
    {**KANDINSKY, "visual_cond": False, "in_audio_dim": 4, "out_audio_dim": 4},
    width=24,
    pooled=("pooled_projections",),
    note="sound besides the video: the text goes through blocks of its own twice, for each of them; both are in the output",
)
def kandinsky6(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    sound = {"audio_hidden_states": noise(seeds, 4, 4), "pooled_projections": pool(states, 20)}
    return call(states, seeds, 1000 * time, 2, 8, 8, 4, **sound)


@CROSS_VIDEO.add(
    "LTX2VideoTransformer3DModel",
    {
        **HEADS,
        **FOUR,
        "cross_attention_dim": 32,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "num_layers": 2,
        "caption_channels": 24,
    },
    width=24,
    text=("encoder_hidden_states", "audio_encoder_hidden_states"),
    note="sound besides the video, with a form of the text of its own; masks of both; latents come as tokens; both are in the "
    "output, and read each other",
)
def ltx2(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    sound = {"audio_hidden_states": noise(seeds, 4, 4), "audio_encoder_hidden_states": project(states, 24)}
    masks = {"encoder_attention_mask": ones(states), "audio_encoder_attention_mask": ones(states)}
    grid = {"num_frames": 2, "height": 4, "width": 4, "audio_num_frames": 4}
    return call(states, seeds, 1000 * time, 32, 4, **sound, **masks, **grid)
