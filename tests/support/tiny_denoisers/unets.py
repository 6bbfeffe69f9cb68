"""Kind A: convolutional networks whose image reads the text through attentions made for it."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from tests.support.tiny_denoisers.specimen import Shelf, noise, ones, pool, rows

UNETS: Final = Shelf("A")
BLOCKS: Final = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 24,
}
SDXL: Final = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 20 + 6 * 4,
}
WUERSTCHEN: Final = "diffusers.pipelines.deprecated.wuerstchen"
VIDEO: Final = (4, 2, 8, 8)  # channels, frames, height, width


def kinds(ending: str) -> dict[str, Any]:
    """Blocks of two levels, of which the outer one reads text."""
    return {
        "down_block_types": (f"CrossAttnDownBlock{ending}", f"DownBlock{ending}"),
        "up_block_types": (f"UpBlock{ending}", f"CrossAttnUpBlock{ending}"),
    }


def sample(states: Tensor, seeds: Tensor, step: float, *shape: int, **more: Any) -> dict[str, Any]:
    """The three arguments that the UNets have, with latents [B, *shape] of noise; ``more`` adds to them."""
    three = {"sample": noise(seeds, *shape), "timestep": rows(seeds, step), "encoder_hidden_states": states}
    return {**three, **more}


@UNETS.add(
    "UNet2DConditionModel",
    {
        **BLOCKS,
        **SDXL,
        **kinds("2D"),
        "attention_head_dim": 2,  # diffusers reads a number here as the number of heads
        "use_linear_projection": True,
    },
    width=24,
    pooled=("added_cond_kwargs.text_embeds",),
    note="of the SDXL sort: a pooled text and sizes in added_cond_kwargs",
)
def unet(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    sizes = rows(seeds, 64.0)[:, None].repeat(1, 6)
    return sample(states, seeds, 1000 * time, 4, 8, 8, added_cond_kwargs={"text_embeds": pool(states, 20), "time_ids": sizes})


@UNETS.add(
    "UNet3DConditionModel",
    {**BLOCKS, **kinds("3D"), "attention_head_dim": 2},
    width=24,
    note="frames are rows inside: the text is repeated for each of them",
)
def unet_3d(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return sample(states, seeds, 1000 * time, *VIDEO)


@UNETS.add(
    "UNetMotionModel",
    {**BLOCKS, **kinds("Motion"), "num_attention_heads": 2, "motion_max_seq_length": 4, "motion_num_attention_heads": 2},
    width=24,
    note="frames are rows: the text is given [B * 2, L, D], repeated for each of them",
)
def unet_motion(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return sample(states.repeat_interleave(2, 0), seeds, 1000 * time, *VIDEO)


@UNETS.add(
    "I2VGenXLUNet",
    {**BLOCKS, **kinds("3D"), "attention_head_dim": 2},
    width=24,
    note="64 tokens of a picture's latents and 4 of its embedding stand behind the text, with the same keys and values; frames "
    "are rows inside: the text is repeated for each of them",
)
def i2vgen(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    picture = {"image_latents": noise(seeds, *VIDEO), "image_embeddings": noise(seeds, 24)}
    return sample(states, seeds, 1000 * time, *VIDEO, fps=rows(seeds, 16), **picture)


@UNETS.add(
    "UNetControlNetXSModel",
    {
        **{name: value for name, value in BLOCKS.items() if name != "layers_per_block"},
        **kinds("2D"),
        "num_attention_heads": 2,
        "ctrl_block_out_channels": (4, 8),
        "ctrl_conditioning_embedding_out_channels": (4, 4),
        "ctrl_num_attention_heads": 2,
        "ctrl_max_norm_num_groups": 4,
    },
    width=24,
    note="a small network for a control picture runs alongside, and reads the text by attentions of its own",
)
def controlnet_xs(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return sample(states, seeds, 1000 * time, 4, 8, 8, controlnet_cond=noise(seeds, 3, 16, 16))


@UNETS.add(
    "DreamLiteUNetModel",
    {
        **BLOCKS,
        "down_block_types": ("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        "up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D"),
        "attention_head_dim": 2,
        "ff_mult": 2,
        "use_linear_projection": True,
    },
    width=24,
    note="a mask of the text; one head of keys for all heads of queries; some blocks read text only, not the image",
)
def dream_lite(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return sample(states, seeds, 1000 * time, 4, 8, 8, encoder_attention_mask=ones(states))


@UNETS.add(
    "Kandinsky3UNet",
    {
        "time_embedding_dim": 16,
        "groups": 2,
        "attention_head_dim": 4,
        "layers_per_block": 2,
        "block_out_channels": (8, 8, 8, 16),
        "cross_attention_dim": 16,
        "encoder_hid_dim": 24,
    },
    width=24,
    note="a mask of the text; the time's embedding reads a pooled form of the text that an attention makes inside",
)
def kandinsky3(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return sample(states, seeds, 1000 * time, 4, 16, 16, encoder_attention_mask=ones(states))


CASCADE: Final = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")


@UNETS.add(
    "StableCascadeUNet",
    {
        "in_channels": 4,
        "out_channels": 4,
        "timestep_ratio_embedding_dim": 8,
        "conditioning_dim": 16,
        "block_out_channels": (16, 16),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "block_types_per_layer": (CASCADE, CASCADE),
        "clip_text_in_channels": 24,
        "clip_text_pooled_in_channels": 20,
        "clip_image_in_channels": 8,
        "clip_seq": 2,
        "switch_level": (False,),
    },
    width=24,
    text=("clip_text",),
    pooled=("clip_text_pooled",),
    note="as the prior: attentions read the image itself, the text, 2 tokens made of the pooled text [B, 1, P] and 2 of a "
    "picture, in this order, all with the same keys and values; as the decoder it would read the pooled text only",
    loud=1.5,
)
def cascade(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return {
        "sample": noise(seeds, 4, 8, 8),
        "timestep_ratio": rows(seeds, time),
        "clip_text": states,
        "clip_text_pooled": pool(states, 20)[:, None],
        "clip_img": noise(seeds, 1, 8),
    }


def _mild_quotient(model: Any) -> None:
    """What comes out is a quotient: weights of the last layer so small that nothing is divided by almost zero."""
    model.out[1].weight.data.mul_(0.1)


@UNETS.add(
    "WuerstchenPrior",
    {"c_in": 4, "c": 16, "c_cond": 24, "c_r": 8, "depth": 2, "nhead": 2},
    width=24,
    text=("c",),
    note="attentions read the image itself and the text behind it, with the same keys and values; a plain tensor comes out",
    home=f"{WUERSTCHEN}.modeling_wuerstchen_prior",
    refit=_mild_quotient,
    loud=2.0,
)
def wuerstchen_prior(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return {"x": noise(seeds, 4, 4, 4), "r": rows(seeds, time), "c": states}


@UNETS.add(
    "WuerstchenDiffNeXt",
    {
        "c_r": 8,
        "c_cond": 16,
        "c_hidden": [16, 16],
        "nhead": [-1, 2],
        "blocks": [1, 2],
        "level_config": ["CT", "CTA"],
        "inject_effnet": [False, True],
        "effnet_embd": 4,
        "clip_embd": 24,
    },
    width=24,
    text=("clip",),
    note="attentions read the image itself and the text behind it, with the same keys and values; a plain tensor comes out",
    home=f"{WUERSTCHEN}.modeling_wuerstchen_diffnext",
)
def wuerstchen_decoder(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return {"x": noise(seeds, 4, 8, 8), "r": rows(seeds, time), "effnet": noise(seeds, 4, 2, 2), "clip": states}
