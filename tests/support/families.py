"""Tiny pipelines with random weights, one function a family: what the contract suites run on.

A new family is one function under ``@family``: it gives a fresh pipeline with everything in evaluation mode. ``generate``
runs any of them. What eraser authors are given of it stands in `safeguard.testing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from safeguard.testing import tiny_pipeline, tiny_pipelines
from safeguard.testing.tiny_pipelines import (
    PROMPTS,
    SIDE,
    STEPS,
    TOKENS,
    denoiser,
    quiet,
    scheduler,
    stable_diffusion,
    text_encoder,
    tokenizer,
    unet,
    unet_parts,
)
from safeguard.testing.tiny_pipelines import denoiser_name as part

__all__ = [
    "FAMILIES",
    "PROMPTS",
    "SIDE",
    "STEPS",
    "TOKENS",
    "call_of",
    "denoiser",
    "denoiser_call",
    "generate",
    "part",
    "picture",
    "scheduler",
    "tokenizer",
    "unet",
]

Build = Callable[[], Any]
FAMILIES: Final[dict[str, Build]] = {}


def family(build: Build) -> Build:
    """Registers it; the caller's random numbers stay as they were."""
    FAMILIES[build.__name__] = torch.random.fork_rng(devices=[])(build)
    return FAMILIES[build.__name__]


@family
def sd1() -> Any:
    return tiny_pipeline("unet")


@family
def sd2() -> Any:
    """Widths of heads in a list, linear projections, another text encoder, velocity prediction."""
    torch.manual_seed(2)
    denoiser = unet(attention_head_dim=[2, 4], use_linear_projection=True, cross_attention_dim=48)
    words = text_encoder(width=48, hidden_act="gelu")
    return stable_diffusion(StableDiffusionPipeline, 2, unet=denoiser, text_encoder=words, scheduler=scheduler("v_prediction"))


@family
def sdxl() -> Any:
    """Two text encoders side by side, a pooled text and sizes in ``added_cond_kwargs``."""
    torch.manual_seed(3)
    denoiser = unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    second = text_encoder("CLIPTextModelWithProjection", hidden_act="gelu")
    parts = unet_parts(3, unet=denoiser, text_encoder_2=second, tokenizer_2=tokenizer())
    return quiet(StableDiffusionXLPipeline(**parts, add_watermarker=False))


@family
def img2img() -> Any:
    return stable_diffusion(StableDiffusionImg2ImgPipeline, 4)


@family
def inpaint() -> Any:
    """The nine-channel denoiser that is made for inpainting."""
    torch.manual_seed(5)
    return stable_diffusion(StableDiffusionInpaintPipeline, 5, unet=unet(in_channels=9))


@family
def controlnet() -> Any:
    """A second network that reads the text: it has text sites of its own."""
    torch.manual_seed(6)
    denoiser = unet()
    control = ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(4, 8), load_weights_from_unet=True)
    torch.nn.init.normal_(control.controlnet_mid_block.weight, std=0.1)  # made as zeros, they would change nothing
    return stable_diffusion(StableDiffusionControlNetPipeline, 6, unet=denoiser, controlnet=control.eval())


@family
def pag() -> Any:
    """Perturbed attention guidance: three rows an image, two of them conditional."""
    return stable_diffusion(StableDiffusionPAGPipeline, 7)


@family
def sd3() -> Any:
    """Joint attention, flow matching; two text encoders side by side, pooled texts, zeros in the place of a third."""
    return tiny_pipeline("joint")


def picture(seed: int = 0, mode: str = "RGB") -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGB").convert(mode)


def generate(pipe: Any, prompts: Sequence[str] | None, **changes: Any) -> Any:
    """Run a pipeline of any family, each image with a seed of its own: latents [images, 4, SIDE / 2, SIDE / 2]."""
    return pipe(**call_of(pipe, prompts, **changes)).images


def call_of(pipe: Any, prompts: Sequence[str] | None, **changes: Any) -> dict[str, Any]:
    """What `generate` calls a pipeline with: to what all are called with, the pictures that some take."""
    options = tiny_pipelines.call_of(pipe, prompts, **changes)
    count = len(prompts) if prompts is not None else len(changes["prompt_embeds"])
    name = type(pipe).__name__
    pictures: dict[str, Any] = {}
    if "Img2Img" in name or "Inpaint" in name or "ControlNet" in name:
        pictures["image"] = [picture(place) for place in range(count)]
        options = {key: value for key, value in options.items() if key not in ("height", "width")}
    if "Img2Img" in name or "Inpaint" in name:
        pictures["strength"] = 1.0
    if "Inpaint" in name:
        pictures["mask_image"] = [picture(place, "L") for place in range(count)]
    return {**options, **pictures, **changes}


def denoiser_call(pipe: Any) -> dict[str, Any]:
    """What the denoiser of a pipeline may be called with by itself: two rows, in the middle of a run."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(2, 4, 16, 16, generator=generator)
    if hasattr(pipe, "unet"):
        width = pipe.unet.config.cross_attention_dim
        return {"sample": image, "timestep": 500, "encoder_hidden_states": torch.randn(2, 7, width, generator=generator)}
    words = {"encoder_hidden_states": torch.randn(2, 7, 64, generator=generator)}
    pooled = torch.randn(2, 64, generator=generator)
    return {"hidden_states": image, "timestep": torch.full((2,), 500.0), "pooled_projections": pooled, **words}
