"""Random denoisers in the widths of well-known ones, for counting and timing what protection costs there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from tests.support.tiny_pipelines.classic import LARGE_SHELF as XL_SHELF
from tests.support.tiny_pipelines.classic import SMALL_SHELF as STABLE_SHELF
from tests.support.tiny_pipelines.joint_pipelines import FLUX_SHELF, SD3_SHELF
from tests.support.tiny_pipelines.tokenizers import clip, t5
from tests.support.tiny_pipelines.whole import assemble, part

WIDE_T5: Final = t5(4096, d_ff=64, num_layers=1)


@dataclass(frozen=True, slots=True)
class Shapes:
    """A pipeline with random weights in the widths of a known denoiser, and next to nothing around it.

    ``build`` takes the side of the latent.
    """

    title: str
    build: Callable[[int], Any]

    def made(self, size: int) -> tuple[Any, dict[str, Any]]:
        """The pipeline and what its call is given. The tokens that open and close a text mean the same to its encoders, as
        both mean nothing to trained ones: else their difference outweighs every word, and no output goes a concept's way.
        """
        torch.manual_seed(0)
        pipe = self.build(size)
        for name, tokenizer in pipe.components.items():
            encoder = getattr(pipe, name.replace("tokenizer", "text_encoder"), None)
            if name.startswith("tokenizer") and tokenizer is not None and tokenizer.bos_token_id is not None:
                _read_alike(encoder, tokenizer)
        side = pipe.vae_scale_factor * size
        return pipe, {"num_inference_steps": 1, "guidance_scale": 7.5, "height": side, "width": side}


def sd15(size: int, widths: Sequence[int] = (320, 640, 1280, 1280)) -> Any:
    """860 M parameters, 3.4 GB."""
    unet = part(
        "UNet2DConditionModel", sample_size=size, cross_attention_dim=768, attention_head_dim=8, block_out_channels=widths
    )
    shelf = {**STABLE_SHELF, "unet": unet, "text_encoder": clip(width=768)}
    return assemble("StableDiffusionPipeline", shelf)


def sdxl(size: int) -> Any:
    """2.6 G parameters, 10.3 GB."""
    unet = part(
        "UNet2DConditionModel",
        sample_size=size,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
    )
    second = clip("CLIPTextModelWithProjection", width=1280, hidden_act="gelu")
    return assemble(
        "StableDiffusionXLPipeline", {**XL_SHELF, "unet": unet, "text_encoder": clip(width=768), "text_encoder_2": second}
    )


def sd3(size: int, layers: int = 24, heads: int = 24) -> Any:
    """2.0 G parameters, 8 GB; 77 tokens of CLIP and 256 of T5."""
    transformer = part(
        "SD3Transformer2DModel",
        sample_size=size,
        patch_size=2,
        in_channels=4,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=4096,
        caption_projection_dim=64 * heads,
        pooled_projection_dim=2048,
        out_channels=4,
        pos_embed_max_size=192,
    )
    pooling = "CLIPTextModelWithProjection"
    encoders = {"text_encoder": clip(pooling, width=768), "text_encoder_2": clip(pooling, width=1280, hidden_act="gelu")}
    return assemble(
        "StableDiffusion3Pipeline",
        {**SD3_SHELF, **encoders, "transformer": transformer, "text_encoder_3": WIDE_T5},
    )


def flux(size: int, double: int = 2, single: int = 4, heads: int = 24) -> Any:
    """Every block costs what its like do, so few of them tell the ratio: 1.3 G of 12 G parameters; 512 tokens of T5."""
    transformer = part(
        "FluxTransformer2DModel",
        patch_size=1,
        in_channels=16,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=128,
        num_attention_heads=heads,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    encoders = {"text_encoder": clip(width=768), "text_encoder_2": WIDE_T5}
    return assemble("FluxPipeline", {**FLUX_SHELF, **encoders, "transformer": transformer})


SHAPES: Final = {
    "sd15": Shapes("SD 1.5", sd15),
    "sdxl": Shapes("SDXL", sdxl),
    "sd3": Shapes("SD3 medium", sd3),
    "flux": Shapes("Flux (6 of 57 blocks)", flux),
}


def _read_alike(text: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        words = text.get_input_embeddings().weight
        words[tokenizer.eos_token_id] = words[tokenizer.bos_token_id]
        next(weight for name, weight in text.named_parameters() if "position_embedding" in name).zero_()
