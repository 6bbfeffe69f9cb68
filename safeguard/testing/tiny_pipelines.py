"""Tiny diffusers pipelines with random weights, built without a download: to try erasers and policies on."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from safeguard.errors import SafeguardError

if TYPE_CHECKING:
    from torch import Tensor

SIDE: Final = 32  # pixels; the latent is half of it
STEPS: Final = 2
TOKENS: Final = 77
PROMPTS: Final = ("a red boat", "blood on snow", "a green tree")


def tiny_pipeline(family: str = "unet") -> Any:
    """A new tiny pipeline with random weights. It needs no network and runs in a fraction of a second on a CPU.

    The images mean nothing. They show whether an eraser acts, in which rows, and whether a run can be repeated to the bit.

    Args:
        family: ``unet`` is a `StableDiffusionPipeline`, with cross-attention. ``joint`` is a `StableDiffusion3Pipeline`, with
            joint attention, two text encoders and pooled texts.

    Returns:
        The pipeline, in evaluation mode, on the CPU, in float32. The same family has the same weights every time.

    Raises:
        SafeguardError: There is no such family.
    """
    import torch

    if family not in TINY_FAMILIES:
        raise SafeguardError(f"there is no tiny pipeline {family!r}; use {' or '.join(TINY_FAMILIES)}")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        return TINY_FAMILIES[family]()


def generate(pipe: Any, prompts: Sequence[str] | None, **changes: Any) -> Tensor:
    """Run a tiny pipeline, each image with a seed of its own.

    Args:
        pipe: The pipeline.
        prompts: One a row; None where ``changes`` has ``prompt_embeds``.
        changes: Other arguments of the call.

    Returns:
        Latents [images, 4, SIDE / 2, SIDE / 2].
    """
    latents: Tensor = pipe(**call_of(pipe, prompts, **changes)).images
    return latents


def call_of(pipe: Any, prompts: Sequence[str] | None, **changes: Any) -> dict[str, Any]:
    """The arguments that `generate` calls a pipeline with."""
    import torch

    count = len(prompts) if prompts is not None else len(changes["prompt_embeds"])
    images = count * changes.get("num_images_per_prompt", 1)
    options: dict[str, Any] = {
        "prompt": None if prompts is None else list(prompts),
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "generator": [torch.Generator().manual_seed(100 + place) for place in range(images)],
        "output_type": "latent",
        "height": SIDE,
        "width": SIDE,
    }
    if "Diffusion3" in type(pipe).__name__:
        options["max_sequence_length"] = 0  # no zeros in the place of the third text encoder
    return {**options, **changes}


def denoiser_name(pipe: Any) -> str:
    """The name of a pipeline's denoiser among its components."""
    return "unet" if hasattr(pipe, "unet") else "transformer"


def denoiser(pipe: Any) -> Any:
    """A pipeline's denoiser."""
    return getattr(pipe, denoiser_name(pipe))


@functools.cache
def tokenizer() -> Any:
    """A tokenizer of CLIP's kind that spells every text, a token a byte."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return clip_tokenizer({word: place for place, word in enumerate(words)}, (), TOKENS)


def clip_tokenizer(vocabulary: Mapping[str, int], merges: Sequence[str], length: int) -> Any:
    """A ``CLIPTokenizer``, read from files: the arguments of its class differ between transformers 4 and 5.

    Args:
        vocabulary: The number of each token.
        merges: The byte-pair merges, in order, each two tokens with a space between.
        length: The most tokens of a text.

    Returns:
        The tokenizer, as if it had been made from its arguments: it names no folder.
    """
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("\n".join(("#version: 0.2", *merges, "")), encoding="utf-8")
        tokenizer: Any = CLIPTokenizer.from_pretrained(folder, model_max_length=length)
    for key in ("is_local", "local_files_only"):  # said of the folder, which is gone: no part of what is saved
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.name_or_path = ""
    return tokenizer


def text_encoder(kind: str = "CLIPTextModel", width: int = 32, **changes: Any) -> Any:
    """A text encoder of CLIP's kind for `tokenizer`."""
    import transformers

    spelled = tokenizer()
    options: dict[str, Any] = {
        "vocab_size": len(spelled),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "bos_token_id": spelled.bos_token_id,
        "eos_token_id": spelled.eos_token_id,
        "pad_token_id": spelled.pad_token_id,
    }
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**{**options, **changes})).eval()


