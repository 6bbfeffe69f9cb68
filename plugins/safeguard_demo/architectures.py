"""The parts of the demo pipeline, untrained: an ordinary tokenizer, text encoder, denoiser, autoencoder and scheduler."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

import torch

from safeguard.screening.encoder import BUNDLED_SHA256, bundled_folder, check_digest
from safeguard_demo.captions import corpus

TOKENS: Final = 32  # length of a text, start and end tokens and padding included
START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"
TEXT_WIDTH: Final = 128
LATENT_CHANNELS: Final = 8


def build_tokenizer() -> Any:
    """A ``CLIPTokenizer`` whose byte-pair merges were learnt on the captions: every word of the world is one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    from safeguard.testing.tiny_pipelines import clip_tokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(corpus(), trainer)
    model = json.loads(learner.to_str())["model"]
    # The learner numbers the letters that end a word anew every time; what it has merged, it numbers by frequency.
    ends = {letter + "</w>" for letter in alphabet}
    learnt = sorted(
        model["vocab"], key=lambda word: (len(word) > 1, word not in ends, word if word in ends else "", model["vocab"][word])
    )
    vocabulary = {word: number for number, word in enumerate(learnt)}
    for word in sorted(ends - vocabulary.keys()):  # so that any text can be spelled, byte by byte
        vocabulary[word] = len(vocabulary)
    for mark in (START, END):
        vocabulary[mark] = len(vocabulary)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    return clip_tokenizer(vocabulary, merges, TOKENS)


def build_text_encoder(tokenizer: Any) -> Any:
    """A ``CLIPTextModel``: width 128, 3 layers, causal."""
    from transformers import CLIPTextModel

    return CLIPTextModel(_text_config(tokenizer))


@cache
def language_tokens() -> Any:
    """The tokenizer of all-MiniLM-L6-v2, for texts of `TOKENS` tokens."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(bundled_folder()), model_max_length=TOKENS, local_files_only=True)


def language_text() -> Any:
    """The pretrained text encoder of the language pipeline, all-MiniLM-L6-v2 from its package: a ``BertModel``, frozen.

    Its states of the tokens are what the denoiser reads; padding is masked in it. Raises AssetError where the package is
    missing or its weights are others than the pinned ones.
    """
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = bundled_folder()
    check_digest(folder / "model.safetensors", BUNDLED_SHA256["model.safetensors"])
    model: Any = BertModel(BertConfig.from_pretrained(str(folder), local_files_only=True), add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: weights[name] for name in model.state_dict()})  # the file has a pooler as well
    model.config.use_attention_mask = True  # what diffusers looks for
    return model.eval().requires_grad_(False)


def _text_config(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_unet(text_width: int = TEXT_WIDTH) -> Any:
    """A ``UNet2DConditionModel`` on 16x16x8 latents: two levels, text read at both, 6.1 M parameters."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 160),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def build_pooling_text_encoder(tokenizer: Any) -> Any:
    """A ``CLIPTextModelWithProjection`` of the same size: states of its last layer but one, and a pooled vector."""
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(_text_config(tokenizer))


def build_mmdit() -> Any:
    """An ``SD3Transformer2DModel`` on 16x16x8 latents: 5 joint blocks, 64 image tokens, 6.7 M parameters.

    Its modulations and its output begin at zero, so that every block begins as the identity (Peebles & Xie 2022,
    arXiv 2212.09748, sec. 3.2).
    """
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        num_layers=5,
        attention_head_dim=48,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=192,
        pooled_projection_dim=2 * TEXT_WIDTH,
        out_channels=LATENT_CHANNELS,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    modulations = [part for name, part in model.named_modules() if name.endswith(("norm1.linear", "norm1_context.linear"))]
    for layer in (*modulations, model.norm_out.linear, model.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


def build_flow_scheduler() -> Any:
    """Euler steps along a straight flow."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def build_vae() -> Any:
    """An ``AutoencoderKL``: 64x64x3 pixels to 16x16x8 latents, 0.66 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def build_scheduler() -> Any:
    """DDIM, velocity prediction, steps spaced from the last one down."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def tokens(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Token ids of texts, as the pipeline makes them: int64 [n, TOKENS]."""
    batch = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    ids: torch.Tensor = batch.input_ids
    return ids
