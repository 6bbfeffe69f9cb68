"""Kind C for pictures: text and image tokens attend to each other in one attention, each with projections of its own."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from tests.support.tiny_denoisers.specimen import Shelf, call, noise, ones, places, pool, project, rows

JOINT: Final = Shelf("C")
HEADS: Final = {"num_attention_heads": 2, "attention_head_dim": 16}
AXES: Final = (4, 6, 6)
SIDE: Final = 4  # image tokens along a side of the latents that come as tokens
TOKENS: Final = SIDE * SIDE
FLUX: Final = {**HEADS, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 24}


def positions(states: Tensor) -> dict[str, Tensor]:
    """Where image and text tokens stand: ids of the picture's grid, zeros for the text."""
    return {"img_ids": places(SIDE, SIDE), "txt_ids": torch.zeros(states.shape[1], 3)}


@JOINT.add(
    "SD3Transformer2DModel",
    {
        **HEADS,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "joint_attention_dim": 24,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 20,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
    width=24,
    pooled=("pooled_projections",),
    note="one block of the SD3.5 sort, with a second attention of the image alone; in the last block the text is read only",
)
def sd3(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, 4, 8, 8, pooled_projections=pool(states, 20))


@JOINT.add(
    "FluxTransformer2DModel",
    {**FLUX, "pooled_projection_dim": 20, "guidance_embeds": True, "axes_dims_rope": AXES},
    width=24,
    pooled=("pooled_projections",),
    note="later blocks keep text and image in one sequence, the text first",
)
def flux(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    extra = {"pooled_projections": pool(states, 20), "guidance": rows(seeds, 3.5)}
    return call(states, seeds, time, TOKENS, 4, **positions(states), **extra)


@JOINT.add(
    "AuraFlowTransformer2DModel",
    {
        **HEADS,
        "sample_size": 8,
        "num_mmdit_layers": 2,
        "num_single_dit_layers": 2,
        "joint_attention_dim": 24,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 64,
    },
    width=24,
    note="eight learned register tokens stand before the text in its sequence; no mask",
    loud=2.0,
)
def auraflow(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, time, 4, 8, 8)


@JOINT.add(
    "QwenImageTransformer2DModel",
    {**HEADS, "in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 24, "axes_dims_rope": AXES},
    width=24,
    note="a mask of the text",
)
def qwen_image(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    shapes = [[(1, SIDE, SIDE)]] * len(seeds)
    return call(states, seeds, time, TOKENS, 16, img_shapes=shapes, encoder_hidden_states_mask=ones(states))


def sizes(seeds: Tensor, *names: str) -> dict[str, Tensor]:
    """Sizes and crops of the picture in pixels, [B, 2] each, as the CogView family is told them."""
    return {name: torch.full((len(seeds), 2), 0.0 if "crop" in name else 64.0) for name in names}


COGVIEW: Final = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "text_embed_dim": 24,
    "time_embed_dim": 16,
    "condition_dim": 4,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}


@JOINT.add("CogView3PlusTransformer2DModel", COGVIEW, width=24)
def cogview3(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, 4, 8, 8, **sizes(seeds, "original_size", "target_size", "crop_coords"))


@JOINT.add("CogView4Transformer2DModel", {**COGVIEW, "rope_axes_dim": (8, 8)}, width=24)
def cogview4(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, 4, 8, 8, **sizes(seeds, "original_size", "target_size", "crop_coords"))


@JOINT.add(
    "Flux2Transformer2DModel",
    {**FLUX, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
    width=24,
    note="later blocks keep text and image in one sequence, the text first; modulations are shared by all blocks",
)
def flux2(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    words = torch.zeros(states.shape[1], 4)
    words[:, 3] = torch.arange(states.shape[1])
    ids = {"img_ids": places(SIDE, SIDE, 4), "txt_ids": words}
    return call(states, seeds, time, TOKENS, 4, **ids, guidance=rows(seeds, 4.0))


@JOINT.add(
    "ChromaTransformer2DModel",
    {
        **FLUX,
        "axes_dims_rope": AXES,
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 32,
        "approximator_layers": 2,
    },
    width=24,
    note="a mask over text and image together; one small network makes all modulations",
)
def chroma(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    mask = torch.ones(len(seeds), states.shape[1] + TOKENS, dtype=torch.bool)
    return call(states, seeds, time, TOKENS, 4, **positions(states), attention_mask=mask)


@JOINT.add(
    "BriaTransformer2DModel",
    {**FLUX, "axes_dims_rope": AXES},
    width=24,
    note="a mask over text and image together, in attention_kwargs, none here",
)
def bria(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, TOKENS, 4, **positions(states))


@JOINT.add(
    "BriaFiboTransformer2DModel",
    {**FLUX, "axes_dims_rope": AXES, "text_encoder_dim": 12},
    width=24,
    text=("encoder_hidden_states", "text_encoder_layers"),
    note="text_encoder_layers is a list, a tensor [B, L, 12] a block: every block's text is half its own layer of the encoder",
)
def bria_fibo(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    layers = [project(states, 12) * (1 + place) for place in range(4)]
    return call(states, seeds, 1000 * time, TOKENS, 4, **positions(states), text_encoder_layers=layers)


@JOINT.add(
    "BriaFibo2Transformer2DModel",
    {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 3,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "cap_feat_dim": 24,
        "injection_layer_ids": (0, 2),
        "perceiver_num_layers": 1,
        "min_num_gist_tokens": 4,
        "max_num_gist_tokens": 8,
        "gist_step": 2,
        "gist_min_text_len": 4,
        "gist_max_text_len": 20,
        "axes_dims": AXES,
        "axes_lens": (64, 16, 16),
    },
    width=24,
    note="the text is [B, 3, L, D]: three bundles of layers. The first is boiled down to gist tokens, which join the image's "
    "sequence and whose number follows from the text's length; the others are read by attentions made for it",
)
def bria_fibo2(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    bundles = torch.stack([states, project(states, 24), project(states, 24).flip(-1)], 1)
    return call(bundles, seeds, time, 4, 8, 8, encoder_attention_mask=ones(states).bool())


@JOINT.add(
    "HiDreamImageTransformer2DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "caption_channels": [24, 20],
        "text_emb_dim": 12,
        "num_routed_experts": 2,
        "num_activated_experts": 1,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (8, 8),
        "llama_layers": [0, 1, 1, 0],
    },
    width=24,
    text=("encoder_hidden_states_t5", "encoder_hidden_states_llama3"),
    pooled=("pooled_embeds",),
    note="the second text is [layers, B, L, 20], rows in its second axis; its last layer and the first text go through all "
    "blocks, each block adds a layer of its own; the text stands behind the image; feed-forwards pick experts a token",
)
def hidream(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    second = project(states, 20)
    return {
        "hidden_states": noise(seeds, 4, 8, 8),
        "timesteps": rows(seeds, 1000 * time),
        "encoder_hidden_states_t5": states,
        "encoder_hidden_states_llama3": torch.stack([second, second.flip(-1)]),
        "pooled_embeds": pool(states, 12),
    }


@JOINT.add(
    "LongCatImageTransformer2DModel",
    {**FLUX, "axes_dims_rope": AXES},
    width=24,
    note="later blocks keep text and image in one sequence, the text first; no mask",
)
def longcat(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, time, TOKENS, 4, **positions(states))


@JOINT.add(
    "OvisImageTransformer2DModel",
    {**FLUX, "out_channels": 4, "axes_dims_rope": AXES},
    width=24,
    note="later blocks keep text and image in one sequence, the text first; no mask",
)
def ovis(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, time, TOKENS, 4, **positions(states))


def _small_glyphs(model: Any) -> None:
    """The projection of the second text is 2048 wide inside: a narrow one of the same class."""
    part = model.context_embedder_2
    model.context_embedder_2 = type(part)(20, 16, 32)


@JOINT.add(
    "HunyuanImageTransformer2DModel",
    {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": (2, 2),
        "text_embed_dim": 24,
        "text_embed_2_dim": 20,
        "rope_axes_dim": (8, 8),
    },
    width=24,
    text=("encoder_hidden_states", "encoder_hidden_states_2"),
    note="a mask a text; the first attends to itself in a refiner; both are put together as second, first, their masked rest; "
    "the text stands behind the image",
    refit=_small_glyphs,
)
def hunyuan_image(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    second = project(states[:, :6], 20)
    masks = {"encoder_attention_mask": ones(states), "encoder_attention_mask_2": ones(second)}
    return call(states, seeds, 1000 * time, 4, 8, 8, encoder_hidden_states_2=second, **masks)


JOY: Final = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 24,
    "mlp_width_ratio": 2.0,
    "num_layers": 2,
    "rope_dim_list": list(AXES),
}


@JOINT.add("JoyImageEditTransformer3DModel", JOY, width=24, note="latents [B, pictures, C, 1, H, W], the one to make first")
def joy_edit(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, 2, 4, 1, 8, 8)


@JOINT.add(
    "JoyImageEditPlusTransformer3DModel",
    JOY,
    width=24,
    note="a mask of the text; latents come as patches [B, N, C, 1, 2, 2] of all pictures, with their shapes a row",
)
def joy_edit_plus(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    shapes = [[(1, SIDE, SIDE), (1, 2, 2)]] * len(seeds)
    return call(
        states, seeds, 1000 * time, TOKENS + 4, 4, 1, 2, 2, shape_list=shapes, encoder_hidden_states_mask=ones(states).float()
    )