def autoencoder_options(channels: int = 4, halvings: int = 1) -> dict[str, Any]:
    """The configuration of an autoencoder that halves a picture ``halvings`` times."""
    blocks = halvings + 1
    return {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "block_out_channels": (8,) * blocks,
        "norm_num_groups": 4,
        "latent_channels": channels,
        "mid_block_add_attention": False,
        "force_upcast": False,
        "scaling_factor": 0.5,
    }


def autoencoder() -> Any:
    """An autoencoder that halves a picture once."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**autoencoder_options()).eval()


UNET_OPTIONS: Final[Mapping[str, Any]] = {
    "sample_size": SIDE // 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,  # diffusers reads a number here as the number of heads
    "norm_num_groups": 8,
}


def unet(**changes: Any) -> Any:
    """A UNet of two levels, of which the outer one reads the text."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**{**UNET_OPTIONS, **changes}).eval()


def scheduler(prediction: str = "epsilon") -> Any:
    """A DDIM scheduler."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing", steps_offset=1)


def quiet(pipe: Any) -> Any:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet_parts(seed: int, **changes: Any) -> dict[str, Any]:
    """The parts of a Stable Diffusion pipeline, drawn from a seed."""
    import torch

    torch.manual_seed(seed)
    parts: dict[str, Any] = {
        "vae": autoencoder(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "unet": unet(),
        "scheduler": scheduler(),
    }
    return {**parts, **changes}


def stable_diffusion(kind: type, seed: int, **changes: Any) -> Any:
    """A pipeline of a class of the Stable Diffusion family, with some parts changed."""
    parts = unet_parts(seed, **changes)
    return quiet(kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False))


def _unet_family() -> Any:
    import transformers
    from diffusers import StableDiffusionPipeline

    # Transformers 4 draws other weights from a seed. From seed 1 they are such that a careful eraser finds nothing to change.
    return stable_diffusion(StableDiffusionPipeline, 4 if transformers.__version__.startswith("4.") else 1)


JOINT_OPTIONS: Final[Mapping[str, Any]] = {
    "sample_size": SIDE // 2,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
    "out_channels": 4,
    "pos_embed_max_size": 16,
}


def _joint_family() -> Any:
    """Joint attention, flow matching; two text encoders side by side, pooled texts, zeros in the place of a third."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(8)
    parts = {f"text_encoder{end}": text_encoder("CLIPTextModelWithProjection") for end in ("", "_2")}
    transformer = SD3Transformer2DModel(**JOINT_OPTIONS, qk_norm="rms_norm")
    latents = autoencoder()
    latents.register_to_config(shift_factor=0.1)
    pipe = StableDiffusion3Pipeline(
        **parts,
        vae=latents,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    count_zeros(pipe)
    return quiet(pipe)


def count_zeros(pipe: Any) -> None:
    """Make a Stable Diffusion 3 pipeline without its third text encoder put ``max_sequence_length`` zeros in its place.

    Diffusers 0.35 puts as many as the other encoders have tokens, however many are asked for. A later one is left as it is.
    """

    def zeros(self: Any, *args: Any, max_sequence_length: int = 256, **options: Any) -> Any:
        states = type(self)._get_t5_prompt_embeds(self, *args, **options)
        return states.new_zeros(len(states), max_sequence_length, states.shape[-1])

    if pipe._get_t5_prompt_embeds("", max_sequence_length=0).shape[1]:
        pipe._get_t5_prompt_embeds = MethodType(zeros, pipe)  # a method: a copy of the pipeline asks the copy


TINY_FAMILIES: Final[Mapping[str, Callable[[], Any]]] = {"unet": _unet_family, "joint": _joint_family}
