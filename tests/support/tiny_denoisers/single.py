"""Kind D: text and image tokens are one sequence, with the same projections for both."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from tests.support.tiny_denoisers.specimen import Shelf, call, noise, ones, picks, places, project, rows

SINGLE: Final = Shelf("D")
HEADS: Final = {"num_attention_heads": 2, "attention_head_dim": 16}
AXES: Final = (4, 6, 6)
SIDE: Final = 4  # image tokens along a side of the latents that come as tokens
TOKENS: Final = SIDE * SIDE


def positions(states: Tensor) -> Tensor:
    """Positions [L + N, 3] of a text along the first axis and a picture behind it in the other two."""
    words = torch.zeros(states.shape[1], 3)
    words[:, 0] = torch.arange(states.shape[1])
    picture = places(SIDE, SIDE)
    picture[:, 0] = states.shape[1]
    return torch.cat([words, picture])


@SINGLE.add(
    "Lumina2Transformer2DModel",
    {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 32,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 8,
        "axes_dim_rope": (4, 6, 6),
        "axes_lens": (128, 16, 16),
        "cap_feat_dim": 24,
    },
    width=24,
    note="a mask of the text, which attends to itself in a refiner first; fewer heads of keys than of queries",
)
def lumina2(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return call(states, seeds, 1 - time, 4, 8, 8, encoder_attention_mask=ones(states))


@SINGLE.add(
    "ZImageTransformer2DModel",
    {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 24,
        "axes_dims": [4, 6, 6],
        "axes_lens": [192, 16, 16],
    },
    width=24,
    text=("cap_feats",),
    note="latents and text are lists of tensors, the text [L, D]; both are padded inside to a multiple of 32, and it is read",
)
def z_image(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return {"x": list(noise(seeds, 4, 1, 8, 8)), "t": rows(seeds, 1 - time), "cap_feats": list(states)}


@SINGLE.add(
    "ErnieImageTransformer2DModel",
    {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_layers": 2,
        "ffn_hidden_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "text_in_dim": 24,
        "rope_axes_dim": AXES,
    },
    width=24,
    text=("text_bth",),
    note="the number of tokens a row in text_lens instead of a mask; the text stands behind the image; inside, rows are the "
    "second axis",
)
def ernie(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    lengths = torch.full((len(seeds),), states.shape[1])
    latents = {"hidden_states": noise(seeds, 4, SIDE, SIDE), "timestep": rows(seeds, 1000 * time)}
    return {**latents, "text_bth": states, "text_lens": lengths}


@SINGLE.add(
    "GlmImageTransformer2DModel",
    {
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "text_embed_dim": 24,
        "time_embed_dim": 16,
        "condition_dim": 4,
        "prior_vq_quantizer_codebook_size": 16,
    },
    width=24,
    note="the text is that of glyphs to write; what else a prompt says comes as codes a patch, drawn by a language model, and "
    "dropped for the unconditional rows. The text stands before the image",
)
def glm_image(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    codes = {
        "prior_token_id": picks(seeds, 16, TOKENS),
        "prior_token_drop": torch.zeros(len(seeds), TOKENS, dtype=torch.bool),
    }
    sizes = {"target_size": torch.full((len(seeds), 2), 64.0), "crop_coords": torch.zeros(len(seeds), 2)}
    return call(states, seeds, 1000 * time, 4, 8, 8, **codes, **sizes)


@SINGLE.add(
    "Ideogram4Transformer2DModel",
    {
        **HEADS,
        "in_channels": 4,
        "num_layers": 2,
        "intermediate_size": 64,
        "adaln_dim": 8,
        "llm_features_dim": 24,
        "mrope_section": (4, 2, 2),
    },
    width=24,
    note="latents and text are both as long as the one sequence [B, L + N]: zeros where the other stands, an indicator of "
    "which is where (3 text, 2 image), and segment ids of what may see what. The output has the text's places too",
)
def ideogram4(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    count, length = states.shape[:2]
    kinds = torch.cat([torch.full((length,), 3), torch.full((TOKENS,), 2)]).expand(count, -1)
    return {
        "hidden_states": pad(noise(seeds, TOKENS, 4), (0, 0, length, 0)),
        "encoder_hidden_states": pad(states, (0, 0, 0, TOKENS)),
        "timestep": rows(seeds, 1 - time),
        "position_ids": positions(states).long().expand(count, -1, -1),
        "segment_ids": torch.zeros_like(kinds),
        "indicator": kinds,
    }


@SINGLE.add(
    "Krea2Transformer2DModel",
    {
        **HEADS,
        "in_channels": 4,
        "num_layers": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "timestep_embed_dim": 16,
        "text_hidden_dim": 24,
        "num_text_layers": 3,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 48,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": AXES,
    },
    width=24,
    note="the text is [B, L, 3, D], layers of the encoder in its third axis, which blocks inside melt into one; then it "
    "attends to itself in a refiner. A mask of the text, which stands before the image",
)
def krea2(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    layers = torch.stack([states, project(states, 24), project(states, 24).flip(-1)], 2)
    more = {"position_ids": positions(states), "encoder_attention_mask": ones(states).bool()}
    return call(layers, seeds, time, TOKENS, 4, **more)


@SINGLE.add(
    "QwenImage21Transformer2DModel",
    {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "context_in_dim": 24, "axes_dims_rope": AXES},
    width=24,
    note="a mask of the text, which stands before the image and sees only itself, one token after the other; img_mask says "
    "which places of text and image, four tokens a place, are image. The output has the text's places too",
    loud=1.5,
)
def qwen_image_21(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    picture = torch.arange(states.shape[1] + TOKENS // 4) >= states.shape[1]
    return call(
        states,
        seeds,
        time,
        TOKENS,
        4,
        img_shapes=[[(1, SIDE, SIDE)]] * len(seeds),
        img_mask=picture.expand(len(seeds), -1),
        encoder_hidden_states_mask=ones(states).bool(),
    )


@SINGLE.add(
    "UniDiffuserModel",
    {
        **HEADS,
        "text_dim": 24,
        "clip_img_dim": 8,
        "num_text_tokens": 12,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "norm_num_groups": 4,
        "sample_size": 8,
        "patch_size": 2,
        "activation_fn": "gelu",
        "use_data_type_embedding": True,
    },
    width=24,
    text=("prompt_embeds",),
    note="one length of text only, the configuration's; the text has a time of its own, 0 when it is given; it stands before "
    "an embedding of the picture and the image. A plain tuple comes out: latents, embedding and text, all three predicted",
    home="diffusers.pipelines.deprecated.unidiffuser.modeling_uvit",
)
def unidiffuser(states: Tensor, seeds: Tensor, time: float) -> dict[str, Any]:
    return {
        "latent_image_embeds": noise(seeds, 4, 8, 8),
        "image_embeds": noise(seeds, 1, 8),
        "prompt_embeds": states,
        "timestep_img": rows(seeds, 1000 * time),
        "timestep_text": rows(seeds, 0),
    }
