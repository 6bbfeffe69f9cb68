"""Kind B for pictures: transformers in which the image reads the text through attentions made for it."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from tests.support.tiny_denoisers.specimen import Shelf, call, ones, picks, places, pool, project, turns

CROSS: Final = Shelf("B")
HEADS: Final = {"num_attention_heads": 2, "attention_head_dim": 16}
FOUR: Final = {"in_channels": 4, "out_channels": 4}


@CROSS.add(
    "PixArtTransformer2DModel",
    {
        **HEADS,
        "out_channels": 8,
        "num_layers": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 32,
        "sample_size": 8,
        "caption_channels": 24,
        "use_additional_conditions": False,
    },
    width=24,
    note="a mask of the text",
)
def pixart(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    kinds = {"resolution": None, "aspect_ratio": None}
    return call(states, seeds, 1000 * time, 4, 8, 8, encoder_attention_mask=ones(states), added_cond_kwargs=kinds)


SANA: Final = {
    **HEADS,
    **FOUR,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 24,
    "sample_size": 8,
}


@CROSS.add("SanaTransformer2DModel", SANA, width=24, note="a mask of the text; the image reads itself by linear attention")
def sana(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1000 * time, 4, 8, 8, encoder_attention_mask=ones(states))


@CROSS.add(
    "HunyuanDiT2DModel",
    {
        **HEADS,
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 8,
        "hidden_size": 32,
        "num_layers": 4,
        "mlp_ratio": 2.0,
        "cross_attention_dim": 24,
        "cross_attention_dim_t5": 16,
        "pooled_projection_dim": 20,
        "text_len": 12,
        "text_len_t5": 8,
        "use_style_cond_and_image_meta_size": False,
    },
    width=24,
    text=("encoder_hidden_states", "encoder_hidden_states_t5"),
    note="one length of each text only, the configuration's; masks, under which a learned padding stands in; the second text "
    "stands behind the first, and the modulation reads a pooled form of it that an attention makes inside",
)
def hunyuan_dit(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    second = project(states[:, :8], 16)
    masks = {"text_embedding_mask": ones(states), "text_embedding_mask_t5": ones(second)}
    return call(states, seeds, 1000 * time, 4, 8, 8, encoder_hidden_states_t5=second, image_rotary_emb=turns(16, 16), **masks)


def _no_padding(model: Any) -> None:
    """The token of padding is left as memory was, and used nowhere."""
    torch.nn.init.zeros_(model.pad_token)


@CROSS.add(
    "LuminaNextDiT2DModel",
    {
        "sample_size": 8,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 8,
        "cross_attention_dim": 24,
    },
    width=24,
    note="a mask of the text; a gate a head for what is read; the modulation reads the mean of the text",
    refit=_no_padding,
)
def lumina_next(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    angles = (places(8, 8, 2)[..., None] / torch.arange(1.0, 5.0)).view(8, 8, 8)
    extra = {"image_rotary_emb": torch.polar(torch.ones_like(angles), angles), "cross_attention_kwargs": {}}
    return call(states, seeds, 1 - time, 4, 8, 8, encoder_mask=ones(states), **extra)


def _experts(model: Any) -> None:
    """The weights of the experts are left as memory was."""
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            torch.nn.init.normal_(parameter, std=0.2)


@CROSS.add(
    "NucleusMoEImageTransformer2DModel",
    {
        **HEADS,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 5,
        "num_key_value_heads": 1,
        "joint_attention_dim": 24,
        "axes_dims_rope": (4, 6, 6),
        "mlp_ratio": 2.0,
        "num_experts": 4,
        "moe_intermediate_dim": 16,
        "capacity_factors": 2.0,
    },
    width=24,
    note="a mask of the text; the image reads itself and the text in one attention, the text reads nothing; experts of the "
    "feed-forward pick their tokens, a row for itself",
    refit=_experts,
)
def nucleus(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    shapes = [(1, 4, 4)] * len(seeds)
    return call(states, seeds, time, 16, 16, img_shapes=shapes, encoder_hidden_states_mask=ones(states).bool())


@CROSS.add(
    "PRXTransformer2DModel",
    {
        "in_channels": 4,
        "context_in_dim": 24,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "axes_dim": [8, 8],
    },
    width=24,
    note="a mask of the text; the image reads the text and itself in one attention, the text reads nothing",
)
def prx(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, time, 4, 8, 8, attention_mask=ones(states).bool())


@CROSS.add(
    "UVit2DModel",
    {
        "hidden_size": 32,
        "cond_embed_dim": 20,
        "micro_cond_encode_dim": 4,
        "micro_cond_embed_dim": 20,
        "encoder_hidden_size": 24,
        "vocab_size": 18,
        "codebook_size": 16,
        "in_channels": 16,
        "block_out_channels": 32,
        "num_res_blocks": 1,
        "block_num_heads": 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "sample_size": 4,
    },
    width=24,
    pooled=("pooled_text_emb",),
    note="the image is codes, of which a share is masked: the time. Scores of codes come out, a plain tensor. It has a pooled "
    "text in its modulation, with sizes; no mask of the text",
)
def uvit(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    codes = picks(seeds, 16, 16)
    codes[:, : int(16 * time)] = 17
    sizes = torch.tensor([64.0, 64.0, 0.0, 0.0, 6.0]).expand(len(seeds), -1)
    return {
        "input_ids": codes.view(-1, 4, 4),
        "encoder_hidden_states": states,
        "pooled_text_emb": pool(states, 20),
        "micro_conds": sizes,
    }
