"""Autoencoders, each as small as its class allows."""

from __future__ import annotations

from typing import Any

from safeguard.testing.tiny_pipelines import autoencoder_options
from tests.support.tiny_pipelines.whole import Make, part


def image_codec(channels: int = 4, halvings: int = 1, **changes: Any) -> Make:
    return part("AutoencoderKL", **{**autoencoder_options(channels, halvings), **changes})


def deep_codec(channels: int = 4) -> Make:
    """The deep compression autoencoder, here with one halving."""
    return part(
        "AutoencoderDC",
        latent_channels=channels,
        attention_head_dim=8,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
    )


def wan_codec(kind: str = "AutoencoderKLWan", channels: int = 4, halvings: int = 1, **changes: Any) -> Make:
    """The causal video autoencoder of Wan and Qwen-Image; the first halving is of the picture alone."""
    options: dict[str, Any] = {
        "base_dim": 8,
        "z_dim": channels,
        "dim_mult": [1] * (halvings + 1),
        "num_res_blocks": 1,
        "temperal_downsample": [False, *[True] * (halvings - 1)],
        "latents_mean": [0.0] * channels,
        "latents_std": [1.0] * channels,
    }
    return part(kind, **{**options, **changes})


def small_video_codec() -> Make:
    """Wan's autoencoder with one halving, of time and picture both."""
    return wan_codec(temperal_downsample=[True], scale_factor_temporal=2, scale_factor_spatial=2)


def ltx_codec() -> Make:
    """Halves the picture twice, once by patches, and time once."""
    return part(
        "AutoencoderKLLTXVideo",
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, False, False, False),
        decoder_spatio_temporal_scaling=(True, False, False, False),
        patch_size=2,
    )


def cog_codec() -> Make:
    return part(
        "AutoencoderKLCogVideoX",
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=32,
        sample_width=32,
        temporal_compression_ratio=4,
    )


def hunyuan_codec() -> Make:
    return part(
        "AutoencoderKLHunyuanVideo",
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


def vq_codec(**changes: Any) -> Make:
    """An autoencoder with a code book."""
    options: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "latent_channels": 4,
        "norm_num_groups": 4,
        "num_vq_embeddings": 16,
        "mid_block_add_attention": False,
    }
    return part("VQModel", **{**options, **changes})


def flux2_codec() -> Make:
    """Its pipelines put four neighbours together and take the numbers of the normalization from it."""
    return part(
        "AutoencoderKLFlux2",
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=32,
    )


def cosmos_codec() -> Make:
    return part(
        "AutoencoderKLCosmos",
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        latents_mean=None,
        latents_std=None,
    )
