"""Tiny pipelines with random weights, one function a family: what the contract suites run on.

A new family is one function under ``@family``: it gives a fresh pipeline with everything in evaluation mode. ``generate``
runs any of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FAMILIES: Final[dict[str, Callable[[], Any]]] = {}
SIDE: Final = 32  # pixels; the latent is half of it
STEPS: Final = 2
TOKENS: Final = 77
PROMPTS: Final = ("a red boat", "blood on snow", "a green tree")

Build = Callable[[], Any]


def family(build: Build) -> Build:
    """Registers it; the caller's random numbers stay as they were."""
    FAMILIES[build.__name__] = torch.random.fork_rng(devices=[])(build)
    return FAMILIES[build.__name__]


@functools.cache
def tokenizer() -> CLIPTokenizer:
    """Spells every text, a token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[], model_max_length=TOKENS)


def text_encoder(kind: type = CLIPTextModel, width: int = 32, act: str = "quick_gelu") -> Any:
    spelled = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(spelled),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act=act,
        bos_token_id=spelled.bos_token_id,
        eos_token_id=spelled.eos_token_id,
        pad_token_id=spelled.pad_token_id,
    )
    return kind(config).eval()


def autoencoder() -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
        force_upcast=False,
        scaling_factor=0.5,
    ).eval()


def unet(**changes: Any) -> Any:
    options: dict[str, Any] = {
        "sample_size": SIDE // 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,  # diffusers reads a number here as the number of heads
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**options, **changes}).eval()


def scheduler(prediction: str = "epsilon") -> Any:
    return DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing", steps_offset=1)


def _parts(seed: int, **changes: Any) -> dict[str, Any]:
    torch.manual_seed(seed)
    parts: dict[str, Any] = {
        "vae": autoencoder(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "unet": unet(),
        "scheduler": scheduler(),
    }
    return {**parts, **changes}


def _stable_diffusion(kind: type, seed: int, **changes: Any) -> Any:
    return _quiet(kind(**_parts(seed, **changes), safety_checker=None, feature_extractor=None, requires_safety_checker=False))


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@family
def sd1() -> Any:
    return _stable_diffusion(StableDiffusionPipeline, 1)


@family
def sd2() -> Any:
    """Widths of heads in a list, linear projections, another text encoder, velocity prediction."""
    torch.manual_seed(2)
    denoiser = unet(attention_head_dim=[2, 4], use_linear_projection=True, cross_attention_dim=48)
    words = text_encoder(width=48, act="gelu")
    return _stable_diffusion(StableDiffusionPipeline, 2, unet=denoiser, text_encoder=words, scheduler=scheduler("v_prediction"))


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
    second = text_encoder(CLIPTextModelWithProjection, act="gelu")
    parts = _parts(3, unet=denoiser, text_encoder_2=second, tokenizer_2=tokenizer())
    return _quiet(StableDiffusionXLPipeline(**parts, add_watermarker=False))


@family
def img2img() -> Any:
    return _stable_diffusion(StableDiffusionImg2ImgPipeline, 4)


@family
def inpaint() -> Any:
    """The nine-channel denoiser that is made for inpainting."""
    torch.manual_seed(5)
    return _stable_diffusion(StableDiffusionInpaintPipeline, 5, unet=unet(in_channels=9))


@family
def controlnet() -> Any:
    """A second network that reads the text: it has text sites of its own."""
    torch.manual_seed(6)
    denoiser = unet()
    control = ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(4, 8), load_weights_from_unet=True)
    torch.nn.init.normal_(control.controlnet_mid_block.weight, std=0.1)  # made as zeros, they would change nothing
    return _stable_diffusion(StableDiffusionControlNetPipeline, 6, unet=denoiser, controlnet=control.eval())


@family
def pag() -> Any:
    """Perturbed attention guidance: three rows an image, two of them conditional."""
    return _stable_diffusion(StableDiffusionPAGPipeline, 7)


@family
def sd3() -> Any:
    """Joint attention, flow matching; two text encoders side by side, pooled texts, zeros in the place of a third."""
    torch.manual_seed(8)
    parts = {f"text_encoder{end}": text_encoder(CLIPTextModelWithProjection) for end in ("", "_2")}
    denoiser = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    latents = autoencoder()
    latents.register_to_config(shift_factor=0.1)
    made = StableDiffusion3Pipeline(
        **parts,
        vae=latents,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=denoiser.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    return _quiet(made)


def picture(seed: int = 0, mode: str = "RGB") -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGB").convert(mode)


def part(pipe: Any) -> str:
    """The name of a pipeline's denoiser."""
    return "unet" if hasattr(pipe, "unet") else "transformer"


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, part(pipe))


def generate(pipe: Any, prompts: Sequence[str] | None, **changes: Any) -> Any:
    """Run a pipeline of any family, each image with a seed of its own: latents [images, 4, SIDE / 2, SIDE / 2]."""
    return pipe(**call_of(pipe, prompts, **changes)).images


def call_of(pipe: Any, prompts: Sequence[str] | None, **changes: Any) -> dict[str, Any]:
    """What `generate` calls a pipeline with."""
    count = len(prompts) if prompts is not None else len(changes["prompt_embeds"])
    images = count * changes.get("num_images_per_prompt", 1)
    options: dict[str, Any] = {
        "prompt": None if prompts is None else list(prompts),
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "generator": [torch.Generator().manual_seed(100 + place) for place in range(images)],
        "output_type": "latent",
    }
    name = type(pipe).__name__
    if "Img2Img" in name or "Inpaint" in name or "ControlNet" in name:
        options["image"] = [picture(place) for place in range(count)]
    else:
        options |= {"height": SIDE, "width": SIDE}
    if "Img2Img" in name or "Inpaint" in name:
        options["strength"] = 1.0
    if "Inpaint" in name:
        options["mask_image"] = [picture(place, "L") for place in range(count)]
    if "Diffusion3" in name:
        options["max_sequence_length"] = 0  # no zeros in the place of the third text encoder
    return {**options, **changes}
